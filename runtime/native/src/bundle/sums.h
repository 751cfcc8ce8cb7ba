#pragma once
// The list of what a bundle holds. In: the bytes of `SHA256SUMS`. Out: {path: digest}, or an Error.
// Spec: docs/bundle-format.md, "SHA256SUMS".

#include <cstddef>
#include <map>
#include <span>
#include <string>

namespace cascade {

inline constexpr std::size_t max_sums_bytes = 16 << 20;

std::map<std::string, std::string> parse_sums(std::span<const std::byte> data);

}
