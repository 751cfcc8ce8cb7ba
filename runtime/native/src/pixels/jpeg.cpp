// JPEG by libjpeg-turbo. In: the bytes of a file. Out: rows of RGB; grey is repeated, CMYK and YCCK
// are taken as Adobe writes them (inverted). Spec: docs/bundle-format.md, "Preprocessing", 1 to 3.
//
// The library reports errors by longjmp. Every call into it therefore sits in a function of its own
// that has nothing to destroy and says by its result whether the call came back.

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include <jpeglib.h>

#include <jerror.h>

#include "pixels/colour.h"
#include "pixels/decoder.h"
#include "pixels/exif.h"

namespace cascade::pixels {
namespace {

constexpr int exif_marker = JPEG_APP0 + 1;
// Pictures have a dozen scans. Each costs a pass over the whole picture, so that a small hostile
// file of very many could keep a processor for hours.
constexpr int most_scans = 500;

struct Library {
    Library() = default;
    ~Library() { jpeg_destroy_decompress(&info); }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    jpeg_decompress_struct info{};
    jpeg_error_mgr errors{};
    jpeg_source_mgr source{};
    jpeg_progress_mgr progress{};
    std::jmp_buf back{};
    char message[JMSG_LENGTH_MAX]{};
};

Library& library_of(j_common_ptr info) { return *static_cast<Library*>(info->client_data); }

[[noreturn]] void on_error(j_common_ptr info) {
    Library& library = library_of(info);
    info->err->format_message(info, library.message);
    std::longjmp(library.back, 1);
}

// The whole file is in memory: asked for more, there is none, and the library stops where it is.
boolean no_more_bytes(j_decompress_ptr) { return FALSE; }

void skip_bytes(j_decompress_ptr info, long count) {
    jpeg_source_mgr& source = *info->src;
    const std::size_t skipped =
        std::min(source.bytes_in_buffer, static_cast<std::size_t>(std::max(count, 0L)));
    source.next_input_byte += skipped;
    source.bytes_in_buffer -= skipped;
}

void count_scans(j_common_ptr info) {
    if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > most_scans) {
        std::snprintf(library_of(info).message, JMSG_LENGTH_MAX, "more than %d scans", most_scans);
        std::longjmp(library_of(info).back, 1);
    }
}

enum class Outcome { done, out_of_data, failed };

Outcome read_header(Library& library, Bytes file) {
    library.info.err = jpeg_std_error(&library.errors);
    library.info.client_data = &library;
    library.errors.error_exit = on_error;
    library.errors.output_message = [](j_common_ptr) {};
    if (setjmp(library.back) != 0) {
        return Outcome::failed;
    }
    jpeg_create_decompress(&library.info);
    library.source.next_input_byte = reinterpret_cast<const JOCTET*>(file.data());
    library.source.bytes_in_buffer = file.size();
    library.source.init_source = [](j_decompress_ptr) {};
    library.source.fill_input_buffer = no_more_bytes;
    library.source.skip_input_data = skip_bytes;
    library.source.resync_to_restart = jpeg_resync_to_restart;
    library.source.term_source = [](j_decompress_ptr) {};
    library.info.src = &library.source;
    library.progress.progress_monitor = count_scans;
    library.info.progress = &library.progress;
    jpeg_save_markers(&library.info, exif_marker, 0xFFFF);
    return jpeg_read_header(&library.info, TRUE) == JPEG_HEADER_OK ? Outcome::done
                                                                   : Outcome::out_of_data;
}

Outcome start(Library& library, J_COLOR_SPACE space) {
    if (setjmp(library.back) != 0) {
        return Outcome::failed;
    }
    library.info.out_color_space = space;
    return jpeg_start_decompress(&library.info) ? Outcome::done : Outcome::out_of_data;
}

// As many rows as the library likes to give at once, at most `count`.
Outcome read_rows(Library& library, JSAMPARRAY rows, JDIMENSION count, JDIMENSION& got) {
    if (setjmp(library.back) != 0) {
        return Outcome::failed;
    }
    got = jpeg_read_scanlines(&library.info, rows, count);
    return got > 0 ? Outcome::done : Outcome::out_of_data;
}

// What follows the picture may be missing, but not broken.
Outcome finish(Library& library) {
    if (setjmp(library.back) != 0) {
        return Outcome::failed;
    }
    jpeg_finish_decompress(&library.info);
    return Outcome::done;
}

class Jpeg final : public Decoder {
public:
    explicit Jpeg(Bytes file) { check(read_header(library_, file)); }

    int width() const override { return reduced(library_.info.image_width); }
    int height() const override { return reduced(library_.info.image_height); }
    void reduce(int width, int height) override;
    int orientation() override;
    void decode(const RowSink& sink) override;

private:
    int reduced(JDIMENSION side) const {
        return (static_cast<int>(side) + times_ - 1) / times_;
    }
    void check(Outcome outcome) const;
    void give(const RowSink& sink, int y, const std::uint8_t* samples);

    Library library_;
    int times_ = 1;  // smaller than the file says
    std::vector<std::uint8_t> rgb_;
};

void Jpeg::check(Outcome outcome) const {
    if (outcome == Outcome::out_of_data) {
        refuse_truncated();
    }
    if (outcome == Outcome::failed) {
        refuse_damaged(library_.message);
    }
}

int Jpeg::orientation() {
    const auto begins = [](Bytes data, const char* with, std::size_t size) {
        return data.size() >= size && std::memcmp(data.data(), with, size) == 0;
    };
    constexpr char exif_name[] = "Exif\0";                          // and one more zero
    constexpr char xmp_name[] = "http://ns.adobe.com/xap/1.0/";  // and a zero
    std::vector<std::byte> exif;
    Bytes xmp;
    for (auto* marker = library_.info.marker_list; marker != nullptr; marker = marker->next) {
        const Bytes data = std::as_bytes(std::span(marker->data, marker->data_length));
        if (begins(data, exif_name, sizeof exif_name)) {
            const Bytes more = exif.empty() ? data : data.subspan(sizeof exif_name);
            exif.insert(exif.end(), more.begin(), more.end());
        } else if (begins(data, xmp_name, sizeof xmp_name)) {
            xmp = data.subspan(sizeof xmp_name);
        }
    }
    return upright_orientation(exif, xmp);
}

void Jpeg::reduce(int width, int height) {
    const int times = std::min(reduced(library_.info.image_width) / width,
                               reduced(library_.info.image_height) / height);
    library_.info.scale_num = 1;
    times_ = times >= 8 ? 8 : times >= 4 ? 4 : times >= 2 ? 2 : 1;
    library_.info.scale_denom = static_cast<unsigned>(times_);
}

void Jpeg::decode(const RowSink& sink) {
    const int components = library_.info.num_components;
    if (components != 1 && components != 3 && components != 4) {
        refuse_damaged("it has " + std::to_string(components) + " colour components");
    }
    check(start(library_, components == 1   ? JCS_GRAYSCALE
                          : components == 3 ? JCS_RGB
                                            : JCS_CMYK));
    constexpr std::size_t rows_at_once = 4;  // the most that upsampling gives
    const std::size_t row_size = std::size_t{library_.info.output_width} * components;
    std::vector<std::uint8_t> samples(row_size * rows_at_once);
    JSAMPROW rows[rows_at_once];
    for (std::size_t i = 0; i < rows_at_once; ++i) {
        rows[i] = samples.data() + i * row_size;
    }
    rgb_.resize(components == 3 ? 0 : std::size_t{library_.info.output_width} * 3);
    for (int y = 0; y < height();) {
        JDIMENSION got = 0;
        check(read_rows(library_, rows, rows_at_once, got));
        for (JDIMENSION i = 0; i < got; ++i) {
            give(sink, y++, rows[i]);
        }
    }
    check(finish(library_));
}

void Jpeg::give(const RowSink& sink, int y, const std::uint8_t* samples) {
    const int components = library_.info.num_components;
    if (components == 3) {
        sink(y, samples);
        return;
    }
    for (int x = 0; x < width(); ++x) {
        const std::uint8_t* in = samples + x * components;
        std::uint8_t* out = rgb_.data() + x * 3;
        for (int c = 0; c < 3; ++c) {  // Adobe stores 255 minus the ink
            out[c] = components == 1 ? in[0] : without_ink(255u - in[c], 255u - in[3]);
        }
    }
    sink(y, rgb_.data());
}

}  // namespace

std::unique_ptr<Decoder> open_jpeg(Bytes file) { return std::make_unique<Jpeg>(file); }

}  // namespace cascade::pixels
