// What is unpacked at once, and what is left to libpng. Pixels are compared with the reference's in
// tests/runtime/test_native_pixels.py.

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <zlib.h>

#include "pixels/png_at_once.h"

namespace cascade::pixels {
namespace {

using Samples = std::vector<std::uint8_t>;

std::string big_endian(std::uint32_t value) {
    std::string bytes(4, '\0');
    for (int i = 0; i < 4; ++i) {
        bytes[i] = static_cast<char>(value >> (24 - 8 * i));
    }
    return bytes;
}

std::string chunk(const std::string& name, const std::string& data) {
    const std::string summed = name + data;
    const auto* bytes = reinterpret_cast<const Bytef*>(summed.data());
    return big_endian(data.size()) + summed + big_endian(crc32_z(0, bytes, summed.size()));
}

std::string packed(const Samples& rows) {
    uLongf size = compressBound(rows.size());
    std::string out(size, '\0');
    compress(reinterpret_cast<Bytef*>(out.data()), &size, rows.data(), rows.size());
    out.resize(size);
    return out;
}

struct Picture {
    std::uint32_t width, height;
    char depth = 8, colour = 0, interlaced = 0;
};

// The signature, the header and `data` in chunks of `piece` bytes; no end, which nobody asks for.
std::string png(const Picture& picture, const std::string& data, std::size_t piece = 1000) {
    const std::string kind{picture.depth, picture.colour, 0, 0, picture.interlaced};
    std::string file = "\x89PNG\r\n\x1a\n";
    file += chunk("IHDR", big_endian(picture.width) + big_endian(picture.height) + kind);
    for (std::size_t at = 0; at < data.size(); at += piece) {
        file += chunk("IDAT", data.substr(at, piece));
    }
    return file;
}

Samples at_once(const std::string& file) {
    const auto* bytes = reinterpret_cast<const std::byte*>(file.data());
    return samples_at_once(PngChunks({bytes, file.size()}));
}

// Two rows of three pixels, by hand: PNG (third edition), 9.2.
const Samples rows = {1, 10, 5, 250, 4, 1, 2, 3};
const Samples pixels = {10, 15, 9, 11, 17, 12};

TEST(PngAtOnce, FiltersAreUndone) {
    const auto picture = [](int first, int second) {
        Samples filtered = rows;
        filtered[0] = static_cast<std::uint8_t>(first);
        filtered[4] = static_cast<std::uint8_t>(second);
        return at_once(png({3, 2}, packed(filtered)));
    };
    EXPECT_EQ(picture(1, 4), pixels);
    EXPECT_EQ(picture(0, 0), (Samples{10, 5, 250, 1, 2, 3}));
    EXPECT_EQ(picture(2, 2), (Samples{10, 5, 250, 11, 7, 253}));
    EXPECT_EQ(picture(3, 3), (Samples{10, 10, 255, 6, 10, 135}));
    EXPECT_EQ(picture(4, 1), (Samples{10, 15, 9, 1, 3, 6}));
}

TEST(PngAtOnce, ChunksAreOneStream) {
    for (const std::size_t piece : {1, 2, 3, 7}) {
        EXPECT_EQ(at_once(png({3, 2}, packed(rows), piece)), pixels);
    }
    const std::string behind = chunk("IDAT", "") + chunk("IDAT", "more");
    EXPECT_EQ(at_once(png({3, 2}, packed(rows)) + behind), pixels);
}

TEST(PngAtOnce, PixelsHaveTheSamplesOfTheirColour) {
    for (const auto& [colour, channels] : {std::pair{0, 1}, {2, 3}, {3, 1}, {4, 2}, {6, 4}}) {
        Samples row(1 + channels * 2, 7);
        row[0] = 1;
        Samples expected(channels * 2, 7);
        std::fill(expected.begin() + channels, expected.end(), std::uint8_t{14});
        EXPECT_EQ(at_once(png({2, 1, 8, static_cast<char>(colour)}, packed(row))), expected);
    }
}

TEST(PngAtOnce, EverythingElseIsLeftToLibpng) {
    const std::string good = packed(rows);
    std::string bad_sum = good, wrong_header = good;
    bad_sum.back() ^= 1;
    wrong_header[0] ^= 1;
    Samples unknown = rows, longer = rows;
    unknown[4] = 5;
    longer.push_back(0);
    const Samples shorter(rows.begin(), rows.end() - 1);
    for (const std::string& stream :
         {bad_sum, wrong_header, packed(unknown), packed(longer), packed(shorter),
          good.substr(0, good.size() - 1), std::string("x")}) {
        EXPECT_TRUE(at_once(png({3, 2}, stream)).empty());
    }
    const std::string file = png({3, 2}, good);
    EXPECT_TRUE(at_once(file.substr(0, file.size() - 5)).empty());  // the last chunk is cut
    EXPECT_TRUE(at_once(png({3, 2, 8, 0, 1}, good)).empty());
    EXPECT_TRUE(at_once(png({1, 2, 16}, packed({0, 1, 2, 0, 3, 4}))).empty());
    EXPECT_TRUE(at_once(png({8, 2, 1}, packed({0, 1, 0, 2}))).empty());
}

TEST(PngAtOnce, LargePicturesAreReadByRows) {
    const std::uint32_t side = 2896;  // with the filters, the most of 8 MiB that is a square
    const Samples grey((side + 1) * (side - 1)), larger((side + 1) * (side + 1));
    EXPECT_EQ(at_once(png({side, side - 1}, packed(grey), 1 << 20)).size(), side * (side - 1));
    EXPECT_TRUE(at_once(png({side, side + 1}, packed(larger), 1 << 20)).empty());
    const std::string behind(std::size_t{9} << 20, 'x');
    EXPECT_TRUE(at_once(png({3, 2}, packed(rows) + behind, 1 << 20)).empty());
    EXPECT_TRUE(at_once(png({0x7FFFFFFF, 0x7FFFFFFF, 8, 6}, packed(rows))).empty());
}

}  // namespace
}  // namespace cascade::pixels
