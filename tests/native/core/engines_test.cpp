// Where engine libraries are looked for, and that the functions of the real ONNX Runtime are where
// ort_abi.h says. Real engines run in tests/runtime/test_native_cascade.py.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "engines/engine.h"
#include "engines/library.h"
#include "engines/ort_abi.h"

using namespace cascade;

namespace {

TEST(Library, that_is_missing_names_itself_and_says_how_to_get_it) {
    const auto backend = find_backend("openvino", {.onnxruntime = {}, .openvino = "/nowhere/x.so", .tensorrt = {}});
    const std::string reason = backend->unavailable("fp32", "cpu").value_or("");
    EXPECT_NE(reason.find("libopenvino_c.so cannot be loaded (/nowhere/x.so"), std::string::npos)
        << reason;
    EXPECT_NE(reason.find("pip install openvino"), std::string::npos);
}

TEST(Library, is_looked_for_inside_a_folder) {
    const auto folder = std::filesystem::temp_directory_path().string();
    const Library library({.place = folder, .names = {"libnothing_of_the_kind.so"}, .advice = "go"});
    EXPECT_EQ(library.error(), "libnothing_of_the_kind.so cannot be loaded (no "
                               "libnothing_of_the_kind.so in '" + folder + "'); go");
}

TEST(Backend, that_is_unknown_is_none) { EXPECT_EQ(find_backend("tpu", {}), nullptr); }

TEST(Backend, refuses_what_it_does_not_run) {
    EXPECT_EQ(find_backend("onnxruntime", {})->unavailable("fp64", "cpu"),
              "onnxruntime runs fp32/cpu, int8/cpu, fp32/cuda and fp16/tensorrt, not fp64/cpu");
}

// A build for processors says by name which provider it lacks: so the GPU's functions, which nothing
// here can run, are seen to be in their places.
TEST(OrtAbi, functions_for_gpus_are_where_they_should_be) {
    const char* place = std::getenv("CASCADE_ONNXRUNTIME_LIBRARY");
    if (place == nullptr) GTEST_SKIP() << "CASCADE_ONNXRUNTIME_LIBRARY is not set";
    const Library library({.place = place, .names = {"libonnxruntime.so"}, .advice = ""});
    ASSERT_TRUE(library.found()) << library.error();
    const ort::ApiBase* (*base)() = nullptr;
    library.bind(base, "OrtGetApiBase");
    const ort::Api api(base()->get_api(ort::api_version));
    const auto text = [&](ort::Status* status) -> std::string {
        if (status == nullptr) return "";
        const std::string message = api(ort::get_error_message)(status);
        api(ort::release_status)(status);
        return message;
    };
    ort::CudaOptions* cuda = nullptr;
    const std::string no_cuda = text(api(ort::create_cuda_options)(&cuda));
    if (no_cuda.empty()) {
        api(ort::release_cuda_options)(cuda);
        GTEST_SKIP() << "this is a build for GPUs";
    }
    EXPECT_NE(no_cuda.find("CUDA execution provider is not"), std::string::npos) << no_cuda;
    ort::TensorRtOptions* tensorrt = nullptr;
    const std::string no_tensorrt = text(api(ort::create_tensorrt_options)(&tensorrt));
    EXPECT_NE(no_tensorrt.find("TensorRT execution provider is not"), std::string::npos)
        << no_tensorrt;
}

}  // namespace
