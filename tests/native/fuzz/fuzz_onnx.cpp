// An ONNX file of any bytes: where it says that its weights lie.

#include "bundle/onnx_external.h"
#include "try_to.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace cascade;
    try_to([&] { check_external_data(bytes_of(data, size), "stage0.onnx", {"stage0.data"}); });
    return 0;
}
