// OpenVINO on the CPU, in float32 or, where the processor has it, bfloat16 or int8, opened with
// dlopen. In: the bytes of `stageN.xml` (the graph) and `stageN.bin` (the weights). Out: an
// `Engine`. The options are those of cascade_runtime/engines/openvino.py.
#include <cstring>
#include <mutex>
#include <sstream>

#include "engines/backends.h"
#include "engines/engine.h"
#include "engines/library.h"
#include "engines/openvino_abi.h"
#include "engines/processor.h"
#include "error.h"

namespace cascade {
namespace {

constexpr const char* again = "rebuild it with cascade-compile bundle";

LibrarySearch where(const std::string& place) {
    return {
        .place = place,
        .names = {"libopenvino_c.so"},
        .advice = "pip install openvino and name its folder openvino/libs, or the library, in "
                  "CASCADE_OPENVINO_LIBRARY or the option openvino_library",
    };
}

template <typename Object>
using Owned = std::unique_ptr<Object, void (*)(Object*)>;

std::string one_line(const std::string& text) {
    std::istringstream words(text);
    std::string line;
    for (std::string word; words >> word;) line += (line.empty() ? "" : " ") + word;
    return line;
}

// The opened library and the one object that everything else comes from.
class Runtime {
public:
    explicit Runtime(const std::string& place) : library_(where(place)) {
        if (!library_.found()) {
            error_ = library_.error();
            return;
        }
        bind();
        ov::Version version = {};
        check(api.ov_get_openvino_version(&version));
        version_ = version.build;
        api.ov_version_free(&version);
        check(api.ov_core_create(&core));  // never freed, as the library
        capabilities_ = property("OPTIMIZATION_CAPABILITIES");
    }

    void check(ov::Result result, Status kind = Status::target) const {
        if (result == 0) return;
        const char* text = api.ov_get_last_err_msg();  // a copy, ours to free
        const std::string message = one_line(text == nullptr ? "no reason is given" : text);
        api.ov_free(text);
        throw Error(kind, message);
    }

    bool can(const std::string& capability) const {
        std::istringstream words(capabilities_);
        for (std::string word; words >> word;) {
            if (word == capability) return true;
        }
        return false;
    }

    const std::string& error() const { return error_; }
    const std::string& version() const { return version_; }

    ov::Api api = {};
    ov::Core* core = nullptr;

private:
    void bind() {
#define CASCADE_BIND(name) library_.bind(api.name, #name)
        CASCADE_BIND(ov_get_openvino_version);
        CASCADE_BIND(ov_version_free);
        CASCADE_BIND(ov_get_last_err_msg);
        CASCADE_BIND(ov_free);
        CASCADE_BIND(ov_core_create);
        CASCADE_BIND(ov_core_get_property);
        CASCADE_BIND(ov_core_read_model_from_memory_buffer);
        CASCADE_BIND(ov_core_compile_model);
        CASCADE_BIND(ov_model_free);
        CASCADE_BIND(ov_compiled_model_free);
        CASCADE_BIND(ov_compiled_model_inputs_size);
        CASCADE_BIND(ov_compiled_model_outputs_size);
        CASCADE_BIND(ov_compiled_model_output_by_index);
        CASCADE_BIND(ov_compiled_model_create_infer_request);
        CASCADE_BIND(ov_port_get_any_name);
        CASCADE_BIND(ov_output_const_port_free);
        CASCADE_BIND(ov_infer_request_set_input_tensor_by_index);
        CASCADE_BIND(ov_infer_request_get_output_tensor_by_index);
        CASCADE_BIND(ov_infer_request_infer);
        CASCADE_BIND(ov_infer_request_free);
        CASCADE_BIND(ov_tensor_create);
        CASCADE_BIND(ov_tensor_create_from_host_ptr);
        CASCADE_BIND(ov_tensor_get_shape);
        CASCADE_BIND(ov_tensor_get_element_type);
        CASCADE_BIND(ov_tensor_data);
        CASCADE_BIND(ov_tensor_free);
        CASCADE_BIND(ov_shape_free);
#undef CASCADE_BIND
    }

    std::string property(const char* key) const {
        char* value = nullptr;
        check(api.ov_core_get_property(core, "CPU", key, &value));
        const std::string copied = value;
        api.ov_free(value);
        return copied;
    }

    Library library_;
    std::string error_, version_, capabilities_;
};

using SharedRuntime = std::shared_ptr<Runtime>;

// A compiled stage and its infer requests. A request serves one call at a time and is prepared for
// the batch sizes that it has met, so idle ones are kept: as many exist as there were calls at once.
class Compiled : public std::enable_shared_from_this<Compiled> {
public:
    Compiled(SharedRuntime runtime, ov::CompiledModel* model)
        : runtime(std::move(runtime)), model_(model) {}
    Compiled(const Compiled&) = delete;
    Compiled& operator=(const Compiled&) = delete;
    ~Compiled() {
        for (ov::Request* request : idle_) runtime->api.ov_infer_request_free(request);
        runtime->api.ov_compiled_model_free(model_);
    }

    ov::Request* take() {
        {
            const std::lock_guard guard(lock_);
            if (!idle_.empty()) {
                ov::Request* request = idle_.back();
                idle_.pop_back();
                return request;
            }
        }
        ov::Request* request = nullptr;
        runtime->check(runtime->api.ov_compiled_model_create_infer_request(model_, &request),
                       Status::failure);
        return request;
    }

    void give_back(ov::Request* request) {
        const std::lock_guard guard(lock_);
        idle_.push_back(request);
    }

    ov::CompiledModel* model() const { return model_; }
    const SharedRuntime runtime;

private:
    ov::CompiledModel* model_;
    std::mutex lock_;
    std::vector<ov::Request*> idle_;
};

// One call's request with the tensors read from it; given back when the outputs are done with.
struct Run {
    explicit Run(std::shared_ptr<Compiled> compiled)
        : compiled(std::move(compiled)), request(this->compiled->take()) {}
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() {
        const ov::Api& api = compiled->runtime->api;
        for (ov::Tensor* tensor : outputs) {
            if (tensor != nullptr) api.ov_tensor_free(tensor);
        }
        if (finished) {
            compiled->give_back(request);
        } else {
            api.ov_infer_request_free(request);  // its state is unknown
        }
    }

    std::shared_ptr<Compiled> compiled;
    ov::Request* request;
    std::array<ov::Tensor*, 3> outputs = {};
    bool finished = false;
};

constexpr std::array<const char*, 3> output_names = {"logits", "gate", "tokens"};

class OpenVinoEngine : public Engine {
public:
    explicit OpenVinoEngine(std::shared_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {
        const Runtime& runtime = *compiled_->runtime;
        std::size_t inputs = 0, outputs = 0;
        runtime.check(runtime.api.ov_compiled_model_inputs_size(compiled_->model(), &inputs));
        runtime.check(runtime.api.ov_compiled_model_outputs_size(compiled_->model(), &outputs));
        if (inputs != 1) throw Error(Status::bundle, "an engine needs one input");
        for (std::size_t index = 0; index < outputs; ++index) {
            const std::string name = output_name(index);
            for (std::size_t slot = 0; slot < output_names.size(); ++slot) {
                if (name == output_names[slot]) places_[slot] = index;
            }
        }
    }

    Outputs run(const Batch& batch) override {
        const Runtime& runtime = *compiled_->runtime;
        auto run = std::make_shared<Run>(compiled_);
        const Owned<ov::Tensor> input = tensor_of(batch);
        runtime.check(runtime.api.ov_infer_request_set_input_tensor_by_index(run->request, 0,
                                                                             input.get()),
                      Status::failure);
        runtime.check(runtime.api.ov_infer_request_infer(run->request), Status::failure);
        Outputs outputs;
        Output* slots[] = {&outputs.logits, &outputs.gate, &outputs.tokens};
        for (std::size_t slot = 0; slot < places_.size(); ++slot) {
            if (!places_[slot].has_value()) continue;
            runtime.check(runtime.api.ov_infer_request_get_output_tensor_by_index(
                              run->request, *places_[slot], &run->outputs[slot]),
                          Status::failure);
            *slots[slot] = output_of(run->outputs[slot]);
        }
        run->finished = true;
        outputs.owner = std::move(run);
        return outputs;
    }

private:
    std::string output_name(std::size_t index) const {
        const Runtime& runtime = *compiled_->runtime;
        ov::Port* port = nullptr;
        runtime.check(
            runtime.api.ov_compiled_model_output_by_index(compiled_->model(), index, &port));
        const Owned<ov::Port> owned(port, runtime.api.ov_output_const_port_free);
        char* name = nullptr;
        runtime.check(runtime.api.ov_port_get_any_name(port, &name));
        const std::string copied = name;
        runtime.api.ov_free(name);
        return copied;
    }

    Owned<ov::Tensor> tensor_of(const Batch& batch) const {
        const Runtime& runtime = *compiled_->runtime;
        std::vector<std::int64_t> sides = batch.shape;
        ov::Tensor* tensor = nullptr;
        runtime.check(runtime.api.ov_tensor_create_from_host_ptr(
                          batch.element == Element::uint8 ? ov::uint8 : ov::float32,
                          {static_cast<std::int64_t>(sides.size()), sides.data()},
                          const_cast<void*>(batch.data), &tensor),
                      Status::failure);
        return Owned<ov::Tensor>(tensor, runtime.api.ov_tensor_free);
    }

    Output output_of(const ov::Tensor* tensor) const {
        const Runtime& runtime = *compiled_->runtime;
        ov::Shape shape = {};
        int element = 0;
        void* data = nullptr;
        runtime.check(runtime.api.ov_tensor_get_element_type(tensor, &element), Status::failure);
        runtime.check(runtime.api.ov_tensor_data(tensor, &data), Status::failure);
        runtime.check(runtime.api.ov_tensor_get_shape(tensor, &shape), Status::failure);
        Output output;
        output.data = static_cast<const float*>(data);
        output.shape.assign(shape.sides, shape.sides + shape.rank);
        output.is_float32 = element == ov::float32;
        runtime.api.ov_shape_free(&shape);
        return output;
    }

    std::shared_ptr<Compiled> compiled_;
    std::array<std::optional<std::size_t>, 3> places_;
};

class OpenVino : public Backend {
public:
    explicit OpenVino(const std::string& place) : runtime_(std::make_shared<Runtime>(place)) {}

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
            const Owned<ov::Model> model = read(stage.files.at(stage.main), stage.files.at(weights));
            stage.files.clear();
            auto compiled = std::make_shared<Compiled>(runtime_, compile(model.get(), precision,
                                                                         threads));
            return std::make_unique<OpenVinoEngine>(std::move(compiled));
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

    Owned<ov::Model> read(const std::vector<std::byte>& graph,
                          const std::vector<std::byte>& weights) const {
        const ov::Api& api = runtime_->api;
        std::int64_t bytes = static_cast<std::int64_t>(weights.size());
        ov::Tensor* tensor = nullptr;
        runtime_->check(api.ov_tensor_create(ov::uint8, {1, &bytes}, &tensor));
        const Owned<ov::Tensor> owned(tensor, api.ov_tensor_free);  // the model shares it
        void* data = nullptr;
        runtime_->check(api.ov_tensor_data(tensor, &data));
        if (!weights.empty()) std::memcpy(data, weights.data(), weights.size());
        ov::Model* model = nullptr;
        runtime_->check(api.ov_core_read_model_from_memory_buffer(
            runtime_->core, reinterpret_cast<const char*>(graph.data()), graph.size(), tensor,
            &model));
        return Owned<ov::Model>(model, api.ov_model_free);
    }

    ov::CompiledModel* compile(const ov::Model* model, const std::string& precision,
                               unsigned threads) const {
        // What is computed in that is not quantised: of int8, bf16 where the processor has it.
        const bool half = precision == "bf16" || (precision == "int8" && runtime_->can("BF16"));
        const std::string count = std::to_string(threads);
        ov::CompiledModel* compiled = nullptr;
        // Without the last pair, which stands there for nothing then, the library takes every core.
        runtime_->check(runtime_->api.ov_core_compile_model(
            runtime_->core, model, "CPU", threads == 0 ? 4 : 6, &compiled,
            "INFERENCE_PRECISION_HINT", half ? "bf16" : "f32", "PERFORMANCE_HINT", "LATENCY",
            "INFERENCE_NUM_THREADS", count.c_str()));
        return compiled;
    }

    SharedRuntime runtime_;
};

}  // namespace

std::shared_ptr<Backend> make_openvino(const std::string& library) {
    return std::make_shared<OpenVino>(library);
}

}  // namespace cascade
