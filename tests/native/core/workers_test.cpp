// Work shared among threads, and the histogram that several write to.
#include "workers.h"

#include <gtest/gtest.h>

#include <sys/resource.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <system_error>

#include "metrics.h"

using namespace cascade;

namespace {

TEST(Workers, each_index_is_done_once_before_it_comes_back) {
    Workers workers(4);
    for (std::size_t count : {0u, 1u, 3u, 100u}) {
        std::vector<std::atomic<int>> done(count);
        workers.each(count, [&](std::size_t index) { ++done[index]; });
        for (const auto& times : done) EXPECT_EQ(times, 1);
    }
}

TEST(Workers, several_callers_share_them) {
    Workers workers(3);
    std::vector<std::thread> callers;
    std::atomic<std::size_t> total = 0;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int round = 0; round < 200; ++round) {
                workers.each(7, [&](std::size_t) { ++total; });
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(total, 4u * 200u * 7u);
}

// Address space for a few stacks and no more, in a process of its own.
[[noreturn]] void ask_for_more_threads_than_there_are() {
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t limit = pages * 4096 + (rlim_t{64} << 20);
    const rlimit both{limit, limit};
    setrlimit(RLIMIT_AS, &both);
    try {
        Workers workers(1000);
    } catch (const std::system_error&) {
        std::_Exit(0);
    }
    std::_Exit(1);
}

TEST(Workers, a_thread_that_cannot_be_started_is_an_error_and_not_the_end_of_the_process) {
#if defined(CASCADE_SANITIZED)
    GTEST_SKIP() << "a sanitizer needs more address space than is left here";
#endif
    EXPECT_EXIT(ask_for_more_threads_than_there_are(), testing::ExitedWithCode(0), "");
}

TEST(Histogram, a_duration_lies_below_its_bound_and_above_the_one_before) {
    for (const double us : {0.2, 1.0, 1.5, 10.0, 999.0, 1e6, 1e12}) {
        Histogram histogram;
        histogram.add(std::chrono::duration_cast<Duration>(
            std::chrono::duration<double, std::micro>(us)));
        for (std::size_t i = 0; i < Histogram::buckets; ++i) {
            if (histogram.in[i] == 0) continue;
            EXPECT_LE(us, Histogram::bound_us(i));
            EXPECT_GT(us, i == 0 ? 0.0 : Histogram::bound_us(i - 1));
        }
        EXPECT_EQ(histogram.count, 1u);
    }
    EXPECT_TRUE(std::isinf(Histogram::bound_us(Histogram::buckets - 1)));
}

}  // namespace
