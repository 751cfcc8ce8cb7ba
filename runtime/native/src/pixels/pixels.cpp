// The way from a file to pixels: size, orientation, rows, crop and resize. See pixels.h.

#include "pixels/pixels.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "pixels/check.h"
#include "pixels/decoder.h"
#include "pixels/resize.h"
#include "pixels/turn.h"

namespace cascade {
namespace {

// 16-bit RGBA, uncompressed, is the largest honest file of a picture; metadata comes on top.
constexpr std::int64_t bytes_per_pixel = 8;
constexpr std::int64_t metadata_bytes = std::int64_t{64} << 20;

class File {
public:
    // Without waiting for a writer, should it have become a pipe since it was looked at.
    explicit File(const std::string& path)
        : handle_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
        if (handle_ < 0) {
            refuse();
        }
    }
    ~File() { ::close(handle_); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    [[noreturn]] static void refuse() {
        throw Error(Status::image, "cannot be read (" + std::string(std::strerror(errno)) + ")");
    }

    // Up to `size` bytes; fewer if the file has become shorter.
    std::vector<std::byte> read(std::size_t size) const {
        std::vector<std::byte> bytes(size);
        std::size_t done = 0;
        while (done < size) {
            const ssize_t got = ::read(handle_, bytes.data() + done, size - done);
            if (got < 0 && errno != EINTR) {
                refuse();
            }
            if (got == 0) {
                break;
            }
            done += static_cast<std::size_t>(std::max<ssize_t>(got, 0));
        }
        bytes.resize(done);
        return bytes;
    }

private:
    int handle_;
};

std::unique_ptr<pixels::Decoder> open_decoder(pixels::Bytes file) {
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    if (text.empty()) {
        throw Error(Status::image, "the file is empty (0 bytes)");
    }
    if (text.starts_with("\xFF\xD8\xFF")) {
        return pixels::open_jpeg(file);
    }
    if (text.starts_with("\x89PNG\r\n\x1A\n")) {
        return pixels::open_png(file);
    }
    if (text.starts_with("RIFF") && text.substr(0, 12).ends_with("WEBP")) {
        return pixels::open_webp(file);
    }
    throw Error(Status::image, "not an image of a known format (JPEG, PNG, WEBP)");
}

void decode_and_fit(pixels::Bytes file, const Preprocess& spec, std::span<std::uint8_t> out) {
    const std::unique_ptr<pixels::Decoder> decoder = open_decoder(file);
    pixels::check_size(decoder->width(), decoder->height(), spec.max_pixels);
    const int orientation = decoder->orientation();
    if (spec.jpeg == "reduced") {
        const bool on_its_side = orientation >= 5;
        decoder->reduce(on_its_side ? spec.height : spec.width,
                        on_its_side ? spec.width : spec.height);
    }
    if (orientation == 1) {
        pixels::Resizer resizer(decoder->width(), decoder->height(), spec);
        decoder->decode([&](int y, const std::uint8_t* rgb) { resizer.put(y, rgb); });
        resizer.finish(out);
        return;
    }
    pixels::UprightPicture picture(decoder->width(), decoder->height(), orientation);
    decoder->decode([&](int y, const std::uint8_t* rgb) { picture.put(y, rgb); });
    pixels::Resizer resizer(picture.width(), picture.height(), spec);
    for (int y = 0; y < picture.height(); ++y) {
        resizer.put(y, picture.row(y));
    }
    resizer.finish(out);
}

}  // namespace

std::vector<std::byte> read_image_file(const std::string& path, std::int64_t max_pixels) {
    struct stat status;
    if (path.find('\0') != path.npos) {
        throw Error(Status::image, "is no usable file name (it contains a zero byte)");
    }
    // Its kind is looked at before it is opened: opening a device may do anything.
    if (::stat(path.c_str(), &status) != 0) {
        File::refuse();
    }
    if (S_ISDIR(status.st_mode)) {
        throw Error(Status::image, "is a folder, expected an image file");
    }
    if (!S_ISREG(status.st_mode)) {
        throw Error(Status::image, "is a pipe, socket or device, expected an image file");
    }
    if ((status.st_size - metadata_bytes) / bytes_per_pixel > max_pixels) {
        throw Error(Status::image, std::to_string(status.st_size) +
                                       " bytes is more than a picture of " +
                                       std::to_string(max_pixels) +
                                       " pixels can have; is it an image?");
    }
    try {
        return File(path).read(static_cast<std::size_t>(status.st_size));
    } catch (const std::bad_alloc&) {
        throw Error(Status::image, "not enough memory to read it");
    }
}

void load_image(std::span<const std::byte> file, const Preprocess& spec,
                std::span<std::uint8_t> out) {
    pixels::check_output(out.size(), spec);
    try {
        decode_and_fit(file, spec, out);
    } catch (const std::bad_alloc&) {
        throw Error(Status::image, "not enough memory to decode it");
    }
}

}  // namespace cascade
