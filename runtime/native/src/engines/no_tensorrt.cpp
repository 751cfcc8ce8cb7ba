// TensorRT plans: not in a library that was built without TensorRT's headers, and then it says so.
#include "engines/backends.h"
#include "engines/engine.h"
#include "error.h"

namespace cascade {
namespace {

constexpr const char* absent =
    "this libcascade was built without TensorRT; build it where NvInferRuntime.h is "
    "(-DTENSORRT_INCLUDE_DIR=...), or take another target";

class NoTensorRt : public Backend {
public:
    std::optional<std::string> unavailable(const std::string&, const std::string&) override {
        return absent;
    }
    std::unique_ptr<Engine> load(StageFiles stage, const std::string&, const std::string&,
                                 unsigned) override {
        throw Error(Status::target, stage.main + ": " + absent);
    }
    std::string version() override { return "tensorrt, not built in"; }
};

}  // namespace

std::shared_ptr<Backend> make_tensorrt(const std::string&) { return std::make_shared<NoTensorRt>(); }

}  // namespace cascade
