#include "pixels/png_at_once.h"

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include <libdeflate.h>

namespace cascade::pixels {
namespace {

constexpr std::size_t most = std::size_t{8} << 20;  // packed or not; 1080p of 3 samples has 6 MiB

// Whether the chunks' data, one zlib stream, are exactly `out.size()` bytes.
bool unpack(const std::vector<Bytes>& parts, std::vector<std::uint8_t>& out) {
    std::vector<std::byte> together;
    Bytes packed = parts.front();
    if (parts.size() > 1) {
        for (const Bytes part : parts) {
            together.insert(together.end(), part.begin(), part.end());
        }
        packed = together;
    }
    const std::unique_ptr<libdeflate_decompressor, void (*)(libdeflate_decompressor*)> unpacker(
        libdeflate_alloc_decompressor(), libdeflate_free_decompressor);
    if (!unpacker) {
        throw std::bad_alloc();
    }
    return libdeflate_zlib_decompress(unpacker.get(), packed.data(), packed.size(), out.data(),
                                      out.size(), nullptr) == LIBDEFLATE_SUCCESS;
}

// Of what lies left, above and above left, that which is nearest to left + above - corner.
int paeth(int left, int above, int corner) {
    const int down = above - corner, right = left - corner;
    const int to_left = std::abs(down), to_above = std::abs(right);
    const int to_corner = std::abs(down + right);
    const int other = to_above <= to_corner ? above : corner;
    return to_left <= to_above && to_left <= to_corner ? left : other;
}

enum Filter { none, sub, up, average, to_paeth, filters };

// A row as it was before its filter: bytes of `channels` samples a pixel, predicted by those left
// of and above them. Zeros are left of the first pixel.
template <std::size_t channels, Filter filter>
void unfilter(std::uint8_t* row, const std::uint8_t* above, std::size_t size) {
    std::array<int, channels> left{}, corner{};
    for (std::size_t x = 0; x < size; x += channels) {
        for (std::size_t c = 0; c < channels; ++c) {
            const int over = above[x + c];
            const int expected = filter == sub       ? left[c]
                                 : filter == up      ? over
                                 : filter == average ? (left[c] + over) / 2
                                                     : paeth(left[c], over, corner[c]);
            row[x + c] = static_cast<std::uint8_t>(row[x + c] + expected);
            left[c] = row[x + c];
            corner[c] = over;
        }
    }
}

template <std::size_t channels>
void undo(Filter filter, std::uint8_t* row, const std::uint8_t* above, std::size_t size) {
    switch (filter) {
        case sub: return unfilter<channels, sub>(row, above, size);
        case up: return unfilter<channels, up>(row, above, size);
        case average: return unfilter<channels, average>(row, above, size);
        case to_paeth: return unfilter<channels, to_paeth>(row, above, size);
        default: return;
    }
}

using Undo = void (*)(Filter, std::uint8_t*, const std::uint8_t*, std::size_t);
constexpr Undo by_channels[] = {undo<1>, undo<2>, undo<3>, undo<4>};

}  // namespace

std::vector<std::uint8_t> samples_at_once(const PngChunks& chunks) {
    const std::size_t row = std::size_t{chunks.width} * chunks.channels();
    if (chunks.depth != 8 || chunks.interlaced || chunks.data_cut || chunks.data.size() > most ||
        row >= most / chunks.height) {
        return {};
    }
    std::vector<std::uint8_t> samples((1 + row) * chunks.height);  // a filter before every row
    if (!unpack(chunks.data_parts(), samples)) {
        return {};
    }
    const std::vector<std::uint8_t> nothing(row);
    const std::uint8_t* above = nothing.data();
    for (std::size_t y = 0; y < chunks.height; ++y) {
        const int filter = samples[y * (1 + row)];
        if (filter >= filters) {
            return {};
        }
        std::uint8_t* to = samples.data() + y * row;  // closes the gaps, going down
        std::memmove(to, samples.data() + y * (1 + row) + 1, row);
        by_channels[chunks.channels() - 1](static_cast<Filter>(filter), to, above, row);
        above = to;
    }
    samples.resize(row * chunks.height);
    return samples;
}

}  // namespace cascade::pixels
