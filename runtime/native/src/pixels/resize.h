#pragma once
// Crop and resize. In: rows of a w x h RGB picture, top to bottom. Out: width x height RGB bytes.
// Spec: docs/bundle-format.md, "Preprocessing", 4 and 5: a separable filter, each pass rounded to 8
// bits. Where the horizontal pass is the first, a row is filtered as it comes and the picture is
// never whole.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bundle/manifest.h"
#include "pixels/weigh.h"

namespace cascade::pixels {

struct Box {
    int left, top, right, bottom;
};

// The largest centred box of a picture with the shape of the target, in whole pixels.
Box center_box(int width, int height, int target_width, int target_height);

// One axis: which samples make up each output sample, and with which weights.
class Taps {
public:
    // `from`, `to`: the part of [0, samples) that the outputs divide among themselves.
    Taps(int samples, int from, int to, int outputs, bool bicubic);

    struct Window {
        int first, pairs;
        std::size_t weights;  // where they begin
    };
    const Window& window(int output) const { return windows_[output]; }
    const WeightPair* weights(const Window& window) const {
        return weights_.data() + window.weights;
    }
    int first() const { return windows_.front().first; }
    int end() const { return end_; }

private:
    std::vector<Window> windows_;
    std::vector<WeightPair> weights_;
    int end_ = 0;
};

class Resizer {
public:
    Resizer(int width, int height, const Preprocess& spec);
    void put(int y, const std::uint8_t* rgb);  // every row of the picture, in order
    void finish(std::span<std::uint8_t> out);  // after the last one

private:
    void filter_across(std::uint8_t* out);  // from row_

    int source_width_, width_, height_;  // the last two of the target
    Taps columns_, rows_;
    bool across_ = false, down_ = false;  // is there anything to do in this direction?
    bool down_first_ = false;
    std::vector<std::uint8_t> row_;   // of the source's width, and readable past its end
    std::vector<std::uint8_t> kept_;  // the rows that count: of the target's width, if they have
    std::size_t kept_row_ = 0;        // been filtered across; bytes of one
};

}  // namespace cascade::pixels
