// ONNX Runtime on the CPU, or on a GPU through its CUDA or TensorRT provider, opened with dlopen.
// In: the bytes of `stageN.onnx`, and of its external weight files where it has some. Out: an
// `Engine`. The options are those of cascade_runtime/engines/onnxruntime.py, so that outputs are
// the same bits.
#include <algorithm>
#include <functional>
#include <mutex>
#include <thread>

#include "bundle/onnx_external.h"
#include "engines/backends.h"
#include "engines/cuda.h"
#include "engines/engine.h"
#include "engines/library.h"
#include "engines/ort_abi.h"
#include "engines/processor.h"
#include "error.h"

namespace cascade {
namespace {

// A folder that cannot exist: external weights come from verified bytes and from nowhere else.
constexpr const char* nowhere = "/dev/null/nowhere";

const LibrarySearch where = {
    .place = {},
    .names = {"libonnxruntime.so", "libonnxruntime.so.1"},
    .advice = "pip install onnxruntime and name its folder onnxruntime/capi, or the library, in "
              "CASCADE_ONNXRUNTIME_LIBRARY or the option onnxruntime_library",
};

LibrarySearch at(const std::string& place) {
    LibrarySearch search = where;
    search.place = place;
    return search;
}

// The opened library: its table of functions and its environment.
class Runtime {
public:
    explicit Runtime(const std::string& place) : library_(at(place)) {
        if (!library_.found()) {
            error_ = library_.error();
            return;
        }
        const ort::ApiBase* (*get_base)() = nullptr;
        library_.bind(get_base, "OrtGetApiBase");
        version_ = get_base()->get_version();
        const void* table = get_base()->get_api(ort::api_version);
        if (table == nullptr) {
            error_ = "onnxruntime " + version_ + " is too old; install 1.20 or later";
            return;
        }
        api = ort::Api(table);
        check(api(ort::create_env)(ort::fatal, "cascade", &env));  // never released, as the library
        check(api(ort::disable_telemetry)(env));
        check(api(ort::create_cpu_memory_info)(ort::arena_allocator, ort::default_memory, &memory));
        check(api(ort::get_default_allocator)(&allocator));
    }

    // Turns a status into an error; its message is one line.
    void check(ort::Status* status, Status kind = Status::target) const {
        if (status == nullptr) return;
        std::string message = api(ort::get_error_message)(status);
        api(ort::release_status)(status);
        std::replace(message.begin(), message.end(), '\n', ' ');
        throw Error(kind, message);
    }

    std::vector<std::string> providers() const {
        char** names = nullptr;
        int count = 0;
        check(api(ort::get_available_providers)(&names, &count));
        std::vector<std::string> found(names, names + count);
        check(api(ort::release_available_providers)(names, count));
        return found;
    }

    std::string name(const ort::Session* session, bool input, std::size_t index) const {
        char* text = nullptr;
        check(api(input ? ort::get_input_name : ort::get_output_name)(session, index, allocator,
                                                                      &text));
        const std::string copied = text;
        check(api(ort::allocator_free)(allocator, text));
        return copied;
    }

    const std::string& error() const { return error_; }
    const std::string& version() const { return version_; }

    ort::Api api;
    ort::Env* env = nullptr;
    ort::MemoryInfo* memory = nullptr;
    ort::Allocator* allocator = nullptr;

private:
    Library library_;
    std::string error_, version_;
};

// The values of one run, released together.
struct RunValues {
    explicit RunValues(std::shared_ptr<Runtime> runtime) : runtime(std::move(runtime)) {}
    RunValues(const RunValues&) = delete;
    RunValues& operator=(const RunValues&) = delete;
    ~RunValues() {
        for (ort::Value* value : outputs) {
            if (value != nullptr) runtime->api(ort::release_value)(value);
        }
        if (input != nullptr) runtime->api(ort::release_value)(input);
    }

    std::shared_ptr<Runtime> runtime;
    ort::Value* input = nullptr;
    std::array<ort::Value*, 3> outputs = {};
};

constexpr std::array<const char*, 3> output_names = {"logits", "gate", "tokens"};

// One session; its `Run` may be called by several threads at once.
class OnnxRuntimeEngine : public Engine {
public:
    using Open = std::function<std::unique_ptr<OnnxRuntimeEngine>()>;

    // `one_thread`: opens what `side_by_side` gives, where there is such a form.
    OnnxRuntimeEngine(std::shared_ptr<Runtime> runtime, ort::Session* session, Open one_thread = {})
        : runtime_(std::move(runtime)), session_(session), open_one_thread_(std::move(one_thread)) {
        std::size_t inputs = 0, outputs = 0;
        runtime_->check(runtime_->api(ort::get_input_count)(session_, &inputs));
        runtime_->check(runtime_->api(ort::get_output_count)(session_, &outputs));
        if (inputs != 1) throw Error(Status::bundle, "an engine needs one input");
        input_ = runtime_->name(session_, true, 0);
        for (std::size_t index = 0; index < outputs; ++index) {
            const std::string name = runtime_->name(session_, false, index);
            for (std::size_t slot = 0; slot < output_names.size(); ++slot) {
                if (name == output_names[slot]) wanted_.push_back(slot);
            }
        }
    }
    ~OnnxRuntimeEngine() override { runtime_->api(ort::release_session)(session_); }

    Outputs run(const Batch& batch) override {
        auto values = std::make_shared<RunValues>(runtime_);
        values->input = tensor_of(batch);
        std::array<const char*, 3> names = {};
        for (std::size_t i = 0; i < wanted_.size(); ++i) names[i] = output_names[wanted_[i]];
        const char* input = input_.c_str();
        runtime_->check(
            runtime_->api(ort::run)(session_, nullptr, &input, &values->input, 1, names.data(),
                                    wanted_.size(), values->outputs.data()),
            Status::failure);
        Outputs outputs;
        Output* slots[] = {&outputs.logits, &outputs.gate, &outputs.tokens};
        for (std::size_t i = 0; i < wanted_.size(); ++i) {
            *slots[wanted_[i]] = output_of(values->outputs[i]);
        }
        outputs.owner = std::move(values);
        return outputs;
    }

    Engine* side_by_side() override {
        const std::lock_guard guard(lock_);
        if (open_one_thread_ != nullptr) {
            one_thread_ = open_one_thread_();
            open_one_thread_ = nullptr;  // and with it the bytes that it was made of
        }
        return one_thread_.get();
    }

private:
    ort::Value* tensor_of(const Batch& batch) const {
        const bool bytes = batch.element == Element::uint8;
        std::size_t size = bytes ? 1 : sizeof(float);
        for (const std::int64_t side : batch.shape) size *= static_cast<std::size_t>(side);
        ort::Value* value = nullptr;
        runtime_->check(runtime_->api(ort::create_tensor_with_data)(
                            runtime_->memory, const_cast<void*>(batch.data), size,
                            batch.shape.data(), batch.shape.size(),
                            bytes ? ort::uint8 : ort::float32, &value),
                        Status::failure);
        return value;
    }

    Output output_of(ort::Value* value) const {
        const ort::Api& api = runtime_->api;
        int is_tensor = 0, element = 0;
        runtime_->check(api(ort::is_tensor)(value, &is_tensor), Status::failure);
        if (is_tensor == 0) return {nullptr, {}, false};
        ort::TensorInfo* raw = nullptr;
        runtime_->check(api(ort::get_tensor_info)(value, &raw), Status::failure);
        const std::unique_ptr<ort::TensorInfo, void (*)(ort::TensorInfo*)> info(
            raw, api(ort::release_tensor_info));
        std::size_t rank = 0;
        runtime_->check(api(ort::get_element_type)(raw, &element), Status::failure);
        runtime_->check(api(ort::get_rank)(raw, &rank), Status::failure);
        Output output;
        output.is_float32 = element == ort::float32;
        output.shape.resize(rank);
        runtime_->check(api(ort::get_shape)(raw, output.shape.data(), rank), Status::failure);
        void* data = nullptr;
        runtime_->check(api(ort::get_tensor_data)(value, &data), Status::failure);
        output.data = static_cast<const float*>(data);
        return output;
    }

    std::shared_ptr<Runtime> runtime_;
    ort::Session* session_;
    std::string input_;
    std::vector<std::size_t> wanted_;  // of the engine's outputs, as places in `output_names`
    std::mutex lock_;                  // of what follows
    Open open_one_thread_;
    std::unique_ptr<OnnxRuntimeEngine> one_thread_;
};

using Options = std::unique_ptr<ort::SessionOptions, void (*)(ort::SessionOptions*)>;

class OnnxRuntime : public Backend {
public:
    explicit OnnxRuntime(const std::string& place) : runtime_(std::make_shared<Runtime>(place)) {}

    std::optional<std::string> unavailable(const std::string& precision,
                                           const std::string& device) override {
        const bool known = (device == "cpu" && (precision == "fp32" || precision == "int8")) ||
                           (device == "cuda" && precision == "fp32") ||
                           (device == "tensorrt" && precision == "fp16");
        if (!known) {
            return "onnxruntime runs fp32/cpu, int8/cpu, fp32/cuda and fp16/tensorrt, not " +
                   precision + "/" + device;
        }
        if (!runtime_->error().empty()) return runtime_->error();
        if (precision == "int8") return no_int8();
        return device == "cpu" ? std::nullopt : no_provider(device);
    }

    std::unique_ptr<Engine> load(StageFiles stage, const std::string& precision,
                                 const std::string& device, unsigned threads) override {
        (void)precision;  // it is in the file
        std::size_t bytes = 0;
        for (const auto& [path, data] : stage.files) bytes += data.size();
        const unsigned all = threads != 0 ? threads : std::thread::hardware_concurrency();
        OnnxRuntimeEngine::Open one_thread;
        ort::Session* const session = open(stage, device, threads);
        if (device == "cpu" && all > 1 && bytes <= divisible_limit) {
            one_thread = [this, stage = std::move(stage), device] {
                return std::make_unique<OnnxRuntimeEngine>(runtime_, open(stage, device, 1));
            };
        }
        return std::make_unique<OnnxRuntimeEngine>(runtime_, session, std::move(one_thread));
    }

    std::string version() override { return "onnxruntime " + runtime_->version(); }

private:
    ort::Session* open(const StageFiles& stage, const std::string& device, unsigned threads) {
        const std::vector<std::byte>& model = stage.files.at(stage.main);
        const std::string folder = stage.main.substr(0, stage.main.rfind('/') + 1);
        std::map<std::string, const std::vector<std::byte>*> extra;
        for (const auto& [path, data] : stage.files) {
            if (path == stage.main) continue;
            extra[path.starts_with(folder) ? path.substr(folder.size()) : path] = &data;
        }
        check_external(model, stage.main, extra);
        try {
            const Options options = make_options(device, threads);
            add_files(options.get(), extra);
            ort::Session* session = nullptr;
            runtime_->check(runtime_->api(ort::create_session_from_array)(
                runtime_->env, model.data(), model.size(), options.get(), &session));
            return session;
        } catch (const Error& error) {
            throw Error(error.status,
                        stage.main + ": " + version() + " cannot load it (" + error.what() + ")");
        }
    }

    // Why a GPU provider cannot be used.
    std::optional<std::string> no_provider(const std::string& device) const {
        if (const auto reason = cuda::missing()) return reason;
        const std::string name =
            device == "cuda" ? "CUDAExecutionProvider" : "TensorrtExecutionProvider";
        const std::vector<std::string> found = runtime_->providers();
        if (std::find(found.begin(), found.end(), name) != found.end()) return std::nullopt;
        return "this onnxruntime has no " + name + "; take the library of onnxruntime-gpu";
    }

    static void check_external(const std::vector<std::byte>& model, const std::string& main,
                               const std::map<std::string, const std::vector<std::byte>*>& extra) {
        std::set<std::string> allowed;
        for (const auto& [path, data] : extra) allowed.insert(path);
        check_external_data(model, main, allowed);
    }

    Options make_options(const std::string& device, unsigned threads) const {
        const ort::Api& api = runtime_->api;
        ort::SessionOptions* raw = nullptr;
        runtime_->check(api(ort::create_session_options)(&raw));
        Options options(raw, api(ort::release_session_options));
        // A failure is reported once, by the status.
        runtime_->check(api(ort::set_log_severity)(raw, ort::fatal));
        runtime_->check(api(ort::set_intra_op_threads)(raw, static_cast<int>(threads)));
        runtime_->check(api(ort::set_inter_op_threads)(raw, 1));
        // Idle worker threads of one stage must not take the cores from the next.
        runtime_->check(api(ort::add_config_entry)(raw, "session.force_spinning_stop", "1"));
        runtime_->check(api(ort::add_config_entry)(
            raw, "session.model_external_initializers_file_folder_path", nowhere));
        if (device == "tensorrt") append_tensorrt(raw);
        if (device != "cpu") append_cuda(raw);
        return options;
    }

    void append_tensorrt(ort::SessionOptions* options) const {
        const ort::Api& api = runtime_->api;
        ort::TensorRtOptions* raw = nullptr;
        runtime_->check(api(ort::create_tensorrt_options)(&raw));
        const std::unique_ptr<ort::TensorRtOptions, void (*)(ort::TensorRtOptions*)> settings(
            raw, api(ort::release_tensorrt_options));
        const char* key = "trt_fp16_enable";
        const char* value = "1";
        runtime_->check(api(ort::update_tensorrt_options)(raw, &key, &value, 1));
        runtime_->check(api(ort::append_tensorrt)(options, raw));
    }

    void append_cuda(ort::SessionOptions* options) const {
        const ort::Api& api = runtime_->api;
        ort::CudaOptions* raw = nullptr;
        runtime_->check(api(ort::create_cuda_options)(&raw));
        const std::unique_ptr<ort::CudaOptions, void (*)(ort::CudaOptions*)> settings(
            raw, api(ort::release_cuda_options));
        runtime_->check(api(ort::append_cuda)(options, raw));
    }

    void add_files(ort::SessionOptions* options,
                   const std::map<std::string, const std::vector<std::byte>*>& extra) const {
        if (extra.empty()) return;
        std::vector<const char*> names;
        std::vector<char*> buffers;  // the library copies them and writes to none
        std::vector<std::size_t> sizes;
        for (const auto& [path, data] : extra) {
            names.push_back(path.c_str());
            buffers.push_back(
                const_cast<char*>(reinterpret_cast<const char*>(data->data())));
            sizes.push_back(data->size());
        }
        runtime_->check(runtime_->api(ort::add_external_files_in_memory)(
            options, names.data(), buffers.data(), sizes.data(), names.size()));
    }

    // A second session, for callers side by side, is worth its memory up to here: 64 MiB a stage;
    // until it is made, the bytes that it will be made of are held.
    static constexpr std::size_t divisible_limit = std::size_t{64} << 20;
    std::shared_ptr<Runtime> runtime_;
};

}  // namespace

std::shared_ptr<Backend> make_onnxruntime(const std::string& library) {
    return std::make_shared<OnnxRuntime>(library);
}

}  // namespace cascade
