// Compiles where openvino_abi.h declares what the headers of OpenVINO's wheel do: each function with
// as many parameters, each of the same kind and size, and structures laid out alike.
#include <openvino/c/openvino.h>

#include <cstddef>
#include <type_traits>

#include "engines/openvino_abi.h"

namespace {

template <typename Ours, typename Theirs>
constexpr bool alike = std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> &&
                       std::is_class_v<Ours> == std::is_class_v<Theirs> &&
                       sizeof(Ours) == sizeof(Theirs);
template <>
constexpr bool alike<void, void> = true;

template <typename Ours, typename Theirs>
struct Same : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
    requires(sizeof...(A) == sizeof...(B))
struct Same<R (*)(A...), S (*)(B...)> : std::bool_constant<alike<R, S> && (alike<A, B> && ...)> {};
template <typename R, typename... A, typename S, typename... B>
    requires(sizeof...(A) == sizeof...(B))
struct Same<R (*)(A..., ...), S (*)(B..., ...)>
    : std::bool_constant<alike<R, S> && (alike<A, B> && ...)> {};

#define CHECK(name) \
    static_assert(Same<decltype(cascade::ov::Api::name), decltype(&::name)>::value, #name)
CHECK(ov_get_openvino_version);
CHECK(ov_version_free);
CHECK(ov_get_last_err_msg);
CHECK(ov_free);
CHECK(ov_core_create);
CHECK(ov_core_get_property);
CHECK(ov_core_read_model_from_memory_buffer);
CHECK(ov_core_compile_model);
CHECK(ov_model_free);
CHECK(ov_compiled_model_free);
CHECK(ov_compiled_model_get_property);
CHECK(ov_compiled_model_inputs_size);
CHECK(ov_compiled_model_outputs_size);
CHECK(ov_compiled_model_output_by_index);
CHECK(ov_compiled_model_create_infer_request);
CHECK(ov_port_get_any_name);
CHECK(ov_output_const_port_free);
CHECK(ov_infer_request_set_input_tensor_by_index);
CHECK(ov_infer_request_get_output_tensor_by_index);
CHECK(ov_infer_request_infer);
CHECK(ov_infer_request_start_async);
CHECK(ov_infer_request_wait);
CHECK(ov_infer_request_free);
CHECK(ov_tensor_create);
CHECK(ov_tensor_create_from_host_ptr);
CHECK(ov_tensor_get_shape);
CHECK(ov_tensor_get_element_type);
CHECK(ov_tensor_data);
CHECK(ov_tensor_free);
CHECK(ov_shape_free);

static_assert(cascade::ov::float32 == F32 && cascade::ov::uint8 == U8);
static_assert(sizeof(cascade::ov::Shape) == sizeof(ov_shape_t));
static_assert(offsetof(cascade::ov::Shape, rank) == offsetof(ov_shape_t, rank));
static_assert(offsetof(cascade::ov::Shape, sides) == offsetof(ov_shape_t, dims));
static_assert(sizeof(cascade::ov::Version) == sizeof(ov_version_t));
static_assert(offsetof(cascade::ov::Version, build) == offsetof(ov_version_t, buildNumber));

}  // namespace
