// OpenVINO on the CPU, in float32 or, where the processor has it, bfloat16 or int8, opened with
// dlopen. In: the bytes of `stageN.xml` (the graph) and `stageN.bin` (the weights). Out: an
// `Engine`. The options are those of cascade_runtime/engines/openvino.py.
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "engines/backends.h"
#include "engines/engine.h"
#include "engines/openvino_library.h"
#include "engines/processor.h"
#include "error.h"

namespace cascade {
namespace {

constexpr const char* again = "rebuild it with cascade-compile bundle";

std::size_t elements(const std::vector<std::int64_t>& shape, std::size_t from) {
    std::size_t count = 1;
    for (std::size_t axis = from; axis < shape.size(); ++axis) {
        count *= static_cast<std::size_t>(shape[axis]);
    }
    return count;
}

Batch part_of(const Batch& batch, std::size_t start, std::size_t size) {
    const std::size_t width = batch.element == Element::uint8 ? 1 : sizeof(float);
    Batch part = batch;
    part.data = static_cast<const std::byte*>(batch.data) + start * elements(batch.shape, 1) * width;
    part.shape.front() = static_cast<std::int64_t>(size);
    return part;
}

// The outputs of parts, one behind another in memory of their own.
Outputs joined(const std::vector<std::array<Output, ov::output_names.size()>>& parts) {
    auto memory = std::make_shared<std::array<std::vector<float>, ov::output_names.size()>>();
    Outputs outputs;
    Output* slots[] = {&outputs.logits, &outputs.gate, &outputs.tokens};
    for (std::size_t slot = 0; slot < ov::output_names.size(); ++slot) {
        if (parts.front()[slot].shape.empty()) continue;
        std::vector<float>& values = (*memory)[slot];
        const std::vector<std::int64_t>& sides = parts.front()[slot].shape;
        *slots[slot] = parts.front()[slot];
        slots[slot]->shape.front() = 0;
        for (const auto& part : parts) {
            const Output& output = part[slot];
            if (!output.is_float32 || output.shape.size() != sides.size() ||
                elements(output.shape, 1) != elements(sides, 1)) {
                throw Error(Status::bundle, "the parts of a batch gave outputs of two kinds");
            }
            values.insert(values.end(), output.data, output.data + elements(output.shape, 0));
            slots[slot]->shape.front() += output.shape.front();
        }
        slots[slot]->data = values.data();
    }
    outputs.owner = std::move(memory);
    return outputs;
}

// The same stage compiled for streams of one thread each, when a batch first needs it.
class Streams {
public:
    using Compile = std::function<std::shared_ptr<ov::Compiled>()>;

    // `count`: how many parts run side by side; 1 never cuts a batch.
    Streams(std::size_t count, Compile compile) : count_(count), compile_(std::move(compile)) {}

    // How many images a part of such a batch has; 0: it is not cut.
    std::size_t part(std::size_t batch) const {
        if (count_ <= 1 || batch == 0 || batch % count_ != 0) return 0;
        std::size_t size = largest_part;
        while (batch / count_ % size != 0) --size;
        return size;
    }

    std::size_t count() const { return count_; }

    std::shared_ptr<ov::Compiled> compiled() {
        const std::lock_guard guard(lock_);
        if (compiled_ == nullptr) compiled_ = compile_();
        return compiled_;
    }

private:
    static constexpr std::size_t largest_part = 8;  // more fall out of a core's cache

    std::size_t count_;
    Compile compile_;
    std::mutex lock_;
    std::shared_ptr<ov::Compiled> compiled_;
};

// A batch runs on all threads at once or, where it divides, one part a thread: those do not wait
// for each other at every layer (docs/decisions/0013-streams.md).
class OpenVinoEngine : public Engine {
public:
    OpenVinoEngine(std::shared_ptr<ov::Compiled> whole, std::unique_ptr<Streams> streams)
        : compiled_(std::move(whole)), streams_(std::move(streams)) {
        const ov::Runtime& runtime = *compiled_->runtime;
        std::size_t inputs = 0, outputs = 0;
        runtime.check(runtime.api.ov_compiled_model_inputs_size(compiled_->model(), &inputs));
        runtime.check(runtime.api.ov_compiled_model_outputs_size(compiled_->model(), &outputs));
        if (inputs != 1) throw Error(Status::bundle, "an engine needs one input");
        for (std::size_t index = 0; index < outputs; ++index) {
            const std::string name = output_name(index);
            for (std::size_t slot = 0; slot < ov::output_names.size(); ++slot) {
                if (name == ov::output_names[slot]) places_[slot] = index;
            }
        }
    }

    Outputs run(const Batch& batch) override {
        const std::size_t part = streams_->part(batch.size());
        return part == 0 ? run_on(compiled_, batch) : run_parts(batch, part);
    }

    Engine* side_by_side() override { return streams_->count() > 1 ? &one_thread_ : nullptr; }

private:
    // The stage on a stream of one thread, as many at once as there are streams.
    class OneThread : public Engine {
    public:
        explicit OneThread(OpenVinoEngine& all) : all_(all) {}
        Outputs run(const Batch& batch) override {
            return all_.run_on(all_.streams_->compiled(), batch);
        }

    private:
        OpenVinoEngine& all_;
    };

    Outputs run_on(const std::shared_ptr<ov::Compiled>& compiled, const Batch& batch) {
        auto run = std::make_shared<ov::Run>(compiled, batch);
        run->infer();
        const auto found = run->outputs(places_);
        return {found[0], found[1], found[2], std::move(run)};
    }

    Outputs run_parts(const Batch& batch, std::size_t size) {
        const std::shared_ptr<ov::Compiled> compiled = streams_->compiled();
        std::vector<std::unique_ptr<ov::Run>> runs;
        for (std::size_t start = 0; start < batch.size(); start += size) {
            runs.push_back(std::make_unique<ov::Run>(compiled, part_of(batch, start, size)));
            runs.back()->start();
        }
        std::vector<std::array<Output, ov::output_names.size()>> parts;
        for (const auto& run : runs) {
            run->wait();
            parts.push_back(run->outputs(places_));
        }
        return joined(parts);
    }

    std::string output_name(std::size_t index) const {
        const ov::Runtime& runtime = *compiled_->runtime;
        ov::Port* port = nullptr;
        runtime.check(
            runtime.api.ov_compiled_model_output_by_index(compiled_->model(), index, &port));
        const ov::Owned<ov::Port> owned(port, runtime.api.ov_output_const_port_free);
        char* name = nullptr;
        runtime.check(runtime.api.ov_port_get_any_name(port, &name));
        const std::string copied = name;
        runtime.api.ov_free(name);
        return copied;
    }

    std::shared_ptr<ov::Compiled> compiled_;
    std::unique_ptr<Streams> streams_;
    ov::Places places_;
    OneThread one_thread_{*this};
};

class OpenVino : public Backend {
public:
    explicit OpenVino(const std::string& place) : runtime_(std::make_shared<ov::Runtime>(place)) {}

    std::optional<std::string> unavailable(const std::string& precision,
                                           const std::string& device) override {
        if (device != "cpu" || (precision != "fp32" && precision != "bf16" && precision != "int8")) {
            return "openvino runs fp32/cpu, bf16/cpu and int8/cpu here, not " + precision + "/" +
                   device;
        }
        if (!runtime_->error().empty()) return runtime_->error();
        if (precision == "bf16" && !runtime_->can("BF16")) {
            return "this processor has no bfloat16 instructions (AVX512_BF16 or AMX)";
        }
        if (precision == "int8") {
            return runtime_->can("INT8") ? no_int8() : "openvino has no int8 here";
        }
        return std::nullopt;
    }

    std::unique_ptr<Engine> load(StageFiles stage, const std::string& precision,
                                 const std::string& device, unsigned threads) override {
        (void)device;  // it is the CPU
        const std::string weights = weights_of(stage);
        try {
            const bool large = stage.files.at(weights).size() > streams_limit;
            const std::shared_ptr<ov::Model> model =
                read(stage.files.at(stage.main), stage.files.at(weights));
            stage.files.clear();
            const std::string hint = this->hint(precision);
            auto whole = std::make_shared<ov::Compiled>(
                runtime_, compile(*runtime_, model.get(), hint, "PERFORMANCE_HINT", "LATENCY",
                                  threads == 0 ? "" : std::to_string(threads)));
            const std::string count = whole->property("INFERENCE_NUM_THREADS");
            auto streams = std::make_unique<Streams>(
                large ? 1 : std::stoul(count), [runtime = runtime_, model, hint, count] {
                    return std::make_shared<ov::Compiled>(
                        runtime, compile(*runtime, model.get(), hint, "NUM_STREAMS", count, count));
                });
            return std::make_unique<OpenVinoEngine>(std::move(whole), std::move(streams));
        } catch (const Error& error) {
            throw Error(error.status,
                        stage.main + ": " + version() + " cannot load it (" + error.what() + ")");
        }
    }

    std::string version() override { return "openvino " + runtime_->version(); }

private:
    // The path of the .bin; refuses anything but an .xml with it.
    static std::string weights_of(const StageFiles& stage) {
        const std::string& main = stage.main;
        const bool is_xml = main.ends_with(".xml");
        const std::string weights = is_xml ? main.substr(0, main.size() - 4) + ".bin" : "";
        if (!is_xml || stage.files.size() != 2 || !stage.files.contains(weights)) {
            throw Error(Status::target, main + ": an openvino stage is an .xml with its .bin; " + again);
        }
        const std::vector<std::byte>& graph = stage.files.at(main);
        const std::string_view text(reinterpret_cast<const char*>(graph.data()), graph.size());
        const std::size_t first = text.find_first_not_of(" \t\n\r\v\f");
        if (first == std::string_view::npos || text[first] != '<') {
            // Other formats may name files of their own.
            throw Error(Status::target, main + ": not an OpenVINO graph in XML; " + again);
        }
        return weights;
    }

    std::shared_ptr<ov::Model> read(const std::vector<std::byte>& graph,
                          const std::vector<std::byte>& weights) const {
        const ov::Api& api = runtime_->api;
        std::int64_t bytes = static_cast<std::int64_t>(weights.size());
        ov::Tensor* tensor = nullptr;
        runtime_->check(api.ov_tensor_create(ov::uint8, {1, &bytes}, &tensor));
        const ov::Owned<ov::Tensor> owned(tensor, api.ov_tensor_free);  // the model shares it
        void* data = nullptr;
        runtime_->check(api.ov_tensor_data(tensor, &data));
        if (!weights.empty()) std::memcpy(data, weights.data(), weights.size());
        ov::Model* model = nullptr;
        runtime_->check(api.ov_core_read_model_from_memory_buffer(
            runtime_->core, reinterpret_cast<const char*>(graph.data()), graph.size(), tensor,
            &model));
        return {model, api.ov_model_free};
    }

    // What is computed in that is not quantised: of int8, bf16 where the processor has it.
    std::string hint(const std::string& precision) const {
        const bool half = precision == "bf16" || (precision == "int8" && runtime_->can("BF16"));
        return half ? "bf16" : "f32";
    }

    static ov::CompiledModel* compile(const ov::Runtime& runtime, const ov::Model* model,
                                      const std::string& hint, const char* key,
                                      const std::string& value, const std::string& threads) {
        ov::CompiledModel* compiled = nullptr;
        // Without the pairs at the end, which stand there for nothing then, the library takes every
        // core, and pins its threads. Pinned, every process of a few threads would be on the same.
        const bool few = !threads.empty() && std::stoul(threads) < std::thread::hardware_concurrency();
        runtime.check(runtime.api.ov_core_compile_model(
            runtime.core, model, "CPU", threads.empty() ? 4 : few ? 8 : 6, &compiled,
            "INFERENCE_PRECISION_HINT", hint.c_str(), key, value.c_str(), "INFERENCE_NUM_THREADS",
            threads.c_str(), "ENABLE_CPU_PINNING", "NO"));
        return compiled;
    }

    // A second copy of the weights, for streams, is worth its memory up to here: 256 MiB a stage.
    static constexpr std::size_t streams_limit = std::size_t{256} << 20;
    ov::SharedRuntime runtime_;
};

}  // namespace

std::shared_ptr<Backend> make_openvino(const std::string& library) {
    return std::make_shared<OpenVino>(library);
}

}  // namespace cascade
