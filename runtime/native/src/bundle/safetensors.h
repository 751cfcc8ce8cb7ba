#pragma once
// A strict reader of safetensors files. In: the bytes of one. Out: every tensor in it, as views
// into these bytes, or an Error. Specs: docs/bundle-format.md, "Golden vectors", and the format
// text of github.com/huggingface/safetensors.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace cascade {

struct Tensor {
    std::string dtype;  // "U8", "I8" or "F32", little-endian, row-major
    std::vector<std::uint64_t> shape;
    std::span<const std::byte> data;  // not aligned
};

using Tensors = std::map<std::string, Tensor>;

// `name` is the file's, for messages.
Tensors read_safetensors(std::span<const std::byte> data, const std::string& name);

}
