#pragma once
// What this processor can compute in, as far as its engines do not say it themselves.
#include <optional>
#include <string>

namespace cascade {

// Why 8-bit products go wrong here; nothing where they do not, or where that is not known.
std::optional<std::string> no_int8();

}  // namespace cascade
