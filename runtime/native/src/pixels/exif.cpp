// Reads one directory of a TIFF structure and looks for one tag. Damage of any kind counts as none.
// What is taken for a number, which entry of two wins and when XMP is asked follow Pillow's reader,
// since the reference runtime sees the tag through it.

#include "pixels/exif.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace cascade::pixels {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::uint16_t orientation_tag = 0x0112;
constexpr int as_stored = 1;

std::string_view text(Bytes bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Unsigned integers of either byte order, with every access checked.
class Tiff {
public:
    Tiff(Bytes data, bool big) : data_(data), big_(big) {}

    std::size_t size() const { return data_.size(); }
    bool holds(std::uint64_t offset, std::uint64_t count) const {
        return offset <= data_.size() && count <= data_.size() - offset;
    }
    std::uint64_t number(std::size_t offset, std::size_t bytes) const {
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) {
            const std::size_t at = big_ ? offset + i : offset + bytes - 1 - i;
            value = value << 8 | std::to_integer<std::uint64_t>(data_[at]);
        }
        return value;
    }

private:
    Bytes data_;
    bool big_;
};

// Bytes a value, by TIFF's type number; 0: unknown.
std::uint64_t unit_size(std::uint64_t type) {
    constexpr std::uint64_t sizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    return type < std::size(sizes) ? sizes[type] : 0;
}

// The first value at `offset` as a number; none for bytes, text and raw data.
std::optional<double> first_number(const Tiff& tiff, std::uint64_t type, std::size_t offset) {
    const auto whole = [&](std::size_t bytes) { return tiff.number(offset, bytes); };
    switch (type) {
    case 3: return static_cast<double>(whole(2));
    case 4:
    case 13: return static_cast<double>(whole(4));
    case 5: return static_cast<double>(whole(4)) / static_cast<double>(tiff.number(offset + 4, 4));
    case 6: return static_cast<std::int8_t>(whole(1));
    case 8: return static_cast<std::int16_t>(whole(2));
    case 9: return static_cast<std::int32_t>(whole(4));
    case 10:
        return static_cast<double>(static_cast<std::int32_t>(whole(4))) /
               static_cast<double>(static_cast<std::int32_t>(tiff.number(offset + 4, 4)));
    case 11: return std::bit_cast<float>(static_cast<std::uint32_t>(whole(4)));
    case 12: return std::bit_cast<double>(whole(8));
    case 16: return static_cast<double>(whole(8));
    default: return std::nullopt;
    }
}

int known_orientation(std::optional<double> value) {
    for (int known = 2; known <= 8; ++known) {
        if (value == static_cast<double>(known)) {
            return known;
        }
    }
    return as_stored;
}

// The tag in the directory at `position`; none if it is not there. An entry whose value does not
// fit in the block ends the directory, or is passed over if it could not fit anywhere.
std::optional<int> in_directory(const Tiff& tiff, std::size_t position) {
    if (!tiff.holds(position, 2)) {
        return std::nullopt;
    }
    const std::uint64_t entries = tiff.number(position, 2);
    std::uint64_t claimed = 0;
    for (std::uint64_t i = 0; i < entries; ++i) {
        const std::size_t entry = position + 2 + 12 * i;
        if (!tiff.holds(entry, 12)) {
            return std::nullopt;
        }
        const std::uint64_t type = tiff.number(entry + 2, 2);
        const std::uint64_t bytes = tiff.number(entry + 4, 4) * unit_size(type);
        std::size_t value = entry + 8;
        if (bytes == 0) {
            continue;
        }
        if (bytes > 4) {
            claimed += bytes;
            if (claimed > tiff.size()) {
                continue;
            }
            value = tiff.number(entry + 8, 4);
            if (!tiff.holds(value, bytes)) {
                return std::nullopt;
            }
        }
        if (tiff.number(entry, 2) == orientation_tag) {
            return known_orientation(first_number(tiff, type, value));
        }
    }
    return std::nullopt;
}

int in_xmp(Bytes xmp) {
    constexpr std::string_view name = "tiff:Orientation";
    std::string_view rest = text(xmp);
    for (auto at = rest.find(name); at != rest.npos; at = rest.find(name)) {
        rest.remove_prefix(at + name.size());
        const std::size_t opening = rest.starts_with("=\"") ? 2 : rest.starts_with('>') ? 1 : 0;
        if (opening > 0 && rest.size() > opening && rest[opening] >= '0' && rest[opening] <= '9') {
            return known_orientation(rest[opening] - '0');
        }
    }
    return as_stored;
}

}  // namespace

int upright_orientation(Bytes exif, Bytes xmp) {
    constexpr std::string_view mark{"Exif\0\0", 6};
    for (int i = 0; i < 2 && text(exif).starts_with(mark); ++i) {
        exif = exif.subspan(mark.size());
    }
    if (exif.empty()) {
        return in_xmp(xmp);
    }
    constexpr std::string_view headers[] = {{"MM\0*", 4}, {"II*\0", 4}, {"MM*\0", 4},
                                            {"II\0*", 4}, {"MM\0+", 4}};
    const auto known = [&](std::string_view header) { return text(exif).starts_with(header); };
    if (exif.size() < 8 || std::none_of(std::begin(headers), std::end(headers), known)) {
        return as_stored;
    }
    const Tiff tiff(exif, text(exif).front() == 'M');
    const std::optional<int> found = in_directory(tiff, tiff.number(4, 4));
    return found ? *found : in_xmp(xmp);
}

}  // namespace cascade::pixels
