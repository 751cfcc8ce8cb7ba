// Header, then tensors that follow each other without gap or overlap; anything else is refused.

#include "safetensors.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "json.h"
#include "refuse.h"

namespace cascade {
namespace {

constexpr std::uint64_t length_bytes = 8, max_header = 100'000'000;
constexpr std::size_t max_axes = 8;
constexpr std::uint64_t max_size = std::numeric_limits<std::int64_t>::max();

using Bytes = std::span<const std::byte>;

std::uint64_t header_length(Bytes data, const std::string& name) {
    std::uint64_t length = 0;
    for (std::size_t i = std::min<std::size_t>(length_bytes, data.size()); i-- > 0;) {
        length = length << 8 | std::to_integer<std::uint64_t>(data[i]);
    }
    if (data.size() < length_bytes || length > std::min(max_header, data.size() - length_bytes)) {
        refuse(name + ": header length " + std::to_string(length) + " does not fit " +
               std::to_string(data.size()) + " bytes");
    }
    return length;
}

std::uint64_t item_bytes(const std::string& dtype) {
    return dtype == "F32" ? 4 : 1;
}

// The product of the axes and the size of an item; none where an array cannot have the shape, also
// an empty one, its axes of length 0 left out.
std::optional<std::uint64_t> bytes_of(const std::vector<std::uint64_t>& shape, std::uint64_t item) {
    std::uint64_t bytes = item;
    bool empty = false;
    for (const std::uint64_t axis : shape) {
        empty = empty || axis == 0;
        if (axis != 0 && bytes > max_size / axis) {
            return std::nullopt;
        }
        bytes *= std::max<std::uint64_t>(axis, 1);
    }
    return shape.size() > max_axes ? std::nullopt : std::optional(empty ? 0 : bytes);
}

std::vector<std::uint64_t> counts(const json::Value& value, const std::string& where) {
    std::vector<std::uint64_t> found;
    for (const json::Value& entry : std::get<json::Array>(value.content)) {
        const auto* number = std::get_if<std::int64_t>(&entry.content);
        if (!number || *number < 0) {
            refuse(where + " has a size or an offset that is no count");
        }
        found.push_back(static_cast<std::uint64_t>(*number));
    }
    return found;
}

struct Entry {
    Tensor tensor;
    std::uint64_t begin = 0, end = 0;
};

Entry read_entry(const json::Value& value, Bytes body, const std::string& where) {
    const auto* fields = std::get_if<json::Object>(&value.content);
    const auto field = [&](const char* key) { return fields ? json::find(*fields, key) : nullptr; };
    const json::Value *dtype = field("dtype"), *shape = field("shape"),
                      *ends = field("data_offsets");
    const auto* kind = dtype ? std::get_if<std::string>(&dtype->content) : nullptr;
    const auto is_array = [](const json::Value* v) {
        return v && std::holds_alternative<json::Array>(v->content);
    };
    if (!kind || (*kind != "F32" && *kind != "U8" && *kind != "I8") || !is_array(shape) ||
        !is_array(ends) || std::get<json::Array>(ends->content).size() != 2) {
        refuse(where + " needs dtype (one of F32, U8, I8), shape and data_offsets");
    }
    const std::vector<std::uint64_t> offsets = counts(*ends, where);
    Entry entry{{*kind, counts(*shape, where), {}}, offsets[0], offsets[1]};
    if (entry.begin > entry.end || entry.end > body.size()) {
        refuse(where + " lies outside the file; it is damaged");
    }
    const std::uint64_t size = entry.end - entry.begin;
    if (bytes_of(entry.tensor.shape, item_bytes(*kind)) != size) {
        refuse(where + " has " + std::to_string(size) + " bytes, which are not those of its shape");
    }
    entry.tensor.data = body.subspan(entry.begin, size);
    return entry;
}

}

Tensors read_safetensors(Bytes data, const std::string& name) {
    const std::uint64_t length = header_length(data, name);
    const Bytes header = data.subspan(length_bytes, length),
                body = data.subspan(length_bytes + length);
    if (header.empty() || header[0] != std::byte{'{'}) {
        refuse(name + ": the header is not a JSON object");
    }
    Tensors tensors;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> spans;
    for (const auto& [key, value] : json::parse(header, name + ": the header")) {
        if (key != "__metadata__") {
            Entry entry = read_entry(value, body, name + ": tensor " + in_quotes(key));
            spans.emplace_back(entry.begin, entry.end);
            tensors.emplace(key, std::move(entry.tensor));
        }
    }
    std::sort(spans.begin(), spans.end());
    std::uint64_t position = 0;
    for (const auto& [begin, end] : spans) {
        if (begin != position) {
            refuse(name + ": tensors overlap or leave a hole at byte " + std::to_string(position));
        }
        position = end;
    }
    if (position != body.size()) {
        refuse(name + ": " + std::to_string(body.size() - position) +
               " bytes after the last tensor");
    }
    return tensors;
}

}
