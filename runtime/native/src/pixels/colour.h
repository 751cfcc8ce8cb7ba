#pragma once
// Other colours to 8-bit RGB, one pixel at a time. In and out: samples of 0..255.
// Spec: docs/bundle-format.md, "Preprocessing", 3. The divisions by 255 round to nearest, as the
// reference's do: by adding and shifting.

#include <cstdint>

namespace cascade::pixels {

// c * alpha / 255, rounded: the sample laid on black. The seven extra bits round as the reference's
// compositing does.
inline std::uint8_t on_black(std::uint32_t c, std::uint32_t alpha) {
    const std::uint32_t scaled = (c * alpha + 0x80) << 7;
    return static_cast<std::uint8_t>(((scaled >> 8) + scaled) >> 15);
}

// (255 - c) * (255 - k) / 255 of ink, written with k' = 255 - k as k' - c * k' / 255.
inline std::uint8_t without_ink(std::uint32_t c, std::uint32_t k) {
    const std::uint32_t light = 255 - k;
    const std::uint32_t product = c * light + 0x80;
    return static_cast<std::uint8_t>(light - (((product >> 8) + product) >> 8));
}

// 16-bit grey to 8 bits: floor(v / 257 + 1/2), in whole numbers.
inline std::uint8_t from_16_bit(std::uint32_t v) {
    return static_cast<std::uint8_t>((2 * v + 257) / 514);
}

}  // namespace cascade::pixels
