// TensorRT plans on an NVIDIA GPU, full or lean runtime, opened with dlopen; compiled only where
// NvInferRuntime.h is. In: the bytes of `stageN.plan`. Out: an `Engine`. A plan is executable code and
// runs on one compute capability, so it is refused before it is deserialised where its header or this
// machine do not fit. As cascade_runtime/engines/tensorrt.py, without captured graphs.
#include <NvInferRuntime.h>

#include <cstring>
#include <mutex>
#include <regex>

#include "engines/backends.h"
#include "engines/cuda.h"
#include "engines/engine.h"
#include "engines/library.h"
#include "error.h"

namespace cascade {
namespace {

namespace nv = nvinfer1;

constexpr std::size_t header_bytes = 28;  // up to the end of the version
constexpr std::uint32_t magic = 0x74727466;

// Keeps TensorRT's latest complaint, to say it with the error that follows.
class Messages : public nv::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard guard(lock_);
        latest_ = text;
    }
    std::string latest() {
        const std::lock_guard guard(lock_);
        return latest_;
    }

private:
    std::mutex lock_;
    std::string latest_;
};

// The version of the TensorRT that wrote a plan has its major first.
int major_of(const std::vector<std::byte>& plan, const std::string& what) {
    std::uint32_t head[2] = {};
    if (plan.size() >= header_bytes) std::memcpy(head, plan.data(), sizeof head);
    if (head[0] != magic || head[1] != 0) {
        throw Error(Status::target,
                    what + ": is no TensorRT plan; build it with cascade-compile engines");
    }
    return std::to_integer<int>(plan[24]);
}

std::size_t element_bytes(nv::DataType type) {
    if (type == nv::DataType::kFLOAT) return sizeof(float);
    if (type == nv::DataType::kUINT8) return 1;
    throw Error(Status::bundle, "an engine's inputs and outputs are uint8 and float32");
}

struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;  // the batch is the first axis
    std::size_t row_bytes = 0;        // of one image
    bool is_float32 = false;
};

// A deserialised plan.
struct Plan {
    std::shared_ptr<nv::IRuntime> runtime;
    std::unique_ptr<nv::ICudaEngine> engine;
    Tensor input;
    std::vector<Tensor> outputs;
    std::size_t largest_batch = 0;
    std::size_t scratch = 0;
};

Tensor tensor_of(const nv::ICudaEngine& engine, const char* name) {
    const nv::Dims dims = engine.getTensorShape(name);
    Tensor tensor{name, {dims.d, dims.d + dims.nbDims}, 0, false};
    const nv::DataType type = engine.getTensorDataType(name);
    tensor.is_float32 = type == nv::DataType::kFLOAT;
    tensor.row_bytes = element_bytes(type);
    for (std::size_t axis = 1; axis < tensor.shape.size(); ++axis) {
        tensor.row_bytes *= static_cast<std::size_t>(tensor.shape[axis]);
    }
    return tensor;
}

// Memory, a stream and a context for one call at a time.
class Lane {
public:
    explicit Lane(const Plan& plan) : plan_(plan), stream_(cuda::make_stream()) {
        try {
            scratch_ = take(plan.scratch);
            input_ = take(plan.input.row_bytes * plan.largest_batch);
            for (const Tensor& output : plan.outputs) {
                places_.push_back(take(output.row_bytes * plan.largest_batch));
                host_.emplace_back(output.row_bytes * plan.largest_batch);
            }
            make_context();
        } catch (...) {
            let_go();
            throw;
        }
    }
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;
    ~Lane() {
        context_.reset();
        let_go();
    }

    void run(const Batch& batch) {
        const std::size_t size = batch.size();
        if (size != prepared_) prepare(size);
        cuda::upload(input_, batch.data, plan_.input.row_bytes * size, stream_);
        if (!context_->enqueueV3(static_cast<cudaStream_t>(stream_))) {
            throw Error(Status::failure, "TensorRT could not start a run");
        }
        for (std::size_t i = 0; i < places_.size(); ++i) {
            cuda::download(host_[i].data(), places_[i], plan_.outputs[i].row_bytes * size, stream_);
        }
        cuda::wait(stream_);
    }

    Output output(std::size_t index, std::size_t size) const {
        const Tensor& tensor = plan_.outputs[index];
        Output output{reinterpret_cast<const float*>(host_[index].data()), tensor.shape,
                      tensor.is_float32};
        output.shape.front() = static_cast<std::int64_t>(size);
        return output;
    }

private:
    cuda::Pointer take(std::size_t bytes) {
        taken_.push_back(cuda::allocate(bytes));
        return taken_.back();
    }

    void make_context() {
        context_.reset(plan_.engine->createExecutionContext(
            nv::ExecutionContextAllocationStrategy::kUSER_MANAGED));
        if (context_ == nullptr) {
            throw Error(Status::failure,
                        "TensorRT cannot make an execution context; out of GPU memory?");
        }
        context_->setDeviceMemoryV2(reinterpret_cast<void*>(scratch_),
                                    static_cast<std::int64_t>(plan_.scratch));
        bool done = context_->setOptimizationProfileAsync(0, static_cast<cudaStream_t>(stream_));
        done &= context_->setTensorAddress(plan_.input.name.c_str(),
                                           reinterpret_cast<void*>(input_));
        for (std::size_t i = 0; i < places_.size(); ++i) {
            done &= context_->setTensorAddress(plan_.outputs[i].name.c_str(),
                                               reinterpret_cast<void*>(places_[i]));
        }
        if (!done) throw Error(Status::failure, "TensorRT refuses the addresses of a plan");
    }

    void prepare(std::size_t size) {
        nv::Dims dims = plan_.engine->getTensorShape(plan_.input.name.c_str());
        dims.d[0] = static_cast<std::int64_t>(size);
        if (!context_->setInputShape(plan_.input.name.c_str(), dims)) {
            throw Error(Status::failure,
                        "TensorRT refuses a batch of " + std::to_string(size));
        }
        prepared_ = size;
    }

    void let_go() noexcept {
        for (const cuda::Pointer pointer : taken_) cuda::release(pointer);
        cuda::release(stream_);
    }

    const Plan& plan_;
    cuda::Stream stream_;
    std::vector<cuda::Pointer> taken_, places_;
    cuda::Pointer scratch_ = 0, input_ = 0;
    std::vector<std::vector<std::byte>> host_;
    std::unique_ptr<nv::IExecutionContext> context_;
    std::size_t prepared_ = 0;
};

class TensorRtEngine : public Engine {
public:
    explicit TensorRtEngine(Plan plan) : shared_(std::make_shared<Shared>(std::move(plan))) {}

    Outputs run(const Batch& batch) override {
        const std::size_t size = batch.size();
        if (size > shared_->plan.largest_batch) {
            throw Error(Status::target,
                        "a batch of " + std::to_string(size) + ", the plan takes " +
                            std::to_string(shared_->plan.largest_batch) + " at most");
        }
        cuda::use();
        std::unique_ptr<Lane> lane = shared_->take();
        lane->run(batch);  // after a failure its state is unknown, and it goes
        Outputs outputs;
        for (std::size_t i = 0; i < shared_->plan.outputs.size(); ++i) {
            const std::string& name = shared_->plan.outputs[i].name;
            if (name == "logits") outputs.logits = lane->output(i, size);
            if (name == "gate") outputs.gate = lane->output(i, size);
            if (name == "tokens") outputs.tokens = lane->output(i, size);
        }
        // The lane's memory is the caller's until the outputs are done with.
        outputs.owner = std::shared_ptr<void>(
            lane.release(), [shared = shared_](void* used) { shared->give_back(used); });
        return outputs;
    }

private:
    struct Shared {
        explicit Shared(Plan plan) : plan(std::move(plan)) {}
        ~Shared() {
            try {
                cuda::use();
            } catch (const Error&) {
                // The GPU is lost, and its memory with it.
            }
            idle.clear();
        }
        std::unique_ptr<Lane> take() {
            {
                const std::lock_guard guard(lock);
                if (!idle.empty()) {
                    std::unique_ptr<Lane> lane = std::move(idle.back());
                    idle.pop_back();
                    return lane;
                }
            }
            return std::make_unique<Lane>(plan);
        }
        void give_back(void* lane) {
            const std::lock_guard guard(lock);
            idle.emplace_back(static_cast<Lane*>(lane));
        }

        Plan plan;
        std::mutex lock;
        std::vector<std::unique_ptr<Lane>> idle;
    };
    std::shared_ptr<Shared> shared_;
};

class TensorRt : public Backend {
public:
    explicit TensorRt(const std::string& place)
        : library_({.place = place,
                    .names = {"libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR),
                              "libnvinfer_lean.so." + std::to_string(NV_TENSORRT_MAJOR)},
                    .advice = "install TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                              ", or its lean runtime, and name the library in "
                              "CASCADE_TENSORRT_LIBRARY or the option tensorrt_library"}) {}

    std::optional<std::string> unavailable(const std::string& precision,
                                           const std::string& device) override {
        static const std::regex known("sm\\*|sm[0-9]{2,3}");
        if ((precision != "fp16" && precision != "mixed") || !std::regex_match(device, known)) {
            return "tensorrt runs fp16 and mixed on sm75 and later, not " + precision + "/" + device;
        }
        if (!library_.found()) return library_.error();
        if (const auto reason = cuda::missing()) return reason;
        if (device == "sm*" || device == cuda::capability()) return std::nullopt;
        return "built for compute capability " + device + ", this GPU is " + cuda::capability() +
               "; build engines for it with cascade-compile engines";
    }

    std::unique_ptr<Engine> load(StageFiles stage, const std::string&, const std::string&,
                                 unsigned) override {
        const std::vector<std::byte>& bytes = stage.files.at(stage.main);
        const int major = major_of(bytes, stage.main);
        if (major > NV_TENSORRT_MAJOR) {
            throw Error(Status::target, stage.main + ": the plan is of TensorRT " +
                                            std::to_string(major) + ", here is " +
                                            std::to_string(NV_TENSORRT_MAJOR) +
                                            ", which cannot run it; upgrade TensorRT");
        }
        cuda::use();
        Plan plan;
        plan.runtime = runtime();
        plan.engine.reset(plan.runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
        if (plan.engine == nullptr) {
            throw Error(Status::target, stage.main + ": " + version() + " cannot load this plan (" +
                                            messages_.latest() +
                                            "); build it again on this device with "
                                            "cascade-compile engines");
        }
        describe(plan, stage.main);
        return std::make_unique<TensorRtEngine>(std::move(plan));
    }

    std::string version() override {
        if (!library_.found()) return "tensorrt, not installed";
        std::int32_t (*version)() = nullptr;
        library_.bind(version, "getInferLibVersion");
        const int number = version();  // 101303 is 10.13.3
        return "tensorrt " + std::to_string(number / 10000) + "." +
               std::to_string(number / 100 % 100) + "." + std::to_string(number % 100);
    }

private:
    std::shared_ptr<nv::IRuntime> runtime() {
        const std::lock_guard guard(lock_);
        if (runtime_ == nullptr) {
            void* (*create)(void*, std::int32_t) = nullptr;
            library_.bind(create, "createInferRuntime_INTERNAL");
            runtime_.reset(static_cast<nv::IRuntime*>(create(&messages_, NV_TENSORRT_VERSION)));
            if (runtime_ == nullptr) {
                throw Error(Status::target, "TensorRT cannot start: " + messages_.latest());
            }
            runtime_->setEngineHostCodeAllowed(false);
        }
        return runtime_;
    }

    static void describe(Plan& plan, const std::string& what) {
        const nv::ICudaEngine& engine = *plan.engine;
        int inputs = 0;
        for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
            const char* name = engine.getIOTensorName(i);
            if (engine.getTensorIOMode(name) == nv::TensorIOMode::kINPUT) {
                plan.input = tensor_of(engine, name);
                ++inputs;
            } else {
                plan.outputs.push_back(tensor_of(engine, name));
            }
        }
        if (inputs != 1) {
            throw Error(Status::target, what + ": the plan has " + std::to_string(inputs) +
                                            " inputs, a stage has one; rebuild it");
        }
        const nv::Dims most =
            engine.getProfileShape(plan.input.name.c_str(), 0, nv::OptProfileSelector::kMAX);
        plan.largest_batch = static_cast<std::size_t>(most.d[0]);
        plan.scratch = static_cast<std::size_t>(engine.getDeviceMemorySizeV2());
    }

    Library library_;
    Messages messages_;
    std::mutex lock_;
    std::shared_ptr<nv::IRuntime> runtime_;
};

}  // namespace

std::shared_ptr<Backend> make_tensorrt(const std::string& library) {
    return std::make_shared<TensorRt>(library);
}

}  // namespace cascade
