#pragma once
// The first NVIDIA GPU that this process sees: whether there is one, and its memory and streams.
// Asked of the driver, opened with dlopen, so that building needs nothing of CUDA.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace cascade::cuda {

// Why there is no GPU to use here; nothing if there is one.
std::optional<std::string> missing();

// "sm87": its compute capability; only where none is missing, as all that follows.
std::string capability();

using Pointer = std::uint64_t;  // in the GPU's memory
using Stream = void*;

// Make the GPU current in the calling thread; before anything else in that thread.
void use();

Pointer allocate(std::size_t bytes);
void release(Pointer pointer) noexcept;
Stream make_stream();
void release(Stream stream) noexcept;

// Copies are finished after `wait`; until then the caller's memory stays as it is.
void upload(Pointer to, const void* from, std::size_t bytes, Stream stream);
void download(void* to, Pointer from, std::size_t bytes, Stream stream);
void wait(Stream stream);

}  // namespace cascade::cuda
