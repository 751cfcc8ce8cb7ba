// In: /proc/cpuinfo. Out: see processor.h.
#include "engines/processor.h"

#include <fstream>
#include <set>
#include <sstream>

namespace cascade {
namespace {

// The processor's flags as Linux names them; empty where they cannot be read.
const std::set<std::string>& flags() {
    static const std::set<std::string> found = [] {
        std::set<std::string> words;
        std::ifstream file("/proc/cpuinfo");
        for (std::string line; std::getline(file, line);) {
            if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
            std::istringstream rest(line.substr(line.find(':') + 1));
            for (std::string word; rest >> word;) words.insert(word);
            break;
        }
        return words;
    }();
    return found;
}

}  // namespace

std::optional<std::string> no_int8() {
#if defined(__x86_64__)
    // x86 without these instructions adds pairs of 8-bit products in 16 bits, where they saturate:
    // another answer than the one that was certified, and no faster.
    const auto& has = flags();
    if (!has.empty() && !has.contains("avx512_vnni") && !has.contains("avx_vnni") &&
        !has.contains("amx_int8")) {
        return "this processor has no 8-bit dot products (AVX512_VNNI, AVX_VNNI or AMX_INT8)";
    }
#endif
    return std::nullopt;
}

}  // namespace cascade
