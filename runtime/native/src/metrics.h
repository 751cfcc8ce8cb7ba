#pragma once
// What a session has done so far. In: each answer, each batch and how long it took. Out: counters
// and two histograms, readable at any time while others write.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace cascade {

using Counter = std::atomic<std::uint64_t>;
using Duration = std::chrono::steady_clock::duration;

class Histogram {
public:
    static constexpr std::size_t buckets = 56;

    void add(Duration duration);
    // Upper bound of a bucket in microseconds: 2^(index/2), the last one's infinite.
    static double bound_us(std::size_t index);

    Counter count = 0, sum_us = 0;
    std::array<Counter, buckets> in = {};
};

struct Metrics {
    Counter images = 0, acted = 0, deferred = 0, unreadable = 0;
    Counter refused = 0, failures = 0, batches = 0;
    std::array<Counter, 8> reasons = {};
    std::array<Counter, 128> exits = {};
    Histogram decide, submitted;
};

}  // namespace cascade
