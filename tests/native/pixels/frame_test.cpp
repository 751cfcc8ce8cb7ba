// Raw frames: the formats, strides, and sizes that must be refused.

#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "error.h"
#include "pixels/pixels.h"

using namespace cascade;

namespace {

using Pixels = std::vector<std::uint8_t>;

Preprocess spec(int width, int height) {
    Preprocess spec;
    spec.width = width;
    spec.height = height;
    spec.resize = "bilinear";
    spec.crop = "none";
    spec.max_pixels = 1000;
    return spec;
}

// The frame at its own size.
Pixels loaded(FrameFormat format, int width, int height, const Pixels& first,
              const Pixels& second = {}, std::array<std::size_t, 2> strides = {}) {
    Frame frame;
    frame.format = format;
    frame.width = width;
    frame.height = height;
    frame.planes = {std::as_bytes(std::span(first)), std::as_bytes(std::span(second))};
    frame.strides = strides;
    Pixels out(std::size_t{3} * width * height);
    load_frame(frame, spec(width, height), out);
    return out;
}

std::string refusal(FrameFormat format, int width, int height, const Pixels& first,
                    std::size_t stride = 0) {
    Frame frame;
    frame.format = format;
    frame.width = width;
    frame.height = height;
    frame.planes = {std::as_bytes(std::span(first)), {}};
    frame.strides = {stride, 0};
    Pixels out(3);
    try {
        load_frame(frame, spec(1, 1), out);
    } catch (const Error& error) {
        EXPECT_EQ(error.status, Status::image);
        return error.what();
    }
    return "";
}

}  // namespace

TEST(Frame, ChannelsComeInTheFormatsOrder) {
    const Pixels red = {200, 100, 50};
    EXPECT_EQ(loaded(FrameFormat::rgb, 1, 1, {200, 100, 50}), red);
    EXPECT_EQ(loaded(FrameFormat::bgr, 1, 1, {50, 100, 200}), red);
    EXPECT_EQ(loaded(FrameFormat::rgba, 1, 1, {200, 100, 50, 255}), red);
    EXPECT_EQ(loaded(FrameFormat::bgra, 1, 1, {50, 100, 200, 255}), red);
    EXPECT_EQ(loaded(FrameFormat::grey, 1, 1, {7}), (Pixels{7, 7, 7}));
}

TEST(Frame, TransparencyIsLaidOnBlack) {
    EXPECT_EQ(loaded(FrameFormat::rgba, 1, 1, {200, 100, 50, 128}), (Pixels{100, 50, 25}));
    EXPECT_EQ(loaded(FrameFormat::bgra, 1, 1, {200, 100, 50, 0}), (Pixels{0, 0, 0}));
}

TEST(Frame, PaddingIsSkippedAndTheLastRowNeedsNone) {
    const Pixels padded = {1, 2, 3, 99, 99, 4, 5, 6};
    EXPECT_EQ(loaded(FrameFormat::rgb, 1, 2, padded, {}, {5, 0}), (Pixels{1, 2, 3, 4, 5, 6}));
    EXPECT_NE(refusal(FrameFormat::rgb, 1, 2, Pixels(7), 5), "");
}

TEST(Frame, Nv12HasBlackWhiteAndPrimariesOfLimitedRange) {
    const auto colour = [](std::uint8_t y, std::uint8_t cb, std::uint8_t cr) {
        return loaded(FrameFormat::nv12, 1, 1, {y}, {cb, cr});
    };
    EXPECT_EQ(colour(16, 128, 128), (Pixels{0, 0, 0}));
    EXPECT_EQ(colour(235, 128, 128), (Pixels{255, 255, 255}));
    EXPECT_EQ(colour(0, 128, 128), (Pixels{0, 0, 0}));
    const Pixels red = colour(81, 90, 240);  // BT.601's own figures
    EXPECT_GE(red[0], 253);
    EXPECT_LE(red[1], 2);
    EXPECT_LE(red[2], 2);
}

TEST(Frame, Nv12OfOddSizeUsesEachChromaSampleForItsPixels) {
    const Pixels grey(15, 128);
    Pixels chroma(2 * 2 * 3, 128);
    chroma[2 * 5 + 1] = 240;  // Cr of the last block: column 4, row 2
    const Pixels out = loaded(FrameFormat::nv12, 5, 3, grey, chroma);
    for (std::size_t i = 0; i < 15; ++i) {
        EXPECT_EQ(out[3 * i] > out[3 * i + 2], i == 14) << i;
    }
}

TEST(Frame, SizesThatDoNotFitAreRefused) {
    constexpr int most = std::numeric_limits<int>::max();
    constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
    EXPECT_NE(refusal(FrameFormat::rgb, 0, 1, Pixels(9)), "");
    EXPECT_NE(refusal(FrameFormat::rgb, 1, -1, Pixels(9)), "");
    EXPECT_NE(refusal(FrameFormat::rgba, most, most, Pixels(9)), "");
    EXPECT_NE(refusal(FrameFormat::rgb, 2, 2, Pixels(11)), "");
    EXPECT_NE(refusal(FrameFormat::rgb, 2, 2, Pixels(12), 5), "");
    EXPECT_NE(refusal(FrameFormat::rgb, 2, 2, Pixels(12), huge), "");
    EXPECT_NE(refusal(FrameFormat::grey, 1, 2, {}, huge), "");
    EXPECT_NE(refusal(FrameFormat::nv12, 2, 2, Pixels(4)), "");
    EXPECT_NE(refusal(static_cast<FrameFormat>(6), 2, 2, Pixels(12)), "");
    EXPECT_EQ(refusal(FrameFormat::rgb, 2, 2, Pixels(12)), "");
    EXPECT_EQ(refusal(FrameFormat::rgb, 40, 30, Pixels(3600)),
              "40 x 30 is over the limit of 1000 pixels; scale it down first");
}
