#pragma once
// From a file's bytes or a raw frame to the uint8 pixels that stage 0 takes.
//
// In: the bytes of a JPEG, PNG or WebP file, or a frame in the caller's memory. Out: height x width
// x 3 RGB bytes, as `Preprocess` states it, written to `out`. Spec: docs/bundle-format.md,
// "Preprocessing"; the reference that every pixel must equal is cascade_runtime/preprocess.py.
//
// All functions throw Error(Status::image, reason), and Status::usage if `out` has another size than
// `spec` says; the reason does not name the image, which the caller knows. They keep no state: any
// number of threads may call them at once.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bundle/manifest.h"

namespace cascade {

// A file of this many bytes or fewer is read; more cannot be a picture of max_pixels.
std::vector<std::byte> read_image_file(const std::string& path, std::int64_t max_pixels);

// Decode, turn upright, bring to RGB, crop and resize. `out` has height * width * 3 bytes.
void load_image(std::span<const std::byte> file, const Preprocess& spec,
                std::span<std::uint8_t> out);

// nv12 is BT.601 with the limited range (16..235, 16..240), as cameras and video decoders give it:
// a plane of luma, then one of interleaved Cb Cr at half the size in both directions, rounded up.
// Each chroma sample is used for its four pixels as it is. rgba and bgra are laid on black.
enum class FrameFormat { rgb, bgr, rgba, bgra, grey, nv12 };

// Pixels in the caller's memory, only read, and only during the call.
struct Frame {
    FrameFormat format = FrameFormat::rgb;
    int width = 0, height = 0;
    std::array<std::span<const std::byte>, 2> planes;  // the second only with nv12
    std::array<std::size_t, 2> strides{};              // bytes from row to row; 0: no padding
};

// As load_image, without a decoder and without EXIF.
void load_frame(const Frame& frame, const Preprocess& spec, std::span<std::uint8_t> out);

}  // namespace cascade
