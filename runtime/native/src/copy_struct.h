#pragma once
// Structures that grow: how those of a caller, who may have been compiled against an older or a
// newer header, and ours become each other. The rule stands at the top of cascade.h.
#include <algorithm>
#include <cstring>
#include <string>

#include "cascade/cascade.h"
#include "error.h"

namespace cascade {

// The size of each structure in the first version: no caller has a smaller one.
template <typename Struct>
inline constexpr std::size_t first_size = sizeof(Struct);

template <typename Struct>
void check_size(std::size_t size, const char* name) {
    constexpr std::size_t largest = 1 << 16;
    if (size >= first_size<Struct> && size <= largest && size % alignof(Struct) == 0) return;
    throw Error(Status::usage, std::string(name) + ".struct_size is " + std::to_string(size) +
                                   ", must be sizeof(" + name + "), here " +
                                   std::to_string(sizeof(Struct)));
}

// The caller's values over our defaults. What is there beyond our own structure must be zero: it
// would be an option that this library does not have.
template <typename Struct>
void copy_in(const Struct& from, Struct& to, const char* name) {
    const std::size_t size = from.struct_size;
    check_size<Struct>(size, name);
    const auto* bytes = reinterpret_cast<const unsigned char*>(&from);
    if (size > sizeof to &&
        std::any_of(bytes + sizeof to, bytes + size, [](unsigned char byte) { return byte != 0; })) {
        throw Error(Status::usage, std::string(name) + " has fields that this libcascade (" +
                                       CASCADE_VERSION + ") does not know; upgrade it");
    }
    std::memcpy(&to, &from, std::min(size, sizeof to));
    to.struct_size = sizeof to;
}

// Our values into as much as the caller has.
template <typename Struct>
void copy_out(const Struct& from, Struct& to, const char* name) {
    const std::size_t size = to.struct_size;
    check_size<Struct>(size, name);
    std::memcpy(&to, &from, std::min(size, sizeof from));
    to.struct_size = size;
}

inline cascade_options default_options() {
    cascade_options options = {};
    options.struct_size = sizeof options;
    options.warm_up = 1;
    options.max_batch = 32;
    options.max_delay_us = 2000;
    options.queue_capacity = 256;
    return options;
}

}  // namespace cascade
