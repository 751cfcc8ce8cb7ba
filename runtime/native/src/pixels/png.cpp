// PNG, at once where that can be done and else by libpng. In: the bytes of a file. Out: rows of RGB;
// 16-bit colour keeps its upper byte, 16-bit grey is scaled, a palette is looked up, transparency is
// laid on black.
// Spec: docs/bundle-format.md, "Preprocessing", 1 to 3; PNG (third edition).
//
// libpng is given a header of our own and the run of IDAT chunks, nothing else: what the other
// chunks say is known from png_chunks.h. It is asked for samples only, so that a palette picture is
// called grey. It reports errors by longjmp: every call that can fail sits in a function of its own
// that has nothing to destroy and says by its result whether the call came back.

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include <png.h>
#include <zlib.h>

#include "pixels/colour.h"
#include "pixels/decoder.h"
#include "pixels/png_at_once.h"
#include "pixels/png_chunks.h"

namespace cascade::pixels {
namespace {

constexpr std::size_t header_size = 33;  // signature and IHDR

// What libpng reads: our header, the chunks before the last one, the last one's own header with the
// length that it really has, and its data. libpng goes on to the end of the compressed stream when
// it has the last row; what it then complains about is of no interest.
struct Input {
    std::array<std::byte, header_size> header;
    std::array<std::byte, 8> last_header;
    std::array<Bytes, 4> parts;
    std::size_t part = 0;
    std::uint32_t height = 0;
    bool last_needed = false;  // rows lie in the last chunk
    bool complete = false;     // an error came when all rows were there
    bool out_of_data = false;
    char message[128] = "";
};

bool is_complete(png_structp png, const Input& input) {
    return png_get_current_pass_number(png) > 6 || png_get_current_row_number(png) >= input.height;
}

void on_error(png_structp png, png_const_charp message) {
    auto& input = *static_cast<Input*>(png_get_error_ptr(png));
    std::snprintf(input.message, sizeof input.message, "%s", message);
    input.complete = is_complete(png, input);
    png_longjmp(png, 1);
}

void give_bytes(png_structp png, png_bytep out, std::size_t count) {
    auto& input = *static_cast<Input*>(png_get_io_ptr(png));
    while (count > 0) {
        while (input.part < input.parts.size() && input.parts[input.part].empty()) {
            ++input.part;
        }
        if (input.part == input.parts.size()) {
            input.out_of_data = true;
            png_error(png, "no more data");
        }
        input.last_needed |= input.part >= 2 && !is_complete(png, input);
        Bytes& from = input.parts[input.part];
        const std::size_t size = std::min(count, from.size());
        std::memcpy(out, from.data(), size);
        from = from.subspan(size);
        out += size;
        count -= size;
    }
}

bool start(png_structp png, png_infop info, bool palette, bool upper_byte) {
    if (setjmp(png_jmpbuf(png)) != 0) {
        return false;
    }
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);  // as the reference
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);     // the caller has looked
    png_read_info(png, info);
    if (palette) {
        png_set_packing(png);
    } else {
        png_set_expand_gray_1_2_4_to_8(png);
    }
    if (upper_byte) {
        png_set_strip_16(png);
    }
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    return true;
}

bool read_row(png_structp png, png_bytep row) {
    if (setjmp(png_jmpbuf(png)) != 0) {
        return false;
    }
    png_read_row(png, row, nullptr);
    return true;
}

bool read_all(png_structp png, png_bytepp rows) {
    if (setjmp(png_jmpbuf(png)) != 0) {
        return false;
    }
    png_read_image(png, rows);
    return true;
}

class Png final : public Decoder {
public:
    explicit Png(Bytes file) : chunks_(file) {}
    ~Png() override { png_destroy_read_struct(&png_, &info_, nullptr); }
    Png(const Png&) = delete;
    Png& operator=(const Png&) = delete;

    // What does not fit in an int is beyond every limit, and of the same use as the largest.
    int width() const override { return static_cast<int>(std::min(chunks_.width, 0x7FFFFFFFu)); }
    int height() const override { return static_cast<int>(std::min(chunks_.height, 0x7FFFFFFFu)); }
    int orientation() override { return chunks_.orientation(); }
    void decode(const RowSink& sink) override;

private:
    void open();
    void check(bool came_back) const;
    void decode_by_rows(const RowSink& sink);
    const std::uint8_t* to_rgb(const std::uint8_t* samples);

    PngChunks chunks_;
    Input input_;
    png_structp png_ = nullptr;
    png_infop info_ = nullptr;
    std::vector<std::uint8_t> rgb_;
};

void put(std::byte* out, std::uint32_t value) {
    for (int i = 0; i < 4; ++i) {
        out[i] = static_cast<std::byte>(value >> (24 - 8 * i));
    }
}

// The file's own header but for the palette and for fields of which only one value makes sense.
std::array<std::byte, header_size> header_for(const PngChunks& chunks) {
    constexpr unsigned char opening[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n',
                                         0,    0,   0,   13,  'I',  'H',  'D',  'R'};
    std::array<std::byte, header_size> header{};
    std::memcpy(header.data(), opening, sizeof opening);
    put(&header[16], chunks.width);
    put(&header[20], chunks.height);
    header[24] = static_cast<std::byte>(chunks.depth);
    header[25] = static_cast<std::byte>(chunks.colour == 3 ? 0 : chunks.colour);
    header[28] = static_cast<std::byte>(chunks.interlaced);
    const auto* summed = reinterpret_cast<const Bytef*>(&header[12]);
    put(&header[29], static_cast<std::uint32_t>(crc32(0, summed, 17)));
    return header;
}

void Png::check(bool came_back) const {
    if (came_back || input_.complete) {
        return;
    }
    if (input_.out_of_data) {
        refuse_truncated();
    }
    refuse_damaged(input_.message);
}

void Png::open() {
    const Bytes last = chunks_.data.subspan(chunks_.last_data);
    const std::size_t size = chunks_.data_cut ? last.size() - 8 : chunks_.last_size;
    input_.height = chunks_.height;
    input_.header = header_for(chunks_);
    std::copy_n(last.begin(), 8, input_.last_header.begin());
    put(input_.last_header.data(), static_cast<std::uint32_t>(size));
    input_.parts = {Bytes(input_.header), chunks_.data.first(chunks_.last_data),
                    Bytes(input_.last_header), last.subspan(8)};
    const auto hush = [](png_structp, png_const_charp) {};
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &input_, on_error, hush);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (info_ == nullptr) {
        throw std::bad_alloc();
    }
    png_set_read_fn(png_, &input_, give_bytes);
    check(start(png_, info_, chunks_.colour == 3, chunks_.colour != 0));
}

void Png::decode(const RowSink& sink) {
    rgb_.resize(std::size_t{3} * chunks_.width);
    const std::vector<std::uint8_t> samples = samples_at_once(chunks_);
    if (samples.empty()) {
        decode_by_rows(sink);
        return;
    }
    const std::size_t row_size = samples.size() / chunks_.height;
    for (int y = 0; y < height(); ++y) {
        sink(y, to_rgb(samples.data() + y * row_size));
    }
}

void Png::decode_by_rows(const RowSink& sink) {
    open();
    const std::size_t row_size = png_get_rowbytes(png_, info_);
    const std::size_t rows_kept = chunks_.interlaced ? chunks_.height : 1;
    std::vector<std::uint8_t> samples(row_size * rows_kept);
    if (chunks_.interlaced) {
        std::vector<png_bytep> rows(rows_kept);
        for (std::size_t y = 0; y < rows_kept; ++y) {
            rows[y] = samples.data() + y * row_size;
        }
        check(read_all(png_, rows.data()));
    }
    for (int y = 0; y < height(); ++y) {
        if (!chunks_.interlaced) {
            check(read_row(png_, samples.data()));
        }
        sink(y, to_rgb(samples.data() + (chunks_.interlaced ? y * row_size : 0)));
    }
    if (chunks_.data_cut && !input_.last_needed) {
        refuse_truncated();
    }
}

const std::uint8_t* Png::to_rgb(const std::uint8_t* in) {
    const std::size_t samples = chunks_.channels();
    const bool wide = chunks_.colour == 0 && chunks_.depth == 16;
    if (samples == 3 && !chunks_.clear) {
        return in;
    }
    std::uint8_t* out = rgb_.data();
    for (std::uint32_t x = 0; x < chunks_.width; ++x, in += wide ? 2 : samples, out += 3) {
        const bool colour = samples >= 3;
        for (std::size_t c = 0; c < 3; ++c) {
            out[c] = in[colour ? c : 0];
        }
        if (wide) {
            std::fill(out, out + 3, from_16_bit(in[0] * 256u + in[1]));
        } else if (chunks_.colour == 3) {
            for (std::size_t c = 0; c < 3; ++c) {
                out[c] = on_black(chunks_.palette[in[0]][c], chunks_.alphas[in[0]]);
            }
        } else if (samples == 2 || samples == 4) {
            for (std::size_t c = 0; c < 3; ++c) {
                out[c] = on_black(out[c], in[samples - 1]);
            }
        } else if (chunks_.clear && (*chunks_.clear)[0] == out[0] &&
                   (!colour || ((*chunks_.clear)[1] == out[1] && (*chunks_.clear)[2] == out[2]))) {
            std::fill(out, out + 3, std::uint8_t{0});
        }
    }
    return rgb_.data();
}

}  // namespace

std::unique_ptr<Decoder> open_png(Bytes file) { return std::make_unique<Png>(file); }

}  // namespace cascade::pixels
