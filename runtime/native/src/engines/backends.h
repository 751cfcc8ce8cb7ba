#pragma once
// How registry.cpp makes each backend: one function a file, from where its library lies.
#include <memory>
#include <string>

namespace cascade {

class Backend;

std::shared_ptr<Backend> make_onnxruntime(const std::string& library);
std::shared_ptr<Backend> make_openvino(const std::string& library);
std::shared_ptr<Backend> make_tensorrt(const std::string& library);

}  // namespace cascade
