#pragma once
// Which way up a picture is, by its metadata. In: an EXIF block and an XMP text, either may be
// empty. Out: EXIF tag 0x0112, 1 to 8; 1 (as stored) where there is none or it is damaged.
// Spec: docs/bundle-format.md, "Preprocessing", 2; EXIF 2.32; TIFF 6.0 for the block's structure.

#include <cstddef>
#include <span>

namespace cascade::pixels {

int upright_orientation(std::span<const std::byte> exif, std::span<const std::byte> xmp);

}  // namespace cascade::pixels
