#pragma once
// OpenVINO opened with dlopen, a stage compiled by it, and one request at work. In: tensors that
// somebody else owns. Out: float32 outputs, valid while their `Run` is.
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "engines/engine.h"
#include "engines/library.h"
#include "engines/openvino_abi.h"
#include "error.h"

namespace cascade::ov {

inline LibrarySearch where(const std::string& place) {
    return {
        .place = place,
        .names = {"libopenvino_c.so"},
        .advice = "pip install openvino and name its folder openvino/libs, or the library, in "
                  "CASCADE_OPENVINO_LIBRARY or the option openvino_library",
    };
}

template <typename Object>
using Owned = std::unique_ptr<Object, void (*)(Object*)>;

inline std::string one_line(const std::string& text) {
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
        Version version = {};
        check(api.ov_get_openvino_version(&version));
        version_ = version.build;
        api.ov_version_free(&version);
        check(api.ov_core_create(&core));  // never freed, as the library
        capabilities_ = property("OPTIMIZATION_CAPABILITIES");
    }

    void check(Result result, Status kind = Status::target) const {
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

    Api api = {};
    Core* core = nullptr;

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
        CASCADE_BIND(ov_compiled_model_get_property);
        CASCADE_BIND(ov_compiled_model_inputs_size);
        CASCADE_BIND(ov_compiled_model_outputs_size);
        CASCADE_BIND(ov_compiled_model_output_by_index);
        CASCADE_BIND(ov_compiled_model_create_infer_request);
        CASCADE_BIND(ov_port_get_any_name);
        CASCADE_BIND(ov_output_const_port_free);
        CASCADE_BIND(ov_infer_request_set_input_tensor_by_index);
        CASCADE_BIND(ov_infer_request_get_output_tensor_by_index);
        CASCADE_BIND(ov_infer_request_infer);
        CASCADE_BIND(ov_infer_request_start_async);
        CASCADE_BIND(ov_infer_request_wait);
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
    Compiled(SharedRuntime runtime, CompiledModel* model)
        : runtime(std::move(runtime)), model_(model) {}
    Compiled(const Compiled&) = delete;
    Compiled& operator=(const Compiled&) = delete;
    ~Compiled() {
        for (Request* request : idle_) runtime->api.ov_infer_request_free(request);
        runtime->api.ov_compiled_model_free(model_);
    }

    Request* take() {
        {
            const std::lock_guard guard(lock_);
            if (!idle_.empty()) {
                Request* request = idle_.back();
                idle_.pop_back();
                return request;
            }
        }
        Request* request = nullptr;
        runtime->check(runtime->api.ov_compiled_model_create_infer_request(model_, &request),
                       Status::failure);
        return request;
    }

    void give_back(Request* request) {
        const std::lock_guard guard(lock_);
        idle_.push_back(request);
    }

    std::string property(const char* key) const {
        char* value = nullptr;
        runtime->check(runtime->api.ov_compiled_model_get_property(model_, key, &value));
        const std::string copied = value;
        runtime->api.ov_free(value);
        return copied;
    }

    CompiledModel* model() const { return model_; }
    const SharedRuntime runtime;

private:
    CompiledModel* model_;
    std::mutex lock_;
    std::vector<Request*> idle_;
};

inline constexpr std::array<const char*, 3> output_names = {"logits", "gate", "tokens"};
using Places = std::array<std::optional<std::size_t>, output_names.size()>;  // of those among all

// One request at work, from its start to the end of its outputs; given back when destroyed.
class Run {
public:
    Run(std::shared_ptr<Compiled> compiled, const Batch& batch)
        : compiled_(std::move(compiled)),
          api_(compiled_->runtime->api),
          input_(tensor_of(batch), api_.ov_tensor_free),
          request_(compiled_->take()) {}
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() {
        if (started_) api_.ov_infer_request_wait(request_);  // it reads the batch until then
        for (Tensor* tensor : outputs_) {
            if (tensor != nullptr) api_.ov_tensor_free(tensor);
        }
        if (finished_) {
            compiled_->give_back(request_);
        } else {
            api_.ov_infer_request_free(request_);  // its state is unknown
        }
    }

    void infer() {
        set_input();
        check(api_.ov_infer_request_infer(request_));
    }

    void start() {
        set_input();
        check(api_.ov_infer_request_start_async(request_));
        started_ = true;
    }

    void wait() {
        started_ = false;
        check(api_.ov_infer_request_wait(request_));
    }

    std::array<Output, output_names.size()> outputs(const Places& places) {
        std::array<Output, output_names.size()> found;
        for (std::size_t slot = 0; slot < places.size(); ++slot) {
            if (!places[slot].has_value()) continue;
            check(api_.ov_infer_request_get_output_tensor_by_index(request_, *places[slot],
                                                                   &outputs_[slot]));
            found[slot] = output_of(outputs_[slot]);
        }
        finished_ = true;
        return found;
    }

private:
    void check(Result result) const { compiled_->runtime->check(result, Status::failure); }

    void set_input() {
        check(api_.ov_infer_request_set_input_tensor_by_index(request_, 0, input_.get()));
    }

    Tensor* tensor_of(const Batch& batch) const {
        std::vector<std::int64_t> sides = batch.shape;
        Tensor* tensor = nullptr;
        check(api_.ov_tensor_create_from_host_ptr(
            batch.element == Element::uint8 ? uint8 : float32,
            {static_cast<std::int64_t>(sides.size()), sides.data()}, const_cast<void*>(batch.data),
            &tensor));
        return tensor;
    }

    Output output_of(const Tensor* tensor) const {
        Shape shape = {};
        int element = 0;
        void* data = nullptr;
        check(api_.ov_tensor_get_element_type(tensor, &element));
        check(api_.ov_tensor_data(tensor, &data));
        check(api_.ov_tensor_get_shape(tensor, &shape));
        Output output;
        output.data = static_cast<const float*>(data);
        output.shape.assign(shape.sides, shape.sides + shape.rank);
        output.is_float32 = element == float32;
        api_.ov_shape_free(&shape);
        return output;
    }

    std::shared_ptr<Compiled> compiled_;
    const Api& api_;
    Owned<Tensor> input_;
    Request* request_;
    std::array<Tensor*, output_names.size()> outputs_ = {};
    bool started_ = false, finished_ = false;
};

}  // namespace cascade::ov
