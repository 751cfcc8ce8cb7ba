#pragma once
// The samples of an 8-bit picture in one go. In: the chunks of a PNG file. Out: what libpng would
// read, row by row; nothing where that is not certain. Spec: PNG (third edition), 9 and 10.
//
// libpng unpacks a row at a time, and zlib is several times slower at outputs of less than 258
// bytes. Which damage refuses a file stays libpng's to say: here a picture is whole, or none.

#include <cstdint>
#include <vector>

#include "pixels/png_chunks.h"

namespace cascade::pixels {

// height rows of width * chunks.channels() bytes; empty for other depths, interlaced pictures,
// those of more than 8 MiB, packed or not, and whatever does not unpack to exactly its rows.
std::vector<std::uint8_t> samples_at_once(const PngChunks& chunks);

}  // namespace cascade::pixels
