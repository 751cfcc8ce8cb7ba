#pragma once
// A few threads that share the decoding of a batch. In: how many things there are to do, and what
// to do with each. Out: when `each` comes back, all of it is done. Several callers may use one.
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace cascade {

class Workers {
public:
    // `threads` counts the caller's own; 0: every core. Throws std::system_error where the machine
    // has none left to give.
    explicit Workers(unsigned threads);
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;
    ~Workers();

    // `work(index)` for each index below `count`, by the caller and whoever is idle; must not throw.
    void each(std::size_t count, const std::function<void(std::size_t)>& work);

    // How many, the caller's own included.
    std::size_t size() const { return threads_.size() + 1; }

private:
    struct Task;
    void loop();
    void end();

    std::mutex lock_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<Task>> tasks_;
    bool ending_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace cascade
