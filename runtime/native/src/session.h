#pragma once
// A bundle on one of its targets, ready to answer. In: a path and options; images as files, bytes
// or frames. Out: one `Answer` an image, unreadable ones included, in their order. Does not change
// once it is open, but for its counters; any number of threads may share it.
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "bundle/bundle.h"
#include "error.h"
#include "metrics.h"
#include "pixels/pixels.h"
#include "target.h"
#include "workers.h"

namespace cascade {

enum class LogLevel { info = 0, warning = 1, error = 2 };
using Log = std::function<void(LogLevel, const std::string&)>;

struct Options {
    std::string target = "auto";
    std::string public_key;  // empty: no signature is asked for
    unsigned threads = 0;    // 0: every core
    bool self_test = false;
    bool warm_up = true;
    unsigned max_batch = 32, max_delay_us = 2000, queue_capacity = 256;
    Libraries libraries;
    Log log;
};

struct FilePath {
    const char* path;
};
using Encoded = std::span<const std::byte>;
using Image = std::variant<FilePath, Encoded, Frame>;

// What became of one image; `message` says why it could not be read.
struct Answer {
    Status status = Status::ok;
    Verdict verdict;
    std::string message;
};

class Session {
public:
    // Verify, choose, load, and on request test and warm up. Throws Error.
    Session(const std::string& path, Options options);

    // At most `most` go through an engine together. Throws Error(failure) where an engine fails; an
    // unreadable image fails alone.
    std::vector<Answer> classify(std::span<const Image> images,
                                 std::size_t most = largest_batch) const;

    // The prediction set of an answer that a promise is about: under SCRC, none unless accepted.
    std::array<bool, 2> set_of(const Verdict& verdict) const;

    const Manifest& manifest() const { return bundle_.manifest(); }
    const Certificate& certificate() const { return manifest().certificates.at(choice_.target); }
    const std::optional<std::string>& signer() const { return bundle_.signer(); }
    const std::string& manifest_json() const { return manifest_json_; }
    const std::string& target() const { return choice_.target; }
    const std::string& why() const { return choice_.why; }
    const std::string& engine() const { return engine_; }
    const Options& options() const { return options_; }
    Metrics& metrics() const { return metrics_; }
    void log(LogLevel level, const std::string& message) const;

private:
    using Buffer = std::vector<std::uint8_t>;

    Stages open_stages();
    void decide(std::span<const Image> images, std::span<Answer> answers, Way way) const;
    void load(const Image& image, std::span<std::uint8_t> out, Answer& answer) const;
    std::size_t image_bytes() const;  // of one that is preprocessed
    void count(std::span<const Answer> answers) const;
    Buffer take_buffer() const;
    void give_back(Buffer buffer) const;

    Options options_;
    Bundle bundle_;
    Choice choice_;
    std::string engine_, manifest_json_;
    Stages stages_;
    const Decision* decision_;
    mutable Workers workers_;
    mutable std::atomic<std::size_t> calls_ = 0;  // of `classify`, now
    mutable Metrics metrics_;
    mutable std::mutex buffers_lock_;
    mutable std::vector<Buffer> buffers_;  // idle ones: as many as there were calls at once
};

}  // namespace cascade
