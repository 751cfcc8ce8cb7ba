// Raw frames to pixels: in the caller's memory, with strides, no decoder. See pixels.h.
// Spec: docs/bundle-format.md, "Preprocessing", 3 to 5; ITU-R BT.601-7 for nv12.

#include <algorithm>
#include <cstring>
#include <vector>

#include "pixels/check.h"
#include "pixels/colour.h"
#include "pixels/pixels.h"
#include "pixels/resize.h"

namespace cascade {
namespace {

using pixels::on_black;

struct Layout {
    int samples;           // bytes a pixel of the first plane
    int red, green, blue;  // where in them
    int alpha;             // -1: none
};

Layout layout_of(FrameFormat format) {
    switch (format) {
    case FrameFormat::rgb: return {3, 0, 1, 2, -1};
    case FrameFormat::bgr: return {3, 2, 1, 0, -1};
    case FrameFormat::rgba: return {4, 0, 1, 2, 3};
    case FrameFormat::bgra: return {4, 2, 1, 0, 3};
    case FrameFormat::grey:
    case FrameFormat::nv12: return {1, 0, 0, 0, -1};
    }
    throw Error(Status::image, "frame format " + std::to_string(static_cast<int>(format)) +
                                   " is unknown");
}

// Rows of a plane that has been checked to hold them.
class Rows {
public:
    Rows(std::span<const std::byte> plane, std::size_t stride, std::size_t row, std::size_t rows,
         const char* name)
        : data_(reinterpret_cast<const std::uint8_t*>(plane.data())),
          stride_(stride == 0 ? row : stride) {
        if (stride_ < row) {
            throw Error(Status::image, std::string(name) + ": stride is " +
                                           std::to_string(stride_) + ", a row has " +
                                           std::to_string(row) + " bytes");
        }
        // The last row need not be padded. Divided, not multiplied: nothing can overflow.
        if (data_ == nullptr || plane.size() < row || (plane.size() - row) / stride_ < rows - 1) {
            throw Error(Status::image, std::string(name) + ": " + std::to_string(plane.size()) +
                                           " bytes are fewer than " + std::to_string(rows) +
                                           " rows of " + std::to_string(stride_) + " need");
        }
    }
    const std::uint8_t* operator[](std::size_t y) const { return data_ + y * stride_; }

private:
    const std::uint8_t* data_;
    std::size_t stride_;
};

void packed_row(const std::uint8_t* in, const Layout& layout, int width, std::uint8_t* out) {
    for (int x = 0; x < width; ++x, in += layout.samples, out += 3) {
        const std::uint8_t rgb[] = {in[layout.red], in[layout.green], in[layout.blue]};
        const std::uint32_t alpha = layout.alpha < 0 ? 255u : in[layout.alpha];
        std::transform(rgb, rgb + 3, out, [&](std::uint32_t c) { return on_black(c, alpha); });
    }
}

// Limited range to full, in 8 fractional bits: 298/256 = 255/219, and the others accordingly.
void nv12_row(const std::uint8_t* luma, const std::uint8_t* chroma, int width, std::uint8_t* out) {
    const auto limited = [](int v) {
        return static_cast<std::uint8_t>(std::clamp(v >> 8, 0, 255));
    };
    for (int x = 0; x < width; ++x, out += 3) {
        const int y = 298 * (luma[x] - 16) + 128;
        const int cb = chroma[x / 2 * 2] - 128, cr = chroma[x / 2 * 2 + 1] - 128;
        out[0] = limited(y + 409 * cr);
        out[1] = limited(y - 100 * cb - 208 * cr);
        out[2] = limited(y + 516 * cb);
    }
}

void convert_and_fit(const Frame& frame, const Preprocess& spec, std::span<std::uint8_t> out) {
    const Layout layout = layout_of(frame.format);
    pixels::check_size(frame.width, frame.height, spec.max_pixels);
    const auto width = static_cast<std::size_t>(frame.width);
    const auto height = static_cast<std::size_t>(frame.height);
    const bool nv12 = frame.format == FrameFormat::nv12;
    const Rows rows(frame.planes[0], frame.strides[0], width * layout.samples, height, "plane 0");
    const Rows chroma = nv12 ? Rows(frame.planes[1], frame.strides[1], (width + 1) / 2 * 2,
                                    (height + 1) / 2, "plane 1")
                             : rows;
    const auto convert = [&](std::size_t y, std::uint8_t* rgb) {
        if (nv12) {
            nv12_row(rows[y], chroma[y / 2], frame.width, rgb);
        } else if (frame.format == FrameFormat::rgb) {
            std::memcpy(rgb, rows[y], 3 * width);
        } else {
            packed_row(rows[y], layout, frame.width, rgb);
        }
    };
    if (frame.width == spec.width && frame.height == spec.height) {
        for (std::size_t y = 0; y < height; ++y) convert(y, out.data() + 3 * width * y);
        return;
    }
    pixels::Resizer resizer(frame.width, frame.height, spec);
    const bool as_it_is = frame.format == FrameFormat::rgb;
    std::vector<std::uint8_t> rgb(as_it_is ? 0 : 3 * width);
    for (std::size_t y = 0; y < height; ++y) {
        if (!as_it_is) convert(y, rgb.data());
        resizer.put(static_cast<int>(y), as_it_is ? rows[y] : rgb.data());
    }
    resizer.finish(out);
}

}  // namespace

void load_frame(const Frame& frame, const Preprocess& spec, std::span<std::uint8_t> out) {
    pixels::check_output(out.size(), spec);
    try {
        convert_and_fit(frame, spec, out);
    } catch (const std::bad_alloc&) {
        throw Error(Status::image, "not enough memory to convert it");
    }
}

}  // namespace cascade
