#pragma once
// A bundle on disk, opened only when every byte of it is the one that was sealed. In: a folder or
// an uncompressed zip, and the public key of who must have signed it. Out: a `Bundle` with its
// manifest and verified reads, or an Error that names the file. No engine is loaded here. Spec:
// docs/bundle-format.md, "Order of checks".

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "container.h"
#include "manifest.h"

namespace cascade {

inline constexpr const char* sums_name = "SHA256SUMS";
inline constexpr const char* signature_name = "SHA256SUMS.sig";
inline constexpr const char* manifest_name = "manifest.json";
inline constexpr const char* golden_name = "golden.safetensors";

// Cheap to copy; threads may share one.
class Bundle {
public:
    // public_key_file: the Ed25519 key, in PEM, of who must have signed it; "" asks for no
    // signature and looks at none. Throws Error with Status::bundle.
    static Bundle open(const std::string& path, const std::string& public_key_file = "");

    const Manifest& manifest() const { return *manifest_; }
    const std::map<std::string, std::string>& hashes() const { return hashes_; }

    // The bytes of a listed file, hashed again: what is returned is what was verified.
    std::vector<std::byte> read(const std::string& path) const;
    std::uint64_t size(const std::string& path) const;

    // Whether there is a signature, which says nothing by itself; the fingerprint of the key that
    // was required, and which did sign.
    bool is_signed() const { return is_signed_; }
    const std::optional<std::string>& signer() const { return signer_; }

private:
    std::shared_ptr<const Container> container_;
    std::shared_ptr<const Manifest> manifest_;
    std::map<std::string, std::string> hashes_;  // every listed file's SHA-256
    bool is_signed_ = false;
    std::optional<std::string> signer_;
};

}
