#pragma once
// One value of a manifest and the way to it, so that a refusal names the field. In: JSON values.
// Out: C++ ones, or an Error "manifest.json: targets['x'].stages[0].files needs an array".

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "manifest.h"
#include "refuse.h"

namespace cascade {

class Field {
public:
    Field(const json::Value& value, std::string where) : value_(&value), where_(std::move(where)) {}

    // A field that the object must have.
    Field at(const char* name) const {
        if (std::optional<Field> found = maybe(name)) {
            return *found;
        }
        refuse("manifest.json: " + below(name) + " is missing");
    }

    // A field that may be absent.
    std::optional<Field> maybe(const char* name) const {
        const json::Value* found = json::find(as<json::Object>("an object"), name);
        return found ? std::optional(Field(*found, below(name))) : std::nullopt;
    }

    // A field that may be absent or null.
    std::optional<Field> nullable(const char* name) const {
        const std::optional<Field> found = maybe(name);
        return found && !found->is_null() ? found : std::nullopt;
    }

    bool is_null() const { return std::holds_alternative<std::monostate>(value_->content); }
    bool boolean() const { return as<bool>("true or false"); }
    std::int64_t integer() const { return as<std::int64_t>("an integer"); }
    const std::string& text() const { return as<std::string>("a string"); }

    std::int64_t count() const {
        const std::int64_t value = integer();
        need(value >= 0, "needs counts >= 0, " + std::to_string(value) + " is none");
        return value;
    }

    double number() const {
        if (const auto* whole = std::get_if<std::int64_t>(&value_->content)) {
            return static_cast<double>(*whole);
        }
        return as<double>("a number");
    }

    // binary64, then rounded to binary32, ties to even; finite in both.
    float float32() const {
        const double value = number();
        const bool fits = std::abs(value) < 0x1.ffffffp+127;  // where rounding goes to infinity
        need(fits, "needs a number of float32, " + std::to_string(value) + " is beyond float32");
        return static_cast<float>(value);
    }

    double share() const {
        const double value = number();
        need(value >= 0 && value <= 1,
             "needs a share between 0 and 1, " + std::to_string(value) + " is none");
        return value;
    }

    const std::string& one_of(std::initializer_list<const char*> known) const {
        std::string names;
        for (const char* name : known) {
            if (text() == name) {
                return text();
            }
            names += (names.empty() ? "" : ", ") + std::string(name);
        }
        refuse("manifest.json: " + where_ + " is " + in_quotes(text()) + ", it needs one of " +
               names);
    }

    // fn(Field) of every entry of an array.
    template <class Decode>
    auto list(const Decode& decode) const {
        std::vector<decltype(decode(*this))> found;
        for (const json::Value& value : as<json::Array>("an array")) {
            found.push_back(
                decode(Field(value, where_ + "[" + std::to_string(found.size()) + "]")));
        }
        return found;
    }

    // fn(Field) of every value of an object, by name.
    template <class Decode>
    auto table(const Decode& decode) const {
        Table<decltype(decode(*this))> found;
        for (const auto& [name, value] : as<json::Object>("an object")) {
            found.add(name, decode(Field(value, where_ + "[" + in_quotes(name) + "]")));
        }
        return found;
    }

    void need(bool holds, const std::string& what) const {
        if (!holds) {
            refuse("manifest.json: " + where_ + " " + what);
        }
    }

private:
    template <class Type>
    const Type& as(const char* what) const {
        if (const auto* value = std::get_if<Type>(&value_->content)) {
            return *value;
        }
        refuse("manifest.json: " + (where_.empty() ? "it" : where_) + " needs " + what);
    }

    std::string below(const char* name) const {
        return where_.empty() ? name : where_ + "." + name;
    }

    const json::Value* value_;
    std::string where_;
};

}
