#pragma once
// What the fuzzers of bundle files share. In: something that reads a stranger's bytes. Out: nothing;
// an Error is an answer, any other exception ends the fuzzer.

#include <cstddef>
#include <cstdint>
#include <span>

#include "error.h"

namespace cascade {

template <typename Read>
bool try_to(Read read) {
    try {
        read();
        return true;
    } catch (const Error&) {
        return false;
    }
}

inline std::span<const std::byte> bytes_of(const std::uint8_t* data, std::size_t size) {
    return std::as_bytes(std::span(data, size));
}

}  // namespace cascade
