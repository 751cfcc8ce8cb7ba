// Raw frames whose sizes and strides may be anything. In: 20 bytes of description, then the planes.
// Out: pixels or an Error, and no byte read that is not in the planes.

#include <cstring>

#include "decode.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::uint32_t words[5];
    if (size < sizeof words) {
        return 0;
    }
    std::memcpy(words, data, sizeof words);
    const auto bytes = std::as_bytes(std::span(data, size)).subspan(sizeof words);
    cascade::Frame frame;
    frame.format = static_cast<cascade::FrameFormat>(words[0] % 7);  // the last is none
    frame.width = static_cast<int>(words[1]);
    frame.height = static_cast<int>(words[2]);
    frame.strides = {words[3], words[4]};
    const std::size_t first = words[0] % (bytes.size() + 1);
    frame.planes = {bytes.first(first), bytes.subspan(first)};
    cascade::Preprocess spec;
    spec.height = spec.width = 8;
    spec.resize = "bilinear";
    spec.crop = "none";
    spec.max_pixels = 1 << 16;
    std::uint8_t out[3 * 8 * 8];
    try {
        cascade::load_frame(frame, spec, out);
    } catch (const cascade::Error&) {
    }
    return 0;
}
