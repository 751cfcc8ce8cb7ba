// Finding and opening an engine library; see library.h.
#include "engines/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "error.h"

namespace cascade {
namespace {

namespace fs = std::filesystem;

// In a folder, the files whose name begins with one of `names` (libonnxruntime.so.1.32.0).
std::vector<std::string> inside(const fs::path& folder, const std::vector<std::string>& names) {
    std::vector<std::string> found;
    std::error_code ignored;
    for (const std::string& name : names) {
        std::vector<std::string> matches;
        for (const auto& entry : fs::directory_iterator(folder, ignored)) {
            if (entry.path().filename().string().starts_with(name)) {
                matches.push_back(entry.path().string());
            }
        }
        std::sort(matches.begin(), matches.end());
        found.insert(found.end(), matches.begin(), matches.end());
    }
    return found;
}

std::vector<std::string> candidates(const std::string& place,
                                    const std::vector<std::string>& names) {
    std::error_code ignored;
    if (place.empty()) return names;
    if (fs::is_directory(place, ignored)) return inside(place, names);
    return {place};
}

}  // namespace

Library::Library(const LibrarySearch& search) {
    std::string reasons;
    for (const std::string& path : candidates(search.place, search.names)) {
        handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_ != nullptr) return;
        const char* reason = dlerror();
        reasons += (reasons.empty() ? "" : "; ") + std::string(reason ? reason : path);
    }
    if (reasons.empty()) reasons = "no " + search.names.front() + " in '" + search.place + "'";
    error_ = search.names.front() + " cannot be loaded (" + reasons + "); " + search.advice;
}

void* Library::symbol(const char* name) const {
    void* address = handle_ == nullptr ? nullptr : dlsym(handle_, name);
    if (address == nullptr) {
        throw Error(Status::target, std::string("the engine library has no function ") + name);
    }
    return address;
}

}  // namespace cascade
