// A walk over the protobuf messages of an ONNX model that can hold a tensor, without recursion.

#include "onnx_external.h"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "refuse.h"

namespace cascade {
namespace {

using Bytes = std::span<const std::byte>;

enum class Kind { model, training, function, graph, node, attribute, sparse, tensor, entry };
enum Wire : unsigned { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
constexpr std::uint64_t key_field = 1, value_field = 2;

struct Message {
    Kind kind;
    Bytes data;
};

// What the field `number` of a message holds, if it is on a way to a tensor.
std::optional<Kind> below(Kind kind, std::uint64_t number) {
    struct Row {
        Kind in;
        std::uint64_t number;
        Kind holds;
    };
    static constexpr Row rows[] = {
        {Kind::model, 7, Kind::graph},         {Kind::model, 20, Kind::training},
        {Kind::model, 25, Kind::function},     {Kind::training, 1, Kind::graph},
        {Kind::training, 2, Kind::graph},      {Kind::function, 7, Kind::node},
        {Kind::function, 11, Kind::attribute}, {Kind::graph, 1, Kind::node},
        {Kind::graph, 5, Kind::tensor},        {Kind::graph, 15, Kind::sparse},
        {Kind::node, 5, Kind::attribute},      {Kind::attribute, 5, Kind::tensor},
        {Kind::attribute, 6, Kind::graph},     {Kind::attribute, 10, Kind::tensor},
        {Kind::attribute, 11, Kind::graph},    {Kind::attribute, 22, Kind::sparse},
        {Kind::attribute, 23, Kind::sparse},   {Kind::sparse, 1, Kind::tensor},
        {Kind::sparse, 2, Kind::tensor},       {Kind::tensor, 13, Kind::entry},
    };
    for (const Row& row : rows) {
        if (row.in == kind && row.number == number) {
            return row.holds;
        }
    }
    return std::nullopt;
}

// The fields of one message, in order.
class Reader {
public:
    Reader(Bytes data, const std::string& file) : left_(data), file_(file) {}

    bool done() const { return left_.empty(); }

    // The number and content of the next field; no content where it is not length-delimited.
    std::pair<std::uint64_t, std::optional<Bytes>> next() {
        const std::uint64_t tag = read_varint();
        if (tag > UINT32_MAX) {
            damaged();  // libraries drop the upper bits: a field hidden under another's number
        }
        switch (tag & 7) {
            case Wire::bytes:
                return {tag >> 3, take(read_varint())};
            case Wire::varint:
                read_varint();
                break;
            case Wire::fixed64:
                take(8);
                break;
            case Wire::fixed32:
                take(4);
                break;
            default:
                damaged();
        }
        return {tag >> 3, std::nullopt};
    }

private:
    [[noreturn]] void damaged() const {
        throw Error(Status::target,
                    file_ + ": not an ONNX file; rebuild the bundle with cascade-compile bundle");
    }

    Bytes take(std::uint64_t size) {
        if (size > left_.size()) {
            damaged();
        }
        const Bytes taken = left_.first(size);
        left_ = left_.subspan(size);
        return taken;
    }

    // At most ten bytes; what does not fit 64 bits is more than any size or tag may be.
    std::uint64_t read_varint() {
        std::uint64_t value = 0;
        for (int shift = 0; shift < 70; shift += 7) {
            const auto byte = std::to_integer<std::uint64_t>(take(1)[0]);
            value |= (byte & 127) << shift;
            if (byte < 128) {
                return shift == 63 && byte > 1 ? UINT64_MAX : value;
            }
        }
        damaged();
    }

    Bytes left_;
    const std::string& file_;
};

std::string text(Bytes data) {
    return {reinterpret_cast<const char*>(data.data()), data.size()};
}

}

void each_external_location(Bytes data, const std::string& file, const TakeLocation& take) {
    std::vector<Message> waiting{{Kind::model, data}};
    while (!waiting.empty()) {
        const Message message = waiting.back();
        waiting.pop_back();
        std::string key, value;
        for (Reader reader(message.data, file); !reader.done();) {
            const auto [number, content] = reader.next();
            if (!content) {
                continue;
            }
            if (const std::optional<Kind> kind = below(message.kind, number)) {
                waiting.push_back({*kind, *content});
            } else if (message.kind == Kind::entry && number == key_field) {
                key = text(*content);
            } else if (message.kind == Kind::entry && number == value_field) {
                value = text(*content);
            }
        }
        if (key == "location") {
            take(value);
        }
    }
}

void check_external_data(Bytes data, const std::string& file,
                         const std::set<std::string>& allowed) {
    each_external_location(data, file, [&](const std::string& location) {
        if (allowed.contains(location)) {
            return;
        }
        std::string names;
        for (const std::string& name : allowed) {
            names += (names.empty() ? "" : ", ") + name;
        }
        refuse(file + ": its weights lie in " + in_quotes(location) +
               ", which is none of this stage's verified files (" +
               (names.empty() ? "it has no other" : names) +
               "); rebuild the bundle with cascade-compile bundle");
    });
}

}
