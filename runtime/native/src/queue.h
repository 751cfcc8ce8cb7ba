#pragma once
// Images that arrive one by one, decided several at a time. In: an image and whom to tell. Out: the
// answer, told by the queue's own thread. Holds at most `capacity` and refuses the next at once.
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "session.h"

namespace cascade {

class Queue {
public:
    using Done = std::function<void(const Answer&)>;  // must not throw

    explicit Queue(const Session& session);
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;
    ~Queue();  // answers what waits, then ends

    // False: it is full, and `done` will not be called.
    bool submit(const Image& image, Done done);

    std::size_t waiting() const;

private:
    using Clock = std::chrono::steady_clock;
    struct Item {
        Image image;
        Done done;
        Clock::time_point since;
    };

    void loop();
    std::vector<Item> next_batch();
    void answer(std::vector<Item> batch);

    const Session& session_;
    const std::size_t capacity_, max_batch_;
    const Clock::duration max_delay_;
    mutable std::mutex lock_;
    std::condition_variable wake_;
    std::deque<Item> items_;
    bool ending_ = false;
    std::thread thread_;  // begins with the first image
};

}  // namespace cascade
