// The strict reading of JSON, by nlohmann::json's event parser: it keeps no tree of its own, checks
// UTF-8 and surrogates, does not recurse, and hands over the digits of what is no 64-bit integer.
// What it takes and RFC 8259 does not (a byte order mark, a zero byte for the end), and what it
// takes from the locale (the decimal point), is dealt with here.

#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>

#define JSON_ASSERT(condition) static_cast<void>(0)  // no abort in somebody's process
#include <nlohmann/json.hpp>

#include "refuse.h"

namespace cascade::json {
namespace {

using Number = nlohmann::json;
constexpr std::size_t max_number = 1200;  // more letters than any binary64 written out in full
constexpr std::size_t shown = 40;

// Builds the tree; the first thing that is wrong ends it, with `why`.
class Builder : public nlohmann::json_sax<Number> {
public:
    bool null() override { return add({}); }
    bool boolean(bool value) override { return add({value}); }
    bool string(std::string& value) override { return add({std::move(value)}); }
    bool binary(Number::binary_t&) override { return stop("there is no binary in JSON"); }

    bool number_integer(std::int64_t value) override {
        return value < -max_integer ? too_large(std::to_string(value)) : add({value});
    }
    bool number_unsigned(std::uint64_t value) override {
        return value > max_integer ? too_large(std::to_string(value))
                                   : add({static_cast<std::int64_t>(value)});
    }
    bool number_float(double given, const std::string& text) override {
        if (is_integer(text)) {
            return too_large(text);
        }
        const std::optional<double> value = finite(text, given);
        return value ? add({*value})
                     : stop("the number " + text.substr(0, shown) + " is too large");
    }

    bool start_object(std::size_t) override { return open({Object()}); }
    bool start_array(std::size_t) override { return open({Array()}); }
    bool end_array() override { return close(); }
    bool end_object() override {
        const Object& object = std::get<Object>(levels_.back().content);
        std::vector<std::string_view> keys;
        for (const auto& [key, value] : object) {
            keys.push_back(key);
        }
        std::sort(keys.begin(), keys.end());
        const auto twice = std::adjacent_find(keys.begin(), keys.end());
        if (twice != keys.end()) {
            return stop("the key " + in_quotes(twice->substr(0, shown)) + " is repeated");
        }
        return close();
    }
    bool key(std::string& value) override {
        std::get<Object>(levels_.back().content).emplace_back().key = std::move(value);
        return true;
    }

    bool parse_error(std::size_t at, const std::string& token,
                     const nlohmann::detail::exception& error) override {
        if (error.id == 406) {  // beyond binary64
            return stop("the number " + token.substr(0, shown) + " is too large");
        }
        return stop("byte " + std::to_string(at) + " cannot be there");
    }

    std::string why;
    bool too_deep = false;
    Value root;

private:
    bool stop(const std::string& reason) {
        why = reason;
        return false;
    }

    bool too_large(const std::string& text) {
        return stop("the integer " + text.substr(0, shown) + " is beyond 2^53");
    }

    static bool is_of_number(char c) { return std::strchr("+-0123456789.eE", c) != nullptr; }

    static bool is_integer(const std::string& text) {
        return text.find_first_not_of("-0123456789") == std::string::npos;
    }

    // The number in binary64, whatever the locale: its decimal point stands where the file has '.'.
    static std::optional<double> finite(std::string text, double given) {
        if (text.size() > max_number) {
            return std::nullopt;
        }
        std::replace_if(text.begin(), text.end(), [](char c) { return !is_of_number(c); }, '.');
        double value = 0;
        const char* end = text.data() + text.size();
        const auto [rest, error] = std::from_chars(text.data(), end, value);
        if (error == std::errc::result_out_of_range) {
            return std::abs(given) < 1 ? std::optional(given) : std::nullopt;  // 1e-999 is 0
        }
        return error == std::errc() && rest == end && std::isfinite(value) ? std::optional(value)
                                                                           : std::nullopt;
    }

    bool add(Value value) {
        if (levels_.empty()) {
            root = std::move(value);
        } else if (auto* array = std::get_if<Array>(&levels_.back().content)) {
            array->push_back(std::move(value));
        } else {
            std::get<Object>(levels_.back().content).back().value = std::move(value);
        }
        return true;
    }

    bool open(Value value) {
        levels_.push_back(std::move(value));
        too_deep = levels_.size() > max_depth;
        return !too_deep;
    }

    bool close() {
        Value whole = std::move(levels_.back());
        levels_.pop_back();
        return add(std::move(whole));
    }

    std::vector<Value> levels_;  // what is open, the innermost last
};

}

const Value* find(const Object& object, std::string_view key) {
    for (const auto& [name, value] : object) {
        if (name == key) {
            return &value;
        }
    }
    return nullptr;
}

Object parse(std::span<const std::byte> data, const std::string& name) {
    const std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
    Builder builder;
    if (text.starts_with("\xef\xbb\xbf") || text.find('\0') != std::string_view::npos) {
        builder.why = "a byte order mark or a zero byte";
    } else {
        Number::sax_parse(text.begin(), text.end(), &builder);
    }
    if (builder.too_deep) {
        refuse(name + ": nested deeper than " + std::to_string(max_depth) + " levels");
    }
    if (!builder.why.empty()) {
        refuse(name + ": not a JSON object (" + builder.why + ")");
    }
    if (auto* object = std::get_if<Object>(&builder.root.content)) {
        return std::move(*object);
    }
    refuse(name + ": not a JSON object");
}

}
