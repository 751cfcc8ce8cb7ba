#pragma once
// The part of OpenVINO's C API that is used here, declared in our own words, so that building needs
// no headers of it; tests/native/core/openvino_abi_check.cpp holds it against those of the wheel.
// API: docs.openvino.ai, "OpenVINO Runtime C API".
#include <cstddef>
#include <cstdint>

namespace cascade::ov {

struct Core;
struct Model;
struct CompiledModel;
struct Request;
struct Tensor;
struct Port;

using Result = int;  // 0: it worked
inline constexpr int float32 = 4, uint8 = 16;

struct Shape {
    std::int64_t rank;
    std::int64_t* sides;
};

struct Version {
    const char* build;
    const char* description;
};

// The members are named as the library's functions are.
struct Api {
    Result (*ov_get_openvino_version)(Version*);
    void (*ov_version_free)(Version*);
    const char* (*ov_get_last_err_msg)();
    void (*ov_free)(const char*);
    Result (*ov_core_create)(Core**);
    Result (*ov_core_get_property)(const Core*, const char* device, const char* key, char** value);
    Result (*ov_core_read_model_from_memory_buffer)(const Core*, const char* text, std::size_t,
                                                    const Tensor* weights, Model**);
    Result (*ov_core_compile_model)(const Core*, const Model*, const char* device,
                                    std::size_t arguments, CompiledModel**, ...);
    void (*ov_model_free)(Model*);
    void (*ov_compiled_model_free)(CompiledModel*);
    Result (*ov_compiled_model_get_property)(const CompiledModel*, const char*, char**);
    Result (*ov_compiled_model_inputs_size)(const CompiledModel*, std::size_t*);
    Result (*ov_compiled_model_outputs_size)(const CompiledModel*, std::size_t*);
    Result (*ov_compiled_model_output_by_index)(const CompiledModel*, std::size_t, Port**);
    Result (*ov_compiled_model_create_infer_request)(const CompiledModel*, Request**);
    Result (*ov_port_get_any_name)(const Port*, char**);
    void (*ov_output_const_port_free)(Port*);
    Result (*ov_infer_request_set_input_tensor_by_index)(Request*, std::size_t, const Tensor*);
    Result (*ov_infer_request_get_output_tensor_by_index)(const Request*, std::size_t, Tensor**);
    Result (*ov_infer_request_infer)(Request*);
    Result (*ov_infer_request_start_async)(Request*);
    Result (*ov_infer_request_wait)(Request*);
    void (*ov_infer_request_free)(Request*);
    Result (*ov_tensor_create)(int element, Shape, Tensor**);
    Result (*ov_tensor_create_from_host_ptr)(int element, Shape, void*, Tensor**);
    Result (*ov_tensor_get_shape)(const Tensor*, Shape*);
    Result (*ov_tensor_get_element_type)(const Tensor*, int*);
    Result (*ov_tensor_data)(const Tensor*, void**);
    void (*ov_tensor_free)(Tensor*);
    Result (*ov_shape_free)(Shape*);
};

}  // namespace cascade::ov
