// From the tensors of the golden file to vectors of the types that are computed with.

#include "golden.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string_view>

#include "bundle.h"
#include "refuse.h"
#include "safetensors.h"

namespace cascade {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are copied as they are");

constexpr const char* again = "; rebuild with cascade-compile bundle";
constexpr std::uint64_t any = ~std::uint64_t{0};  // an axis of whatever length
constexpr std::string_view logits_of = "/logits";

using Shape = std::vector<std::uint64_t>;

std::string shown(const Shape& shape) {
    std::string text;
    for (const std::uint64_t axis : shape) {
        text += (text.empty() ? "" : ", ") + (axis == any ? "any" : std::to_string(axis));
    }
    return "[" + text + "]";
}

const Tensor& tensor(const Tensors& tensors, const std::string& key, const char* dtype,
                     const Shape& shape) {
    const auto found = tensors.find(key);
    const std::string where = std::string(golden_name) + ": tensor " + in_quotes(key);
    if (found == tensors.end()) {
        refuse(where + " is missing" + again);
    }
    const Tensor& value = found->second;
    const bool fits = std::equal(
        shape.begin(), shape.end(), value.shape.begin(), value.shape.end(),
        [](std::uint64_t want, std::uint64_t have) { return want == any || want == have; });
    if (!fits || value.dtype != dtype) {
        refuse(where + " is " + value.dtype + " " + shown(value.shape) + ", expected " + dtype +
               " " + shown(shape) + again);
    }
    return value;
}

template <class Item>
std::vector<Item> items(const Tensor& tensor) {
    std::vector<Item> found(tensor.data.size() / sizeof(Item));
    if (!found.empty()) {
        std::memcpy(found.data(), tensor.data.data(), tensor.data.size());
    }
    return found;
}

}

Golden load_golden(std::span<const std::byte> data, const Preprocess& preprocess) {
    const Tensors tensors = read_safetensors(data, golden_name);
    const auto side = [](int pixels) { return static_cast<std::uint64_t>(pixels); };
    const Tensor& images =
        tensor(tensors, "images", "U8", {any, side(preprocess.height), side(preprocess.width), 3});
    const std::uint64_t count = images.shape[0];
    Golden golden{count, items<std::uint8_t>(images), {}};
    for (const auto& [key, value] : tensors) {
        if (!key.ends_with(logits_of)) {
            continue;
        }
        const std::string name = key.substr(0, key.size() - logits_of.size());
        const Tensor& logits = tensor(tensors, key, "F32", {any, count, 2});
        if (logits.shape[0] > max_stages) {  // of no images, a small file may claim any number
            refuse(std::string(golden_name) + ": '" + key + "' has " +
                   std::to_string(logits.shape[0]) + " stages, more than " +
                   std::to_string(max_stages));
        }
        const Tensor& gate = tensor(tensors, name + "/gate", "F32", {logits.shape[0], count});
        golden.targets[name] = {
            .stages = logits.shape[0],
            .logits = items<float>(logits),
            .gate = items<float>(gate),
            .label = items<std::int8_t>(tensor(tensors, name + "/label", "I8", {count})),
            .stage = items<std::int8_t>(tensor(tensors, name + "/stage", "I8", {count}))};
    }
    return golden;
}

}
