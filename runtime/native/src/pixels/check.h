#pragma once
// Sizes, before anything is allocated or decoded. In: what a header or a caller claims. Out: Error.
// Spec: docs/bundle-format.md, "Preprocessing", `max_pixels`.

#include <cstddef>
#include <cstdint>
#include <string>

#include "bundle/manifest.h"
#include "error.h"

namespace cascade::pixels {

inline void check_size(int width, int height, std::int64_t max_pixels) {
    const std::int64_t pixels = std::int64_t{width} * height;
    if (width < 1 || height < 1) {
        throw Error(Status::image, "has no pixels (" + std::to_string(width) + " x " +
                                       std::to_string(height) + ")");
    }
    if (pixels > max_pixels) {
        throw Error(Status::image, std::to_string(width) + " x " + std::to_string(height) +
                                       " is over the limit of " + std::to_string(max_pixels) +
                                       " pixels; scale it down first");
    }
}

// A caller's mistake, not an image's.
inline void check_output(std::size_t size, const Preprocess& spec) {
    if (spec.height < 1 || spec.width < 1 || size != std::size_t{3} * spec.height * spec.width) {
        throw Error(Status::usage, "the output has " + std::to_string(size) + " bytes, expected " +
                                       std::to_string(spec.height) + " x " +
                                       std::to_string(spec.width) + " x 3");
    }
}

}  // namespace cascade::pixels
