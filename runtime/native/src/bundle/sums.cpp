// Sorted lines of 64 lower-case hex digits, two spaces and a path, and nothing else.

#include "sums.h"

#include <algorithm>
#include <string_view>

#include "bundle.h"
#include "refuse.h"

namespace cascade {
namespace {

constexpr std::size_t digest_digits = 64;

bool is_digest(std::string_view text) {
    return text.size() == digest_digits && std::all_of(text.begin(), text.end(), [](char c) {
               return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
           });
}

bool is_line(std::string_view line) {
    if (line.size() < digest_digits + 2) {
        return false;
    }
    const std::string_view path = line.substr(digest_digits + 2);
    return is_digest(line.substr(0, digest_digits)) && line.substr(digest_digits, 2) == "  " &&
           is_name(path) && path != sums_name && path != signature_name;
}

}

std::map<std::string, std::string> parse_sums(std::span<const std::byte> data) {
    const std::string file = sums_name;
    if (data.size() > max_sums_bytes) {
        refuse(file + ": " + std::to_string(data.size()) + " bytes, the limit is " +
               std::to_string(max_sums_bytes));
    }
    std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
    if (text.empty() || text.back() != '\n') {
        refuse(file + ": does not end with a newline; the file is cut short");
    }
    std::map<std::string, std::string> hashes;
    for (int number = 1; !text.empty(); ++number) {
        const std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(line.size() + 1);
        const std::string where = file + ": line " + std::to_string(number);
        if (!is_line(line)) {
            refuse(where + " is not '<sha256>  <path>': " + in_quotes(line));
        }
        const std::string path(line.substr(digest_digits + 2));
        if (!hashes.empty() && path <= hashes.rbegin()->first) {
            refuse(where + ", " + in_quotes(path) + " is out of order or repeated");
        }
        hashes.emplace_hint(hashes.end(), path, line.substr(0, digest_digits));
    }
    return hashes;
}

}
