#pragma once
// The part of ONNX Runtime's C API that is used here, declared in our own words, since its wheel has
// no headers. The API is a table of functions that only ever grows at its end (onnxruntime.ai,
// "C API": a member's place never changes), so a function is its place and its signature.
// tests/native/core/engines_test.cpp holds both against the real library.
#include <cstddef>
#include <cstdint>

namespace cascade::ort {

struct Status;
struct Env;
struct SessionOptions;
struct Session;
struct RunOptions;
struct MemoryInfo;
struct Value;
struct Allocator;
struct TypeInfo;
struct TensorInfo;
struct TensorRtOptions;
struct CudaOptions;

inline constexpr std::uint32_t api_version = 20;  // of onnxruntime 1.20
inline constexpr int fatal = 4;                   // a level of its log
inline constexpr int float32 = 1, uint8 = 2;      // kinds of tensor elements
inline constexpr int arena_allocator = 1, default_memory = 0;

template <typename Function>
struct Slot {
    std::size_t index;
};

// Creating gives an object to release; what takes a `const char*` copies it.
inline constexpr Slot<const char*(const Status*)> get_error_message{2};
inline constexpr Slot<Status*(int level, const char* name, Env**)> create_env{3};
inline constexpr Slot<Status*(const Env*)> disable_telemetry{6};
inline constexpr Slot<Status*(const Env*, const void*, std::size_t, const SessionOptions*, Session**)>
    create_session_from_array{8};
inline constexpr Slot<Status*(Session*, const RunOptions*, const char* const* input_names,
                              const Value* const* inputs, std::size_t, const char* const* output_names,
                              std::size_t, Value** outputs)>
    run{9};
inline constexpr Slot<Status*(SessionOptions**)> create_session_options{10};
inline constexpr Slot<Status*(SessionOptions*, int)> set_log_severity{22};
inline constexpr Slot<Status*(SessionOptions*, int)> set_intra_op_threads{24};
inline constexpr Slot<Status*(SessionOptions*, int)> set_inter_op_threads{25};
inline constexpr Slot<Status*(const Session*, std::size_t*)> get_input_count{30};
inline constexpr Slot<Status*(const Session*, std::size_t*)> get_output_count{31};
inline constexpr Slot<Status*(const Session*, std::size_t, Allocator*, char**)> get_input_name{36};
inline constexpr Slot<Status*(const Session*, std::size_t, Allocator*, char**)> get_output_name{37};
inline constexpr Slot<Status*(const MemoryInfo*, void*, std::size_t bytes, const std::int64_t* shape,
                              std::size_t rank, int element, Value**)>
    create_tensor_with_data{49};
inline constexpr Slot<Status*(const Value*, int*)> is_tensor{50};
inline constexpr Slot<Status*(Value*, void**)> get_tensor_data{51};
inline constexpr Slot<Status*(const TensorInfo*, int*)> get_element_type{60};
inline constexpr Slot<Status*(const TensorInfo*, std::size_t*)> get_rank{61};
inline constexpr Slot<Status*(const TensorInfo*, std::int64_t*, std::size_t)> get_shape{62};
inline constexpr Slot<Status*(const Value*, TensorInfo**)> get_tensor_info{65};
inline constexpr Slot<Status*(int allocator, int memory, MemoryInfo**)> create_cpu_memory_info{69};
inline constexpr Slot<Status*(Allocator*, void*)> allocator_free{76};
inline constexpr Slot<Status*(Allocator**)> get_default_allocator{78};
inline constexpr Slot<void(Status*)> release_status{93};
inline constexpr Slot<void(MemoryInfo*)> release_memory_info{94};
inline constexpr Slot<void(Session*)> release_session{95};
inline constexpr Slot<void(Value*)> release_value{96};
inline constexpr Slot<void(TensorInfo*)> release_tensor_info{99};
inline constexpr Slot<void(SessionOptions*)> release_session_options{100};
inline constexpr Slot<Status*(char*** names, int* count)> get_available_providers{125};
inline constexpr Slot<Status*(char** names, int count)> release_available_providers{126};
inline constexpr Slot<Status*(SessionOptions*, const char* key, const char* value)>
    add_config_entry{130};
inline constexpr Slot<Status*(SessionOptions*, const TensorRtOptions*)> append_tensorrt{170};
inline constexpr Slot<Status*(TensorRtOptions**)> create_tensorrt_options{171};
inline constexpr Slot<Status*(TensorRtOptions*, const char* const* keys, const char* const* values,
                              std::size_t)>
    update_tensorrt_options{172};
inline constexpr Slot<void(TensorRtOptions*)> release_tensorrt_options{174};
inline constexpr Slot<Status*(SessionOptions*, const CudaOptions*)> append_cuda{204};
inline constexpr Slot<Status*(CudaOptions**)> create_cuda_options{205};
inline constexpr Slot<void(CudaOptions*)> release_cuda_options{208};
inline constexpr Slot<Status*(SessionOptions*, const char* const* names, char* const* buffers,
                              const std::size_t* sizes, std::size_t)>
    add_external_files_in_memory{279};

// What `OrtGetApiBase` gives: the table of an API version, null if the library has none so late.
struct ApiBase {
    const void* (*get_api)(std::uint32_t version);
    const char* (*get_version)();
};

class Api {
public:
    Api() = default;
    explicit Api(const void* table) : table_(static_cast<void (*const*)()>(table)) {}

    template <typename Function>
    Function* operator()(Slot<Function> slot) const {
        return reinterpret_cast<Function*>(table_[slot.index]);
    }

private:
    void (*const* table_)() = nullptr;
};

}  // namespace cascade::ort
