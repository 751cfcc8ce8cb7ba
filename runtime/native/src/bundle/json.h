#pragma once
// JSON from strangers: read once, one meaning, or refused. In: bytes. Out: plain values. Parsers
// differ in what they make of a repeated key, of NaN, of 1e999, of deep nesting, of a mark in
// front; a file that two readers understand differently is refused. Specs: docs/bundle-format.md,
// "Manifest"; RFC 8259 and, for the numbers, RFC 7493.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace cascade::json {

inline constexpr std::size_t max_depth = 32;  // of objects and arrays
inline constexpr std::int64_t max_integer = std::int64_t{1} << 53;

struct Value;
struct Member;
using Array = std::vector<Value>;
using Object = std::vector<Member>;  // as in the file, no key twice

// A number without fraction and exponent is an integer, any other a double.
struct Value {
    std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> content;
};

struct Member {
    std::string key;
    Value value;
};

// The value of a key, or nullptr.
const Value* find(const Object& object, std::string_view key);

// The object in `data`; `name` is the file's, for messages.
Object parse(std::span<const std::byte> data, const std::string& name);

}
