#pragma once
// SHA-256 (FIPS 180-4) by OpenSSL. In: bytes, piece by piece. Out: 64 lower-case hex digits.

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace cascade {

class Sha256 {
public:
    Sha256();
    void update(std::span<const std::byte> data);
    std::string hex();  // once, at the end

private:
    struct Free {
        void operator()(evp_md_ctx_st* context) const;
    };
    std::unique_ptr<evp_md_ctx_st, Free> context_;
};

std::string sha256_hex(std::span<const std::byte> data);
std::string sha256_hex(std::string_view text);

}
