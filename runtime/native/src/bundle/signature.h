#pragma once
// Who sealed a bundle: a detached Ed25519 signature over the bytes of `SHA256SUMS`. In: a public
// key in PEM, those bytes, and the 64 of the signature. Out: nothing, or an Error where they are
// not what the holder of the key wrote. Specs: docs/bundle-format.md, "Signature"; RFC 8032, 8410,
// 7468.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

struct evp_pkey_st;

namespace cascade {

class PublicKey {
public:
    // Throws where there is no such file, or it is not an Ed25519 public key in PEM.
    static PublicKey load(const std::string& path);

    // What people compare: `ed25519:` and half of the SHA-256 of the 32 raw bytes of the key.
    std::string fingerprint() const;

    // That the holder of the key signed `sums`; `name` is the signature file's, for messages.
    void check(std::span<const std::byte> sums, std::span<const std::byte> signature,
               const std::string& name) const;

private:
    struct Free {
        void operator()(evp_pkey_st* key) const;
    };
    std::unique_ptr<evp_pkey_st, Free> key_;
};

}
