#include "pixels/png_chunks.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string>

#include <zlib.h>

#include "pixels/exif.h"

namespace cascade::pixels {
namespace {

constexpr std::string_view signature{"\x89PNG\r\n\x1a\n", 8};
constexpr std::size_t most_unpacked = std::size_t{1} << 20;
constexpr std::size_t most_text = std::size_t{64} << 20;

std::string_view text(Bytes bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::byte> copy(Bytes bytes) { return {bytes.begin(), bytes.end()}; }

std::uint32_t big_endian(Bytes bytes, std::size_t at, std::size_t count = 4) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < count; ++i) {
        value = value << 8 | std::to_integer<std::uint32_t>(bytes[at + i]);
    }
    return value;
}

// What a zlib stream holds, nothing if it is broken. Refused: more than `most_unpacked` bytes.
std::vector<std::byte> unpacked(Bytes packed) {
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) {
        throw std::bad_alloc();
    }
    std::vector<std::byte> out;
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data()));
    stream.avail_in = static_cast<uInt>(packed.size());
    int status = Z_OK;
    while (status == Z_OK && stream.avail_out == 0 && out.size() < most_unpacked) {
        const std::size_t before = out.size();
        out.resize(std::max<std::size_t>(4096, 2 * before));
        stream.next_out = reinterpret_cast<Bytef*>(out.data() + before);
        stream.avail_out = static_cast<uInt>(out.size() - before);
        status = inflate(&stream, Z_SYNC_FLUSH);
    }
    const bool more = status == Z_OK && stream.avail_out == 0 && stream.avail_in > 0;
    out.resize(status < 0 && status != Z_BUF_ERROR ? 0 : out.size() - stream.avail_out);
    inflateEnd(&stream);
    if (more) {
        refuse_damaged("its metadata unpack to more than 1 MiB");
    }
    return out;
}

// The part up to the next zero byte, which is taken off `bytes` with it; all, if there is none.
Bytes up_to_zero(Bytes& bytes, bool& found) {
    const auto zero = std::find(bytes.begin(), bytes.end(), std::byte{0});
    found = zero != bytes.end();
    const Bytes part(bytes.begin(), zero);
    bytes = Bytes(found ? zero + 1 : zero, bytes.end());
    return part;
}

// ImageMagick's "Raw profile type": three lines of description, then hexadecimal digits.
std::vector<std::byte> from_hexadecimal(std::string_view lines) {
    for (int i = 0; i < 3; ++i) {
        lines.remove_prefix(std::min(lines.size(), lines.find('\n')));
        lines.remove_prefix(lines.empty() ? 0 : 1);
    }
    std::vector<std::byte> bytes;
    std::string digits;
    for (const char c : lines) {
        if (std::isxdigit(static_cast<unsigned char>(c)) != 0) {
            digits.push_back(c);
        } else if (std::isspace(static_cast<unsigned char>(c)) == 0) {
            return {};
        }
        if (digits.size() == 2) {
            bytes.push_back(static_cast<std::byte>(std::stoi(digits, nullptr, 16)));
            digits.clear();
        }
    }
    return digits.empty() ? bytes : std::vector<std::byte>{};
}

std::size_t least_size(std::string_view name) {
    constexpr std::pair<std::string_view, std::size_t> sizes[] = {
        {"IHDR", 13}, {"gAMA", 4}, {"cHRM", 32}, {"sRGB", 1},
        {"pHYs", 9},  {"acTL", 8}, {"fcTL", 26}, {"iCCP", 2}};
    const auto* found = std::find_if(std::begin(sizes), std::end(sizes),
                                     [&](const auto& entry) { return entry.first == name; });
    return found == std::end(sizes) ? 0 : found->second;
}

}  // namespace

PngChunks::PngChunks(Bytes file) : file_(file), position_(signature.size()) {
    alphas.fill(255);
    for (;;) {
        const std::size_t start = position_;
        const std::optional<Chunk> chunk = next();
        if (!chunk && file_.size() - start < 8) {
            refuse_truncated();
        }
        if (!chunk) {
            refuse_damaged("a chunk has no name");
        }
        if (chunk->name == "IDAT") {
            position_ = start;
            break;
        }
        if (chunk->name == "IEND" || chunk->name == "fdAT") {
            refuse_damaged("its picture data are missing");
        }
        if (chunk->data.size() < chunk->claimed) {
            refuse_truncated();
        }
        take(*chunk);
        check_sum(*chunk);
    }
    if (width == 0 || height == 0 || depth == 0) {
        refuse_damaged("its header is missing or names an unknown kind of picture");
    }
    animated_ = frames_ > (first_frame_seen_ ? 1u : 0u);  // the picture may be a frame of its own
    collect_data();
}

// The chunk at the position, which moves behind its data; none where there is no more.
std::optional<PngChunks::Chunk> PngChunks::next() {
    const Bytes rest = file_.subspan(std::min(position_, file_.size()));
    if (rest.size() < 8) {
        return std::nullopt;
    }
    const std::uint32_t claimed = big_endian(rest, 0);
    const std::string_view name = text(rest.subspan(4, 4));
    const auto letter = [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
    };
    if (!std::all_of(name.begin(), name.end(), letter)) {
        return std::nullopt;
    }
    const Bytes data = rest.subspan(8, std::min<std::size_t>(claimed, rest.size() - 8));
    position_ += 8 + data.size();
    return Chunk{name, data, claimed};
}

void PngChunks::check_sum(const Chunk& chunk) {
    if (file_.size() - position_ < 4) {
        refuse_truncated();
    }
    const auto* from_name = reinterpret_cast<const Bytef*>(chunk.name.data());
    const uLong sum = crc32_z(0, from_name, 4 + chunk.data.size());
    if (sum != big_endian(file_, position_)) {
        refuse_damaged("bad checksum in '" + std::string(chunk.name) + "'");
    }
    position_ += 4;
}

void PngChunks::collect_data() {
    const std::size_t begin = position_;
    for (;;) {
        const std::size_t start = position_;
        const Bytes rest = file_.subspan(start);
        if (rest.size() < 8 || text(rest.subspan(4, 4)) != "IDAT") {
            break;
        }
        last_data = start - begin;
        last_size = big_endian(rest, 0);
        data_cut = rest.size() - 8 < last_size;
        position_ = start + std::min(rest.size(), last_size + 12);
    }
    data = file_.subspan(begin, position_ - begin);
}

std::size_t PngChunks::channels() const {
    const std::size_t of_colour = (colour & 2) != 0 && colour != 3 ? 3 : 1;
    return of_colour + ((colour & 4) != 0 ? 1 : 0);
}

std::vector<Bytes> PngChunks::data_parts() const {
    std::vector<Bytes> parts;
    for (Bytes rest = data; rest.size() >= 8;) {
        const std::size_t size = std::min<std::size_t>(big_endian(rest, 0), rest.size() - 8);
        parts.push_back(rest.subspan(8, size));
        rest = rest.subspan(std::min(rest.size(), size + 12));
    }
    return parts;
}

int PngChunks::orientation() {
    for (std::optional<Chunk> chunk = next(); chunk && chunk->name != "IEND"; chunk = next()) {
        if (chunk->name == "fcTL" && animated_) {
            break;
        }
        if (chunk->data.size() < chunk->claimed) {
            refuse_truncated();
        }
        take(*chunk);
        position_ += 4;
    }
    if (!has_exif_ && !raw_exif_.empty()) {
        exif_ = from_hexadecimal(text(raw_exif_));
    }
    return upright_orientation(exif_, xmp_);
}

void PngChunks::take(const Chunk& chunk) {
    if (chunk.data.size() < least_size(chunk.name)) {
        refuse_damaged("its " + std::string(chunk.name) + " chunk is too short");
    }
    if (data.empty() && chunk.name == "IHDR") {
        take_header(chunk.data);
    } else if (data.empty() && chunk.name == "PLTE") {
        take_palette(chunk.data);
    } else if (data.empty() && (chunk.name == "acTL" || chunk.name == "fcTL")) {
        take_animation(chunk);
    } else if (chunk.name == "tRNS") {
        take_transparency(chunk.data);
    } else if (chunk.name == "eXIf") {
        exif_ = copy(chunk.data);
        has_exif_ = true;
    } else if (chunk.name == "tEXt" || chunk.name == "zTXt" || chunk.name == "iTXt" ||
               chunk.name == "iCCP") {
        take_text(chunk);
    }
}

void PngChunks::take_header(Bytes bytes) {
    width = big_endian(bytes, 0);
    height = big_endian(bytes, 4);
    depth = std::to_integer<int>(bytes[8]);
    colour = std::to_integer<int>(bytes[9]);
    interlaced = bytes[12] != std::byte{0};
    if (bytes[11] != std::byte{0}) {
        refuse_damaged("unknown filter method");
    }
    const bool small = depth == 1 || depth == 2 || depth == 4;
    const bool whole = depth == 8 || (depth == 16 && colour != 3);
    const bool known = colour == 0 || colour == 2 || colour == 3 || colour == 4 || colour == 6;
    if (!known || !(whole || (small && (colour == 0 || colour == 3)))) {
        depth = 0;
    }
}

void PngChunks::take_palette(Bytes bytes) {
    if (colour == 3 && bytes.size() >= 3 * (palette.size() + 1)) {
        refuse_damaged("its palette has more than 256 colours");
    }
    palette = {};
    for (std::size_t i = 0; colour == 3 && i + 2 < bytes.size(); i += 3) {
        for (std::size_t c = 0; c < 3; ++c) {
            palette[i / 3][c] = std::to_integer<std::uint8_t>(bytes[i + c]);
        }
    }
}

// For a palette one alpha an entry; for grey and RGB the one colour that is transparent. The
// reference compares this colour with the samples after they have become 8 bits, which for grey of
// less than 8 bits and for colour of 16 is not what the PNG specification says.
void PngChunks::take_transparency(Bytes bytes) {
    if (colour == 3) {
        if (bytes.size() > alphas.size()) {
            refuse_damaged("it has more than 256 transparencies");
        }
        alphas.fill(255);
        std::transform(bytes.begin(), bytes.end(), alphas.begin(),
                       [](std::byte b) { return std::to_integer<std::uint8_t>(b); });
        return;
    }
    if (colour != 0 && colour != 2) {
        return;
    }
    const std::size_t samples = colour == 2 ? 3 : 1;
    if (bytes.size() < 2 * samples) {
        refuse_damaged("its tRNS chunk is too short");
    }
    clear.emplace();
    for (std::size_t i = 0; i < samples; ++i) {
        (*clear)[i] = static_cast<int>(big_endian(bytes, 2 * i + 1, 1));
    }
    if (depth == 1) {
        (*clear)[0] = big_endian(bytes, 0, 2) != 0 ? 255 : 0;
    }
}

void PngChunks::take_animation(const Chunk& chunk) {
    if (chunk.name == "acTL") {
        frames_ = big_endian(chunk.data, 0);
        return;
    }
    const auto field = [&](std::size_t at) { return big_endian(chunk.data, at); };
    if (field(0) != 0 || field(4) != width || field(8) != height || field(12) != 0 ||
        field(16) != 0) {
        refuse_damaged("its first frame is not the whole picture");
    }
    first_frame_seen_ = true;
}

void PngChunks::take_text(const Chunk& chunk) {
    Bytes rest = chunk.data;
    bool has_value = false;
    const std::string_view key = text(up_to_zero(rest, has_value));
    if (chunk.name == "tEXt") {
        remember(key, copy(rest));
        return;
    }
    if (chunk.name == "iTXt") {
        if (!has_value || rest.size() < 2) {
            return;
        }
        const bool packed = rest[0] != std::byte{0}, known = rest[1] == std::byte{0};
        rest = rest.subspan(2);
        bool has_language = false, has_translation = false;
        up_to_zero(rest, has_language);
        up_to_zero(rest, has_translation);
        if (has_language && has_translation && (known || !packed)) {
            remember(key, packed ? unpacked(rest) : copy(rest));
        }
        return;
    }
    if (!rest.empty() && rest[0] != std::byte{0}) {
        refuse_damaged("unknown compression in " + std::string(chunk.name));
    }
    std::vector<std::byte> value = unpacked(rest.empty() ? rest : rest.subspan(1));
    if (chunk.name == "zTXt") {
        remember(key, std::move(value));
    }
}

void PngChunks::remember(std::string_view key, std::vector<std::byte> value) {
    text_bytes_ += value.size();
    if (text_bytes_ > most_text) {
        refuse_damaged("its text is more than 64 MiB");
    }
    if (key == "XML:com.adobe.xmp") {
        xmp_ = std::move(value);
    } else if (key == "Raw profile type exif") {
        raw_exif_ = std::move(value);
    }
}

}  // namespace cascade::pixels
