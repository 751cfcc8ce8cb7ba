#pragma once
// What every file format does: first the header, then, if it is wanted, the picture row by row.
//
// In: the bytes of a file, which must outlive the decoder. Out: rows of 8-bit RGB, top to bottom,
// as they are stored (not yet turned). Spec: docs/bundle-format.md, "Preprocessing", 1 and 3.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "error.h"

namespace cascade::pixels {

using Bytes = std::span<const std::byte>;
using RowSink = std::function<void(int y, const std::uint8_t* rgb)>;

class Decoder {
public:
    virtual ~Decoder() = default;
    virtual int width() const = 0;
    virtual int height() const = 0;
    // EXIF tag 0x0112 from 1 to 8; 1 where there is none, or none that makes sense.
    virtual int orientation() = 0;
    // Let the picture be 1/2, 1/4 or 1/8 of its size, rounded up, if a box of this size fits into
    // its own twice, four or eight times. To be called before `decode`; most formats cannot.
    virtual void reduce(int, int) {}
    // Every row once, or Error: what is missing is never filled up. To be called once.
    virtual void decode(const RowSink& sink) = 0;
};

// The header is read, no pixel is decoded, and nothing of the picture's size is allocated.
std::unique_ptr<Decoder> open_jpeg(Bytes file);
std::unique_ptr<Decoder> open_png(Bytes file);
std::unique_ptr<Decoder> open_webp(Bytes file);

[[noreturn]] inline void refuse_truncated() {
    throw Error(Status::image, "is truncated, its end is missing; copy it again");
}

[[noreturn]] inline void refuse_damaged(const std::string& what) {
    throw Error(Status::image, "cannot be decoded (" + what + ")");
}

}  // namespace cascade::pixels
