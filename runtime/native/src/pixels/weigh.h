#pragma once
// The inner loops of resizing. In: 8-bit samples and weights of 22 fractional bits. Out: their
// weighted sums, rounded half up and limited to 0..255; the same bits on every processor.
// Spec: docs/bundle-format.md, "Preprocessing", 5.
//
// Samples are taken two at a time. A weight is split into two numbers of 16 bits, w = 2048 * high +
// low, since every x86-64 multiplies and adds pairs of those in one instruction.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace cascade::pixels {

constexpr int weight_bits = 22;  // 32, less 8 of a sample, less 2 spare

struct WeightPair {
    WeightPair(std::int32_t first, std::int32_t second)
        : high{static_cast<std::int16_t>(first >> 11), static_cast<std::int16_t>(second >> 11)},
          low{static_cast<std::int16_t>(first & 2047), static_cast<std::int16_t>(second & 2047)} {}
    std::int16_t high[2], low[2];
};

// What both functions may read and not use: this many bytes behind the last sample.
constexpr std::size_t readable_behind = 16;

#if defined(__SSE2__)

namespace detail {

inline __m128i broadcast(const std::int16_t* pair) {
    std::int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return _mm_set1_epi32(both);
}

inline __m128i four_bytes(const std::uint8_t* at) {
    std::int32_t bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    return _mm_cvtsi32_si128(bytes);
}

inline __m128i rounded(__m128i high, __m128i low) {
    const __m128i half = _mm_set1_epi32(1 << (weight_bits - 1));
    const __m128i sum = _mm_add_epi32(_mm_slli_epi32(high, 11), _mm_add_epi32(low, half));
    return _mm_srai_epi32(sum, weight_bits);
}

}  // namespace detail

// One RGB pixel from 2 * pairs RGB pixels in a row.
inline void weigh_pixels(const std::uint8_t* in, const WeightPair* weights, int pairs,
                         std::uint8_t* out) {
    const __m128i zero = _mm_setzero_si128();
    __m128i high = zero, low = zero;
    for (int i = 0; i < pairs; ++i, in += 6) {
        // r0 g0 b0 r1 and r1 g1 b1 .. become r0 r1 g0 g1 b0 b1 .. ..
        const __m128i bytes =
            _mm_unpacklo_epi8(detail::four_bytes(in), detail::four_bytes(in + 3));
        const __m128i samples = _mm_unpacklo_epi8(bytes, zero);
        high = _mm_add_epi32(high, _mm_madd_epi16(samples, detail::broadcast(weights[i].high)));
        low = _mm_add_epi32(low, _mm_madd_epi16(samples, detail::broadcast(weights[i].low)));
    }
    __m128i pixel = detail::rounded(high, low);
    pixel = _mm_packus_epi16(_mm_packs_epi32(pixel, pixel), pixel);
    const std::int32_t bytes = _mm_cvtsi128_si32(pixel);
    std::memcpy(out, &bytes, 3);
}

// `size` samples, each from the 2 * pairs samples that lie `stride` bytes apart.
inline void weigh_rows(const std::uint8_t* in, std::size_t stride, const WeightPair* weights,
                       int pairs, std::size_t size, std::uint8_t* out) {
    const __m128i zero = _mm_setzero_si128();
    for (std::size_t x = 0; x < size; x += 8) {
        __m128i high[2] = {zero, zero}, low[2] = {zero, zero};
        const std::uint8_t* at = in + x;
        for (int i = 0; i < pairs; ++i, at += 2 * stride) {
            const __m128i bytes =
                _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)),
                                  _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + stride)));
            const __m128i samples[2] = {_mm_unpacklo_epi8(bytes, zero),
                                        _mm_unpackhi_epi8(bytes, zero)};
            const __m128i upper = detail::broadcast(weights[i].high);
            const __m128i lower = detail::broadcast(weights[i].low);
            for (int part = 0; part < 2; ++part) {
                high[part] = _mm_add_epi32(high[part], _mm_madd_epi16(samples[part], upper));
                low[part] = _mm_add_epi32(low[part], _mm_madd_epi16(samples[part], lower));
            }
        }
        const __m128i words = _mm_packs_epi32(detail::rounded(high[0], low[0]),
                                              detail::rounded(high[1], low[1]));
        const __m128i packed = _mm_packus_epi16(words, words);
        std::memcpy(out + x, &packed, std::min<std::size_t>(8, size - x));
    }
}

#else

namespace detail {

inline std::int32_t weight(const WeightPair& pair, int which) {
    return pair.high[which] * 2048 + pair.low[which];
}

inline std::uint8_t rounded(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> weight_bits, 0, 255));
}

}  // namespace detail

inline void weigh_pixels(const std::uint8_t* in, const WeightPair* weights, int pairs,
                         std::uint8_t* out) {
    std::int32_t sums[3];
    std::fill(sums, sums + 3, 1 << (weight_bits - 1));
    for (int i = 0; i < pairs; ++i, in += 6) {
        const std::int32_t first = detail::weight(weights[i], 0);
        const std::int32_t second = detail::weight(weights[i], 1);
        for (int c = 0; c < 3; ++c) {
            sums[c] += in[c] * first + in[3 + c] * second;
        }
    }
    std::transform(sums, sums + 3, out, detail::rounded);
}

inline void weigh_rows(const std::uint8_t* in, std::size_t stride, const WeightPair* weights,
                       int pairs, std::size_t size, std::uint8_t* out) {
    constexpr std::size_t block = 16;
    for (std::size_t x = 0; x < size; x += block) {
        std::int32_t sums[block];
        std::fill(sums, sums + block, 1 << (weight_bits - 1));
        const std::uint8_t* at = in + x;
        for (int i = 0; i < pairs; ++i, at += 2 * stride) {
            const std::int32_t first = detail::weight(weights[i], 0);
            const std::int32_t second = detail::weight(weights[i], 1);
            for (std::size_t c = 0; c < block; ++c) {
                sums[c] += at[c] * first + at[stride + c] * second;
            }
        }
        std::transform(sums, sums + std::min(block, size - x), out + x, detail::rounded);
    }
}

#endif

}  // namespace cascade::pixels
