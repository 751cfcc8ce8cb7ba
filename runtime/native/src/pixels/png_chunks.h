#pragma once
// The chunks of a PNG file, read and checked before libpng sees anything of it. In: the bytes of a
// file. Out: what the picture is, and where its compressed data lie. Spec: PNG (third edition), 5
// and 11; docs/bundle-format.md, "Preprocessing", 1 and 2.
//
// Which damage refuses a file and which does not is as in the reference runtime: before the picture
// everything is checked, behind it only that no chunk is cut. Compressed text may unpack to 1 MiB a
// chunk and 64 MiB in all.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "pixels/decoder.h"

namespace cascade::pixels {

class PngChunks {
public:
    explicit PngChunks(Bytes file);  // up to the end of the picture's data

    std::uint32_t width = 0, height = 0;
    int depth = 0, colour = 0;  // as in IHDR
    bool interlaced = false;
    std::array<std::array<std::uint8_t, 3>, 256> palette{};  // black where it is not given
    std::array<std::uint8_t, 256> alphas{};                  // of palette entries
    std::optional<std::array<int, 3>> clear;  // the one transparent colour; grey: the first
    Bytes data;                               // the run of IDAT chunks, headers and all
    std::size_t last_data = 0;                // where in it the last chunk begins
    std::size_t last_size = 0;                // what that chunk holds, by its header
    bool data_cut = false;                    // the file ends within that chunk

    int orientation();  // reads on to the end of the file
    std::size_t channels() const;           // samples a pixel has in the file
    std::vector<Bytes> data_parts() const;  // what each IDAT chunk holds, as far as it is there

private:
    struct Chunk {
        std::string_view name;
        Bytes data;
        std::uint32_t claimed;  // length by its header; more than data where the file is cut
    };
    std::optional<Chunk> next();
    void check_sum(const Chunk& chunk);
    void collect_data();
    void take(const Chunk& chunk);
    void take_header(Bytes bytes);
    void take_palette(Bytes bytes);
    void take_transparency(Bytes bytes);
    void take_animation(const Chunk& chunk);
    void take_text(const Chunk& chunk);
    void remember(std::string_view key, std::vector<std::byte> value);

    Bytes file_;
    std::size_t position_ = 0;
    std::size_t text_bytes_ = 0;
    std::uint32_t frames_ = 0;
    bool animated_ = false, first_frame_seen_ = false;
    std::vector<std::byte> exif_, raw_exif_, xmp_;
    bool has_exif_ = false;
};

}  // namespace cascade::pixels
