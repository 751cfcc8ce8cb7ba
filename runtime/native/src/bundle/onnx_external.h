#pragma once
// Where an ONNX file says that its weights are: read from its bytes, before any library sees them.
// In: the bytes of a `.onnx` file. Out: the `location` of every external tensor in it, wherever it
// hides: initialisers, constants, subgraphs, functions.
// Specs: onnx.proto of github.com/onnx/onnx ("external_data"); protobuf.dev, "Encoding".

#include <cstddef>
#include <functional>
#include <set>
#include <span>
#include <string>

namespace cascade {

using TakeLocation = std::function<void(const std::string&)>;

// Every location in the file, as it is found; may repeat. `file` is its bundle path, for messages.
// Throws Error with Status::target where it is no protobuf message.
void each_external_location(std::span<const std::byte> data, const std::string& file,
                            const TakeLocation& take);

// That every external tensor lies in one of the stage's own files: `allowed`, relative to this one.
// Throws Error with Status::bundle where one does not.
void check_external_data(std::span<const std::byte> data, const std::string& file,
                         const std::set<std::string>& allowed);

}
