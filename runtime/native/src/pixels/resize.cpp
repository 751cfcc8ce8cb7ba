#include "pixels/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace cascade::pixels {
namespace {

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

// Cubic convolution with a = -1/2 (Keys, 1981).
double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// Rounded half away from zero, as the reference does.
std::int32_t fixed_point(double weight) {
    const double scaled = weight * (1 << weight_bits);
    return static_cast<std::int32_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
}

Box box_of(int width, int height, const Preprocess& spec) {
    return spec.crop == "center" ? center_box(width, height, spec.width, spec.height)
                                 : Box{0, 0, width, height};
}

}  // namespace

Box center_box(int width, int height, int target_width, int target_height) {
    const std::int64_t w = width, h = height;
    if (w * target_height > h * target_width) {
        const int inner = std::max(1, static_cast<int>(h * target_width / target_height));
        const int left = (width - inner) / 2;
        return {left, 0, left + inner, height};
    }
    const int inner = std::max(1, static_cast<int>(w * target_height / target_width));
    const int top = (height - inner) / 2;
    return {0, top, width, top + inner};
}

// The box is held in binary32, everything else in binary64, as the reference does.
Taps::Taps(int samples, int from, int to, int outputs, bool bicubic) {
    const auto begin = static_cast<float>(from);
    const double scale = static_cast<double>(static_cast<float>(to) - begin) / outputs;
    const double stretch = std::max(scale, 1.0);
    const double support = (bicubic ? 2.0 : 1.0) * stretch;
    const auto most = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
    if (static_cast<std::size_t>(outputs) > 0x7FFFFFFF / (most * sizeof(double))) {
        throw std::bad_alloc();  // the reference's own bound, far beyond honest pictures
    }
    std::vector<double> phi(most + 1);
    windows_.reserve(outputs);
    for (int i = 0; i < outputs; ++i) {
        const double centre = begin + (i + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int end = std::min(samples, static_cast<int>(centre + support + 0.5));
        double sum = 0.0;
        for (int j = first; j < end; ++j) {
            const double x = (j - centre + 0.5) * (1.0 / stretch);
            phi[j - first] = bicubic ? cubic(x) : triangle(x);
            sum += phi[j - first];
        }
        const int count = end - first;
        for (int j = 0; j < count; ++j) {
            phi[j] = sum != 0.0 ? phi[j] / sum : phi[j];
        }
        phi[count] = 0.0;  // of the last pair's second, where there is none
        windows_.push_back({first, (count + 1) / 2, weights_.size()});
        for (int j = 0; j < count; j += 2) {
            weights_.emplace_back(fixed_point(phi[j]), fixed_point(phi[j + 1]));
        }
        end_ = std::max(end_, end);
    }
}

Resizer::Resizer(int width, int height, const Preprocess& spec)
    : source_width_(width), width_(spec.width), height_(spec.height),
      columns_(width, box_of(width, height, spec).left, box_of(width, height, spec).right,
               spec.width, spec.resize == "bicubic"),
      rows_(height, box_of(width, height, spec).top, box_of(width, height, spec).bottom,
            spec.height, spec.resize == "bicubic") {
    const Box box = box_of(width, height, spec);
    const bool same = width == width_ && height == height_;
    across_ = !same && (width != width_ || box.left != 0 || box.right != width_);
    down_ = !same && (height != height_ || box.top != 0 || box.bottom != height_);
    // What Pillow does from its version 13 on: much is saved where the height shrinks the most.
    const std::int64_t rows_less = height - height_, columns_less = width - width_;
    down_first_ = rows_less > 0 && rows_less > 2 * columns_less;
    row_.resize(std::size_t{3} * width + readable_behind);
    kept_row_ = std::size_t{3} * (across_ && !down_first_ ? width_ : width);
    // A row more: an odd number of rows is filtered as pairs, of which the last has a weight of 0.
    kept_.resize(kept_row_ * (rows_.end() - rows_.first() + 1) + readable_behind);
}

void Resizer::filter_across(std::uint8_t* out) {
    for (int x = 0; x < width_; ++x, out += 3) {
        const Taps::Window& window = columns_.window(x);
        const std::uint8_t* in = row_.data() + std::size_t{3} * window.first;
        weigh_pixels(in, columns_.weights(window), window.pairs, out);
    }
}

void Resizer::put(int y, const std::uint8_t* rgb) {
    if (y < rows_.first() || y >= rows_.end()) {
        return;
    }
    std::uint8_t* kept = kept_.data() + kept_row_ * (y - rows_.first());
    if (across_ && !down_first_) {
        std::memcpy(row_.data(), rgb, std::size_t{3} * source_width_);
        filter_across(kept);
    } else {
        std::memcpy(kept, rgb, kept_row_);
    }
}

void Resizer::finish(std::span<std::uint8_t> out) {
    if (!down_) {
        std::copy_n(kept_.begin(), out.size(), out.begin());
        return;
    }
    const std::size_t size = std::size_t{3} * width_;
    const bool across_now = across_ && down_first_;
    for (int y = 0; y < height_; ++y) {
        const Taps::Window& window = rows_.window(y);
        const std::uint8_t* in = kept_.data() + kept_row_ * (window.first - rows_.first());
        std::uint8_t* row = out.data() + size * y;
        weigh_rows(in, kept_row_, rows_.weights(window), window.pairs, kept_row_,
                   across_now ? row_.data() : row);
        if (across_now) {
            filter_across(row);
        }
    }
}

}  // namespace cascade::pixels
