// Raw frames whose sizes and strides may be anything, as cascade.h's structure. In: 28 bytes
// of description, then the planes. Out: pixels or an Error, and no byte read that is not in the
// planes: each lies in memory of exactly its size.

#include <cstring>
#include <vector>

#include "images.h"
#include "pixels/pixels.h"
#include "try_to.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace cascade;
    std::uint32_t words[7];
    if (size < sizeof words) {
        return 0;
    }
    std::memcpy(words, data, sizeof words);
    const auto planes = std::span(data, size).subspan(sizeof words);
    const std::size_t first = words[5] % (planes.size() + 1);
    const std::vector<std::uint8_t> one(planes.begin(), planes.begin() + first);
    const std::vector<std::uint8_t> two(planes.begin() + first, planes.end());

    cascade_image image = cascade_frame(static_cast<cascade_format>(words[0] % 7), words[1],
                                        words[2], one.data(), one.size());  // format 6 is none
    image.stride = words[3];
    if (words[6] & 2) {
        image.stride |= std::size_t{words[6]} << 32;
    }
    if (words[6] & 1) {
        image.chroma = two.data();
        image.chroma_size = two.size();
        image.chroma_stride = words[4];
    }
    Preprocess spec;
    spec.height = spec.width = 8;
    spec.resize = words[6] & 4 ? "bicubic" : "bilinear";
    spec.crop = words[6] & 8 ? "center" : "none";
    spec.max_pixels = 1 << 16;
    std::uint8_t out[3 * 8 * 8];
    try_to([&] { load_frame(std::get<Frame>(images_of(&image, 1).front()), spec, out); });
    return 0;
}
