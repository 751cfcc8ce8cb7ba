// Orientation tags, good and bad; the samples of the differential test come from Pillow, these not.

#include <string>

#include <gtest/gtest.h>

#include "pixels/exif.h"

using cascade::pixels::upright_orientation;

namespace {

int orientation(const std::string& exif, const std::string& xmp = "") {
    return upright_orientation(std::as_bytes(std::span(exif)), std::as_bytes(std::span(xmp)));
}

std::string bytes(const char* text, std::size_t size) { return {text, size}; }
#define BYTES(text) bytes(text, sizeof(text) - 1)

// One entry of the first directory, little-endian: tag, type, count, value.
std::string entry(int tag, int type, int count, int value) {
    std::string out;
    for (const auto& [number, size] : {std::pair{tag, 2}, {type, 2}, {count, 4}, {value, 4}}) {
        for (int i = 0; i < size; ++i) {
            out.push_back(static_cast<char>(number >> (8 * i)));
        }
    }
    return out;
}

std::string block(const std::string& entries) {
    const char count = static_cast<char>(entries.size() / 12);
    return BYTES("Exif\0\0II*\0\x08\0\0\0") + count + BYTES("\0") + entries + BYTES("\0\0\0\0");
}

}  // namespace

TEST(Exif, TheTagIsRead) {
    for (int value = 0; value < 12; ++value) {
        const int expected = value >= 2 && value <= 8 ? value : 1;
        EXPECT_EQ(orientation(block(entry(0x0112, 3, 1, value))), expected);
    }
}

TEST(Exif, BothByteOrders) {
    EXPECT_EQ(orientation(BYTES("MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")), 6);
    EXPECT_EQ(orientation(BYTES("II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")), 6);
}

TEST(Exif, OtherTypesOfNumberCountAndTextDoesNot) {
    for (const int type : {3, 4, 6, 8, 9, 13}) {
        EXPECT_EQ(orientation(block(entry(0x0112, type, 1, 6))), 6) << type;
    }
    for (const int type : {0, 1, 2, 7, 14, 17, 65535}) {
        EXPECT_EQ(orientation(block(entry(0x0112, type, 1, 6))), 1) << type;
    }
}

TEST(Exif, TheFirstOfTwoEntriesWins) {
    EXPECT_EQ(orientation(block(entry(0x0112, 3, 1, 8) + entry(0x0112, 3, 1, 3))), 8);
}

TEST(Exif, AnEntryThatReachesOutsideEndsTheDirectory) {
    EXPECT_EQ(orientation(block(entry(0x010F, 2, 20, 9999) + entry(0x0112, 3, 1, 8))), 1);
    EXPECT_EQ(orientation(block(entry(0x010F, 2, 0x7FFFFFFF, 8) + entry(0x0112, 3, 1, 8))), 8);
}

TEST(Exif, DamageIsNone) {
    const std::string whole = block(entry(0x0112, 3, 1, 6));
    for (std::size_t size = 0; size < whole.size() - 4; ++size) {
        EXPECT_EQ(orientation(whole.substr(0, size)), 1) << size;
    }
    EXPECT_EQ(orientation(BYTES("Exif\0\0II*\0\xFF\xFF\xFF\xFF")), 1);
    EXPECT_EQ(orientation(BYTES("Exif\0\0XX*\0\x08\0\0\0")), 1);
    EXPECT_EQ(orientation(std::string(100, '\xFF')), 1);
}

TEST(Exif, XmpIsAskedWhereThereIsNoTag) {
    const std::string other = block(entry(0x0100, 3, 1, 6));
    EXPECT_EQ(orientation("", R"(<x tiff:Orientation="6"/>)"), 6);
    EXPECT_EQ(orientation(other, "<tiff:Orientation>3</tiff:Orientation>"), 3);
    EXPECT_EQ(orientation(block(entry(0x0112, 3, 1, 8)), R"(tiff:Orientation="6")"), 8);
    EXPECT_EQ(orientation("damaged!", R"(tiff:Orientation="6")"), 1);
    EXPECT_EQ(orientation("", R"(tiff:Orientation='6' tiff:Orientation="5")"), 5);
    EXPECT_EQ(orientation("", "tiff:Orientation"), 1);
}
