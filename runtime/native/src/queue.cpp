// Micro-batching and back-pressure; see queue.h.
#include "queue.h"

#include <algorithm>

namespace cascade {

Queue::Queue(const Session& session)
    : session_(session),
      capacity_(session.options().queue_capacity),
      max_batch_(session.options().max_batch),
      max_delay_(std::chrono::microseconds(session.options().max_delay_us)) {}

Queue::~Queue() {
    {
        const std::lock_guard guard(lock_);
        ending_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
}

bool Queue::submit(const Image& image, Done done) {
    {
        const std::lock_guard guard(lock_);
        if (items_.size() >= capacity_) {
            session_.metrics().refused.fetch_add(1, std::memory_order_relaxed);
            return false;
        }
        if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
        items_.push_back({image, std::move(done), Clock::now()});
    }
    wake_.notify_one();
    return true;
}

std::size_t Queue::waiting() const {
    const std::lock_guard guard(lock_);
    return items_.size();
}

void Queue::loop() {
    for (;;) {
        std::vector<Item> batch = next_batch();
        if (batch.empty()) return;
        answer(std::move(batch));
    }
}

// Waits for the first image, then, until that has waited `max_delay`, for more. Empty: it ends.
std::vector<Queue::Item> Queue::next_batch() {
    std::unique_lock guard(lock_);
    wake_.wait(guard, [this] { return ending_ || !items_.empty(); });
    if (items_.empty()) return {};
    wake_.wait_until(guard, items_.front().since + max_delay_,
                     [this] { return ending_ || items_.size() >= max_batch_; });
    const auto end = items_.begin() + static_cast<std::ptrdiff_t>(std::min(max_batch_, items_.size()));
    std::vector<Item> batch(std::make_move_iterator(items_.begin()), std::make_move_iterator(end));
    items_.erase(items_.begin(), end);
    return batch;
}

void Queue::answer(std::vector<Item> batch) {
    std::vector<Answer> answers;
    try {
        std::vector<Image> images;
        for (const Item& item : batch) images.push_back(item.image);
        answers = session_.classify(images);
    } catch (const std::exception& error) {
        answers.assign(batch.size(), {Status::failure, {}, error.what()});
    }
    for (std::size_t i = 0; i < batch.size(); ++i) {
        session_.metrics().submitted.add(Clock::now() - batch[i].since);
        batch[i].done(answers[i]);
    }
}

}  // namespace cascade
