// SHA-256 by OpenSSL's EVP interface, which takes the processor's own instructions where it has
// them.

#include "sha256.h"

#include <openssl/evp.h>

#include <array>
#include <new>

#include "../error.h"

namespace cascade {
namespace {

void need(int done) {
    if (done != 1) {
        throw Error(Status::failure, "OpenSSL cannot compute a SHA-256");
    }
}

}

void Sha256::Free::operator()(evp_md_ctx_st* context) const {
    EVP_MD_CTX_free(context);
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
    if (!context_) {
        throw std::bad_alloc();
    }
    need(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}

void Sha256::update(std::span<const std::byte> data) {
    need(EVP_DigestUpdate(context_.get(), data.data(), data.size()));
}

std::string Sha256::hex() {
    constexpr char digits[] = "0123456789abcdef";
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned size = 0;
    need(EVP_DigestFinal_ex(context_.get(), digest.data(), &size));
    std::string text;
    for (unsigned i = 0; i < size; ++i) {
        text += {digits[digest[i] >> 4], digits[digest[i] & 15]};
    }
    return text;
}

std::string sha256_hex(std::span<const std::byte> data) {
    Sha256 hash;
    hash.update(data);
    return hash.hex();
}

std::string sha256_hex(std::string_view text) {
    return sha256_hex(std::as_bytes(std::span(text)));
}

}
