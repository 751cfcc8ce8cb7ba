// manifest.json of any bytes: strict JSON, then types, limits, and each certificate's binding. In:
// a file whose hash matches, which is all that a forger needs. Out: a Manifest or an Error.

#include "bundle/certificate.h"
#include "bundle/manifest.h"
#include "try_to.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace cascade;
    Manifest manifest;
    if (!try_to([&] { manifest = decode_manifest(bytes_of(data, size)); })) {
        return 0;
    }
    for (const auto& [name, target] : manifest.targets) {
        // The certificate's own hashes: the check goes on to the binding.
        const auto& hashes = manifest.certificates.at(name).engines;
        try_to([&, &about = name] { check_certificate(manifest, about, hashes); });
    }
    return 0;
}
