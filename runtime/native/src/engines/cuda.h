#pragma once
// Whether there is an NVIDIA GPU, and which: asked of the driver, opened with dlopen.
#include <optional>
#include <string>

namespace cascade::cuda {

// Why there is no GPU to use here; nothing if there is one.
std::optional<std::string> missing();

// "sm87": the compute capability of the first GPU; only where none is missing.
std::string capability();

}  // namespace cascade::cuda
