#pragma once
// Where a stored pixel comes to lie when the picture is turned upright. In: EXIF tag 0x0112 and the
// stored size. Out: the upright size, and the place of each stored row in it. EXIF 2.32, 0x0112.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cascade::pixels {

class UprightPicture {
public:
    UprightPicture(int stored_width, int stored_height, int orientation)
        : stored_width_(stored_width), across_(orientation >= 5),
          width_(across_ ? stored_height : stored_width),
          height_(across_ ? stored_width : stored_height), orientation_(orientation),
          rgb_(std::size_t{3} * width_ * height_) {}

    int width() const { return width_; }
    int height() const { return height_; }
    const std::uint8_t* row(int y) const { return rgb_.data() + std::size_t{3} * width_ * y; }

    // Row y as it was stored: a row or, from orientation 5 on, a column of the upright picture.
    void put(int y, const std::uint8_t* row) {
        const bool right_to_left = orientation_ == 2 || orientation_ == 3;
        const bool bottom_to_top = orientation_ == 7 || orientation_ == 8;
        const bool last_first = orientation_ == 3 || orientation_ == 4;
        const bool from_right = orientation_ == 6 || orientation_ == 7;
        int at_x = across_ ? (from_right ? width_ - 1 - y : y) : (right_to_left ? width_ - 1 : 0);
        int at_y = across_ ? (bottom_to_top ? height_ - 1 : 0) : (last_first ? height_ - 1 - y : y);
        const std::ptrdiff_t row_step = std::ptrdiff_t{3} * width_;
        const std::ptrdiff_t step = across_ ? (bottom_to_top ? -row_step : row_step)
                                            : (right_to_left ? -3 : 3);
        std::uint8_t* out = rgb_.data() + at_y * row_step + std::ptrdiff_t{3} * at_x;
        for (int x = 0; x < stored_width_; ++x) {
            std::uint8_t* pixel = out + x * step;
            pixel[0] = row[3 * x];
            pixel[1] = row[3 * x + 1];
            pixel[2] = row[3 * x + 2];
        }
    }

private:
    int stored_width_;
    bool across_;
    int width_, height_, orientation_;
    std::vector<std::uint8_t> rgb_;
};

}  // namespace cascade::pixels
