#pragma once
// How a bundle is refused: one line that names the file or the field, with strange text made
// harmless.

#include <string>
#include <string_view>

#include "../error.h"

namespace cascade {

[[noreturn]] inline void refuse(const std::string& message) {
    throw Error(Status::bundle, message);
}

// Text of strangers in quotes: ASCII as it is, other bytes as \xNN, and no more than a line of it.
inline std::string in_quotes(std::string_view text) {
    constexpr std::size_t longest = 200;
    constexpr char digits[] = "0123456789abcdef";
    std::string out = "'";
    for (const char letter : text.substr(0, longest)) {
        const auto byte = static_cast<unsigned char>(letter);
        if (byte >= 0x20 && byte < 0x7f && letter != '\\' && letter != '\'') {
            out += letter;
        } else if (letter == '\\' || letter == '\'') {
            out += {'\\', letter};
        } else {
            out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        }
    }
    return out + (text.size() > longest ? "'…" : "'");
}

}
