// See workers.h. A task is a count of indices that is drawn from until it is used up; a caller
// draws from its own, so that it never waits for work that nobody has begun.
#include "workers.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace cascade {

struct Workers::Task {
    Task(std::size_t count, const std::function<void(std::size_t)>& work)
        : count(count), work(work) {}

    // Draw until nothing is left; the one that finishes the last index says so.
    void run() {
        for (std::size_t index = next++; index < count; index = next++) {
            work(index);
            if (++done == count) done.notify_all();
        }
    }
    void wait() {
        for (std::size_t seen = done; seen != count; seen = done) done.wait(seen);
    }

    const std::size_t count;
    const std::function<void(std::size_t)>& work;  // not touched once `count` indices are drawn
    std::atomic<std::size_t> next = 0, done = 0;
};

Workers::Workers(unsigned threads) {
    const unsigned wanted = threads != 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
    try {
        for (unsigned i = 1; i < wanted; ++i) threads_.emplace_back([this] { loop(); });
    } catch (...) {
        end();  // a thread that nobody joins would end the process
        throw;
    }
}

Workers::~Workers() { end(); }

void Workers::end() {
    {
        const std::lock_guard guard(lock_);
        ending_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Workers::each(std::size_t count, const std::function<void(std::size_t)>& work) {
    if (count == 0) return;
    const auto task = std::make_shared<Task>(count, work);
    const std::size_t helpers = std::min(count - 1, threads_.size());
    if (helpers > 0) {
        const std::lock_guard guard(lock_);
        tasks_.insert(tasks_.end(), helpers, task);
    }
    for (std::size_t i = 0; i < helpers; ++i) wake_.notify_one();
    task->run();
    task->wait();
}

void Workers::loop() {
    for (;;) {
        std::shared_ptr<Task> task;
        {
            std::unique_lock guard(lock_);
            wake_.wait(guard, [this] { return ending_ || !tasks_.empty(); });
            if (tasks_.empty()) return;
            task = std::move(tasks_.front());
            tasks_.pop_front();
        }
        task->run();
    }
}

}  // namespace cascade
