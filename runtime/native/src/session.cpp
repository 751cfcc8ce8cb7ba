// Opening and answering; see session.h.
#include "session.h"

#include <algorithm>
#include <cstring>

#include "self_test.h"

namespace cascade {
namespace {

// Images that are decoded before they are run, at least and at most, and the bytes of pixels that
// decide between: an exit leaves few of a small batch, and engines are slow at few.
constexpr std::size_t least_gathered = 32, most_gathered = 128, gathered_bytes = 2 << 20;

// One more while it lives.
class Counted {
public:
    explicit Counted(std::atomic<std::size_t>& counter) : counter_(counter), count_(++counter) {}
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
    ~Counted() { --counter_; }

    std::size_t count() const { return count_; }  // with this one

private:
    std::atomic<std::size_t>& counter_;
    const std::size_t count_;
};

// How many images a thread takes at a time, `most` at most, so that all take equally many.
std::size_t share_of(std::size_t images, std::size_t threads, std::size_t most) {
    const auto rounded_up = [](std::size_t a, std::size_t b) { return (a + b - 1) / b; };
    const std::size_t turns = std::max<std::size_t>(1, rounded_up(images, threads * most));
    return std::max<std::size_t>(1, rounded_up(images, threads * turns));
}

std::string text_of(const std::vector<std::byte>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

Session::Session(const std::string& path, Options options)
    : options_(std::move(options)),
      bundle_(Bundle::open(path, options_.public_key)),
      choice_(choose_target(bundle_.manifest(), options_.target, options_.libraries)),
      engine_(engine_version(bundle_.manifest().targets.at(choice_.target), options_.libraries)),
      manifest_json_(text_of(bundle_.read(manifest_name))),
      stages_(open_stages()),
      decision_(&bundle_.manifest().decision.at(choice_.target)),
      workers_(options_.threads) {
    log(LogLevel::info, engine_ + ": " + choice_.why);
}

Stages Session::open_stages() {
    const Manifest& manifest = bundle_.manifest();
    Stages stages =
        load_stages(bundle_, choice_.target, options_.libraries, options_.threads);
    if (options_.self_test) {
        const std::vector<std::byte> golden = bundle_.read(golden_name);
        const std::size_t images = self_test(stages, manifest, choice_.target, golden);
        log(LogLevel::info, "answers " + std::to_string(images) + " golden images as recorded");
    }
    if (options_.warm_up) stages.warm_up(manifest.preprocess.height, manifest.preprocess.width);
    return stages;
}

// Where there is a batch for each thread, from one call or from several at once, each is taken by a
// thread of its own from files to answers: none waits for another at every layer.
std::vector<Answer> Session::classify(std::span<const Image> images, std::size_t most) const {
    std::vector<Answer> answers(images.size());
    const Counted call(calls_);
    const std::size_t threads = workers_.size();
    const bool enough = threads > 1 && std::max(images.size(), call.count()) >= threads;
    const bool divided = enough && stages_.divisible();
    const Way way = {divided ? Share::one_thread : Share::every_thread, most};
    const std::size_t gathered =
        std::clamp(gathered_bytes / image_bytes(), least_gathered, most_gathered);
    const std::size_t size = divided ? share_of(images.size(), threads, gathered) : gathered;
    const auto batch = [&](std::size_t index) {
        const std::size_t start = index * size, count = std::min(size, images.size() - start);
        decide(images.subspan(start, count), std::span(answers).subspan(start, count), way);
    };
    const std::size_t batches = images.empty() ? 0 : (images.size() + size - 1) / size;
    if (!divided) {
        for (std::size_t index = 0; index < batches; ++index) batch(index);
        return answers;
    }
    std::mutex lock;
    std::exception_ptr failed;  // the first of them: a worker's thread must not throw
    workers_.each(batches, [&](std::size_t index) {
        try {
            batch(index);
        } catch (...) {
            const std::lock_guard guard(lock);
            if (failed == nullptr) failed = std::current_exception();
        }
    });
    if (failed != nullptr) std::rethrow_exception(failed);
    return answers;
}

void Session::decide(std::span<const Image> images, std::span<Answer> answers, Way way) const {
    const auto started = std::chrono::steady_clock::now();
    const Preprocess& spec = manifest().preprocess;
    const std::size_t image_bytes = this->image_bytes();
    Buffer buffer = take_buffer();
    buffer.resize(images.size() * image_bytes);
    const auto place = [&](std::size_t row) {
        return std::span(buffer).subspan(row * image_bytes, image_bytes);
    };
    const auto load_one = [&](std::size_t i) { load(images[i], place(i), answers[i]); };
    if (way.share == Share::every_thread) {
        workers_.each(images.size(), load_one);
    } else {
        for (std::size_t i = 0; i < images.size(); ++i) load_one(i);
    }

    std::vector<std::size_t> readable;
    for (std::size_t i = 0; i < images.size(); ++i) {
        if (answers[i].status != Status::ok) continue;
        if (i != readable.size()) {  // close the gap that an unreadable one has left
            std::memcpy(place(readable.size()).data(), place(i).data(), image_bytes);
        }
        readable.push_back(i);
    }
    const Pixels pixels{buffer.data(), readable.size(), spec.height, spec.width};
    try {
        const std::vector<Verdict> verdicts = stages_.forward(pixels, *decision_, way);
        for (std::size_t row = 0; row < readable.size(); ++row) {
            answers[readable[row]].verdict = verdicts[row];
        }
    } catch (const std::exception& error) {
        ++metrics_.failures;
        log(LogLevel::error, error.what());
        throw;
    }
    count(answers);
    metrics_.decide.add(std::chrono::steady_clock::now() - started);
    give_back(std::move(buffer));
}

// Nothing is thrown here, by a worker's thread: whatever goes wrong is this image's.
void Session::load(const Image& image, std::span<std::uint8_t> out, Answer& answer) const {
    const Preprocess& spec = manifest().preprocess;
    try {
        if (const auto* file = std::get_if<FilePath>(&image)) {
            load_image(read_image_file(file->path, spec.max_pixels), spec, out);
        } else if (const auto* encoded = std::get_if<Encoded>(&image)) {
            load_image(*encoded, spec, out);
        } else {
            load_frame(std::get<Frame>(image), spec, out);
        }
    } catch (const std::bad_alloc&) {
        answer = {Status::image, {}, "there is not enough memory to decode it"};
    } catch (const std::exception& error) {
        answer = {Status::image, {}, error.what()};
    }
}

std::size_t Session::image_bytes() const {
    const Preprocess& spec = manifest().preprocess;
    return Pixels{nullptr, 1, spec.height, spec.width}.image_bytes();
}

void Session::count(std::span<const Answer> answers) const {
    Metrics& m = metrics_;
    m.batches.fetch_add(1, std::memory_order_relaxed);
    m.images.fetch_add(answers.size(), std::memory_order_relaxed);
    for (const Answer& answer : answers) {
        if (answer.status != Status::ok) {
            m.unreadable.fetch_add(1, std::memory_order_relaxed);
            m.reasons[6].fetch_add(1, std::memory_order_relaxed);
            continue;
        }
        const Verdict& verdict = answer.verdict;
        (verdict.label >= 0 ? m.acted : m.deferred).fetch_add(1, std::memory_order_relaxed);
        m.reasons[static_cast<std::size_t>(verdict.reason)].fetch_add(1, std::memory_order_relaxed);
        m.exits[static_cast<std::size_t>(verdict.stage)].fetch_add(1, std::memory_order_relaxed);
    }
}

std::array<bool, 2> Session::set_of(const Verdict& verdict) const {
    const bool promised = !decision_->accept.has_value() || verdict.accepted();
    return promised ? verdict.in_set : std::array{false, false};
}

void Session::log(LogLevel level, const std::string& message) const {
    if (options_.log) options_.log(level, message);
}

Session::Buffer Session::take_buffer() const {
    const std::lock_guard guard(buffers_lock_);
    if (buffers_.empty()) return {};
    Buffer buffer = std::move(buffers_.back());
    buffers_.pop_back();
    return buffer;
}

void Session::give_back(Buffer buffer) const {
    const std::lock_guard guard(buffers_lock_);
    buffers_.push_back(std::move(buffer));
}

}  // namespace cascade
