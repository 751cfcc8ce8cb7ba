#pragma once
// What the decoders' fuzzers share. In: any bytes. Out: the picture or an Error, nothing else, and
// every sample of every row readable.

#include "bundle/manifest.h"
#include "pixels/pixels.h"
#include "try_to.h"

namespace cascade {

inline int try_to_decode(std::span<const std::uint8_t> file) {
    Preprocess spec;
    spec.height = 12;
    spec.width = 16;
    spec.resize = file.size() % 2 == 0 ? "bilinear" : "bicubic";
    spec.crop = file.size() % 3 == 0 ? "center" : "none";
    spec.jpeg = file.size() % 5 == 0 ? "reduced" : "full";
    spec.max_pixels = 1 << 16;
    std::uint8_t out[3 * 12 * 16];
    try_to([&] { load_image(std::as_bytes(file), spec, out); });
    return 0;
}

}  // namespace cascade
