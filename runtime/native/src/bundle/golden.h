#pragma once
// The golden vectors: images with the outputs and decisions that every reader must give. In: the
// bytes of `golden.safetensors`. Out: `Golden`, whose shapes fit together. What is done with them
// is the session's. Spec: docs/bundle-format.md, "Golden vectors".

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "manifest.h"

namespace cascade {

// What one target must give of the images: S stages, G images.
struct GoldenTarget {
    std::size_t stages = 0;
    std::vector<float> logits;       // [S, G, 2]
    std::vector<float> gate;         // [S, G]
    std::vector<std::int8_t> label;  // [G], -1 deferred
    std::vector<std::int8_t> stage;  // [G]
};

struct Golden {
    std::size_t count = 0;             // G
    std::vector<std::uint8_t> images;  // [G, height, width, 3]
    std::map<std::string, GoldenTarget> targets;
};

// Throws Error with Status::bundle where a tensor is missing or has another shape.
Golden load_golden(std::span<const std::byte> data, const Preprocess& preprocess);

}
