// Ed25519 by OpenSSL: a key file to a key, and a signature to yes or an Error.

#include "signature.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "container.h"
#include "refuse.h"
#include "sha256.h"

namespace cascade {
namespace {

constexpr std::size_t max_key_bytes = 64 << 10, signature_bytes = 64;

// What OpenSSL leaves in this thread's queue of errors is ours, and not for the program around us.
struct OwnErrors {
    OwnErrors() { ERR_set_mark(); }
    OwnErrors(const OwnErrors&) = delete;
    OwnErrors& operator=(const OwnErrors&) = delete;
    ~OwnErrors() { ERR_pop_to_mark(); }
};

// An encrypted key is none that we take; without this OpenSSL would ask the terminal for a
// password.
int no_password(char*, int, int, void*) {
    return -1;
}

std::string read_key(const std::string& path) {
    const File file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    std::string data(max_key_bytes, '\0');
    const ssize_t got =
        file.descriptor() < 0 ? -1 : ::read(file.descriptor(), data.data(), data.size());
    if (got < 0) {
        refuse(path + ": the key cannot be read (" + std::generic_category().message(errno) + ")");
    }
    data.resize(static_cast<std::size_t>(got));
    return data;
}

}

void PublicKey::Free::operator()(evp_pkey_st* key) const {
    EVP_PKEY_free(key);
}

PublicKey PublicKey::load(const std::string& path) {
    const OwnErrors errors;
    const std::string data = read_key(path);
    const std::unique_ptr<BIO, decltype(&BIO_free)> bio(
        BIO_new_mem_buf(data.data(), static_cast<int>(data.size())), &BIO_free);
    PublicKey key;
    if (bio) {
        key.key_.reset(PEM_read_bio_PUBKEY(bio.get(), nullptr, no_password, nullptr));
    }
    if (!key.key_) {
        const bool secret = data.find("PRIVATE") != std::string::npos;
        refuse(path + ": not a public key in PEM; " +
               (secret ? "that is a private key, which stays with who signs; give its .pub file"
                       : "ask who signs the bundle for it"));
    }
    if (EVP_PKEY_get_base_id(key.key_.get()) != EVP_PKEY_ED25519) {
        refuse(path + ": not an Ed25519 key; bundles are signed with Ed25519");
    }
    return key;
}

std::string PublicKey::fingerprint() const {
    const OwnErrors errors;
    std::array<unsigned char, 32> raw{};
    std::size_t size = raw.size();
    if (EVP_PKEY_get_raw_public_key(key_.get(), raw.data(), &size) != 1 || size != raw.size()) {
        throw Error(Status::failure, "OpenSSL cannot read a public key that it has loaded");
    }
    return "ed25519:" + sha256_hex(std::as_bytes(std::span(raw))).substr(0, 32);
}

void PublicKey::check(std::span<const std::byte> sums, std::span<const std::byte> signature,
                      const std::string& name) const {
    const OwnErrors errors;
    if (signature.size() != signature_bytes) {
        refuse(name + ": not a signature, it must be 64 raw bytes; sign the bundle anew");
    }
    const auto bytes = [](std::span<const std::byte> data) {
        return reinterpret_cast<const unsigned char*>(data.data());
    };
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                          &EVP_MD_CTX_free);
    const bool ready =
        context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key_.get()) == 1;
    if (!ready || EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(sums),
                                   sums.size()) != 1) {
        refuse(name + ": not made by the key " + fingerprint() +
               " over this list of files; the bundle was changed or somebody else signed it");
    }
}

}
