// The resize by its specification: weights, crops, and the fast loops against slow ones.

#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include "pixels/resize.h"

using namespace cascade;
using namespace cascade::pixels;

namespace {

Preprocess spec(int width, int height, const char* resize = "bilinear", const char* crop = "none") {
    Preprocess spec;
    spec.width = width;
    spec.height = height;
    spec.resize = resize;
    spec.crop = crop;
    return spec;
}

std::vector<std::uint8_t> resized(const std::vector<std::uint8_t>& rgb, int width, int height,
                                  const Preprocess& spec) {
    Resizer resizer(width, height, spec);
    for (int y = 0; y < height; ++y) {
        resizer.put(y, rgb.data() + 3 * width * y);
    }
    std::vector<std::uint8_t> out(std::size_t{3} * spec.width * spec.height);
    resizer.finish(out);
    return out;
}

std::vector<std::uint8_t> noise(std::size_t size, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::uint8_t> bytes(size);
    for (auto& byte : bytes) {
        byte = static_cast<std::uint8_t>(random());
    }
    return bytes;
}

double phi(bool bicubic, double x) {
    x = std::abs(x);
    if (!bicubic) {
        return std::max(0.0, 1 - x);
    }
    return x < 1   ? 1.5 * x * x * x - 2.5 * x * x + 1
           : x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2
                   : 0.0;
}

// One axis of one channel, straight from the page.
std::vector<int> by_the_page(const std::vector<int>& in, int b0, int b1, int n, bool bicubic) {
    std::vector<int> out(n);
    const double scale = double(b1 - b0) / n, f = std::max(scale, 1.0);
    const double support = (bicubic ? 2 : 1) * f;
    for (int i = 0; i < n; ++i) {
        const double centre = b0 + (i + 0.5) * scale;
        const int begin = std::max(0, int(std::floor(centre - support + 0.5)));
        const int end = std::min(int(in.size()), int(std::floor(centre + support + 0.5)));
        double weights = 0;
        for (int j = begin; j < end; ++j) {
            weights += phi(bicubic, (j - centre + 0.5) / f);
        }
        long long sum = 1 << 21;
        for (int j = begin; j < end; ++j) {
            sum += in[j] * std::llround(phi(bicubic, (j - centre + 0.5) / f) / weights * (1 << 22));
        }
        out[i] = int(std::clamp(sum >> 22, 0LL, 255LL));
    }
    return out;
}

}  // namespace

TEST(Resize, EqualsThePageWithinOneLevel) {
    for (unsigned seed = 0; seed < 200; ++seed) {
        std::mt19937 random(seed);
        const int width = 1 + random() % 60, target = 1 + random() % 40;
        const bool bicubic = random() % 2 != 0;
        const auto row = noise(std::size_t{3} * width, seed);
        const char* filter = bicubic ? "bicubic" : "bilinear";
        const auto found = resized(row, width, 1, spec(target, 1, filter));
        for (int c = 0; c < 3; ++c) {
            std::vector<int> channel(width);
            for (int x = 0; x < width; ++x) {
                channel[x] = row[3 * x + c];
            }
            const auto expected = width == target
                                      ? channel
                                      : by_the_page(channel, 0, width, target, bicubic);
            for (int x = 0; x < target; ++x) {
                EXPECT_NEAR(found[3 * x + c], expected[x], 1) << width << " to " << target;
            }
        }
    }
}

TEST(Resize, TurnedPicturesGiveTurnedResultsWhereOneDirectionChanges) {
    const auto row = noise(3 * 31, 5);
    EXPECT_EQ(resized(row, 31, 1, spec(7, 1)), resized(row, 1, 31, spec(1, 7)));
}

TEST(Resize, ThePictureOfTheTargetsSizeIsUntouched) {
    const auto picture = noise(3 * 9 * 11, 1);
    EXPECT_EQ(resized(picture, 9, 11, spec(9, 11, "bicubic", "center")), picture);
}

TEST(Resize, CenterBoxHasTheTargetsShape) {
    const auto box = [](int w, int h, int tw, int th) {
        const Box b = center_box(w, h, tw, th);
        return std::array{b.left, b.top, b.right, b.bottom};
    };
    EXPECT_EQ(box(640, 480, 64, 64), (std::array{80, 0, 560, 480}));
    EXPECT_EQ(box(480, 641, 64, 64), (std::array{0, 80, 480, 560}));
    EXPECT_EQ(box(100, 1, 1, 65536), (std::array{49, 0, 50, 1}));
    EXPECT_EQ(box(65535, 65535, 65536, 65535), (std::array{0, 0, 65535, 65534}));
}

TEST(Resize, WeightsOfAConstantKeepIt) {
    const std::vector<std::uint8_t> white(3 * 1000 * 3, 255);
    for (const char* filter : {"bilinear", "bicubic"}) {
        for (const std::uint8_t sample : resized(white, 1000, 3, spec(17, 29, filter))) {
            EXPECT_EQ(sample, 255);
        }
    }
}
