// See metrics.h. Relaxed order throughout: each number is exact, together they are of no one moment.
#include "metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cascade {

double Histogram::bound_us(std::size_t index) {
    if (index + 1 >= buckets) return std::numeric_limits<double>::infinity();
    return std::exp2(static_cast<double>(index) / 2);
}

void Histogram::add(Duration duration) {
    static const std::array<double, buckets> bounds = [] {
        std::array<double, buckets> made;
        for (std::size_t i = 0; i < buckets; ++i) made[i] = bound_us(i);
        return made;
    }();
    const double us = std::chrono::duration<double, std::micro>(duration).count();
    const auto bucket = std::lower_bound(bounds.begin(), bounds.end() - 1, us) - bounds.begin();
    in[static_cast<std::size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
    sum_us.fetch_add(static_cast<std::uint64_t>(std::llround(us)), std::memory_order_relaxed);
    count.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace cascade
