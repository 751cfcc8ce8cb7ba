// Every backend of this version by name; see engine.h.
#include <cstdlib>
#include <mutex>

#include "engines/backends.h"
#include "engines/engine.h"

namespace cascade {
namespace {

using Make = std::shared_ptr<Backend> (*)(const std::string& library);

struct Entry {
    Make make;
    std::string Libraries::*option;
    const char* variable;  // of the environment, where there is no option
};

const std::map<std::string, Entry>& backends() {
    static const std::map<std::string, Entry> known = {
        {"onnxruntime", {make_onnxruntime, &Libraries::onnxruntime, "CASCADE_ONNXRUNTIME_LIBRARY"}},
        {"openvino", {make_openvino, &Libraries::openvino, "CASCADE_OPENVINO_LIBRARY"}},
        {"tensorrt", {make_tensorrt, &Libraries::tensorrt, "CASCADE_TENSORRT_LIBRARY"}},
    };
    return known;
}

std::string place_of(const Entry& entry, const Libraries& libraries) {
    const std::string& option = libraries.*(entry.option);
    if (!option.empty()) return option;
    const char* variable = std::getenv(entry.variable);
    return variable == nullptr ? "" : variable;
}

}  // namespace

std::shared_ptr<Backend> find_backend(const std::string& name, const Libraries& libraries) {
    const auto entry = backends().find(name);
    if (entry == backends().end()) return nullptr;
    static std::mutex lock;
    // Never destroyed: a static would be torn down in an order that the libraries do not know of.
    static auto& made = *new std::map<std::pair<std::string, std::string>, std::shared_ptr<Backend>>;
    const std::string place = place_of(entry->second, libraries);
    const std::lock_guard guard(lock);
    std::shared_ptr<Backend>& backend = made[{name, place}];
    if (backend == nullptr) backend = entry->second.make(place);
    return backend;
}

std::string known_backends() {
    std::string names;
    for (const auto& [name, entry] : backends()) names += (names.empty() ? "" : ", ") + name;
    return names;
}

}  // namespace cascade
