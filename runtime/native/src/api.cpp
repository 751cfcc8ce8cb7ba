// The C boundary: cascade.h on a Session and its Queue. In: what a caller passes, which is checked
// before it is believed. Out: a status; whatever is thrown inside ends here, as this thread's error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>

#include "cascade/cascade.h"
#include "copy_struct.h"
#include "images.h"
#include "queue.h"
#include "session.h"

struct cascade_session {
    cascade_session(const char* path, cascade::Options options)
        : session(path, std::move(options)), queue(session) {}

    cascade::Session session;
    cascade::Queue queue;  // ends before the session does
};

namespace cascade {
namespace {

thread_local std::string last_error;

// Runs a call's body; the only place where an exception becomes a status.
template <typename Body>
cascade_status guarded(Body body) noexcept {
    Status status = Status::failure;
    try {
        try {
            body();
            return CASCADE_OK;
        } catch (const Error& error) {
            status = error.status;
            last_error = error.what();
        } catch (const std::bad_alloc&) {
            last_error = "there is not enough memory";
        } catch (const std::exception& error) {
            last_error = error.what();
        }
    } catch (...) {
        // No memory for the message either: the status has to do.
    }
    return static_cast<cascade_status>(status);
}

void need(bool given, const char* what) {
    if (!given) throw Error(Status::usage, std::string(what) + " is null");
}

Options options_of(const cascade_options* given) {
    cascade_options plain = default_options();
    if (given != nullptr) copy_in(*given, plain, "cascade_options");
    Options options;
    const auto text = [](const char* value) { return value == nullptr ? "" : value; };
    if (plain.target != nullptr) options.target = plain.target;
    options.public_key = text(plain.public_key);
    options.threads = plain.threads;
    options.self_test = plain.self_test != 0;
    options.warm_up = plain.warm_up != 0;
    options.max_batch = plain.max_batch;
    options.max_delay_us = plain.max_delay_us;
    options.queue_capacity = plain.queue_capacity;
    options.libraries = {text(plain.onnxruntime_library), text(plain.openvino_library),
                         text(plain.tensorrt_library)};
    if (plain.log != nullptr) {
        options.log = [log = plain.log, user = plain.log_user](LogLevel level,
                                                               const std::string& message) {
            log(static_cast<cascade_log_level>(level), message.c_str(), user);
        };
    }
    const auto within = [](const char* name, std::uint32_t value, std::uint32_t least,
                           std::uint32_t most) {
        if (value >= least && value <= most) return;
        throw Error(Status::usage, std::string("cascade_options.") + name + " is " +
                                       std::to_string(value) + ", must be " +
                                       std::to_string(least) + " to " + std::to_string(most));
    };
    within("threads", options.threads, 0, 4096);
    within("max_batch", options.max_batch, 1, 4096);
    within("max_delay_us", options.max_delay_us, 0, 60'000'000);
    within("queue_capacity", options.queue_capacity, 1, 1u << 20);
    return options;
}

// An answer as the caller's structure, or as much of it as the caller knows.
cascade_result result_of(const Session& session, const Answer& answer) {
    cascade_result result = {};
    result.struct_size = sizeof result;
    result.status = static_cast<cascade_status>(answer.status);
    result.decision = -1;
    result.stage = -1;
    result.reason = CASCADE_UNREADABLE;
    result.p = result.score = std::numeric_limits<double>::quiet_NaN();
    std::snprintf(result.message, sizeof result.message, "%s", answer.message.c_str());
    if (answer.status != Status::ok) return result;
    const Verdict& verdict = answer.verdict;
    const auto set = session.set_of(verdict);
    result.decision = verdict.label;
    result.stage = verdict.stage;
    result.reason = static_cast<cascade_reason>(verdict.reason);
    result.set = (set[0] ? 1u : 0u) | (set[1] ? 2u : 0u);
    result.p = sigmoid(verdict.margin);
    result.score = sigmoid(verdict.score_logit);
    return result;
}

void fill(const Histogram& from, cascade_histogram& to) {
    to.count = from.count;
    to.sum_us = from.sum_us;
    for (std::size_t i = 0; i < Histogram::buckets; ++i) to.buckets[i] = from.in[i];
}

static_assert(Histogram::buckets == CASCADE_BUCKETS);
static_assert(std::tuple_size_v<decltype(Metrics::exits)> == CASCADE_MAX_STAGES + 1);

}  // namespace
}  // namespace cascade

using namespace cascade;

extern "C" {

uint32_t cascade_abi_version(void) { return CASCADE_ABI_VERSION; }

const char* cascade_version(void) { return CASCADE_VERSION; }

const char* cascade_last_error(void) { return last_error.c_str(); }

size_t cascade_copy_last_error(char* buffer, size_t size) {
    if (buffer != nullptr && size > 0) std::snprintf(buffer, size, "%s", last_error.c_str());
    return last_error.size();
}

cascade_status cascade_default_options(cascade_options* options, size_t struct_size) {
    return guarded([&] {
        need(options != nullptr, "options");
        options->struct_size = struct_size;
        copy_out(default_options(), *options, "cascade_options");
    });
}

cascade_status cascade_open(const char* path, const cascade_options* options,
                            cascade_session** session) {
    if (session != nullptr) *session = nullptr;
    return guarded([&] {
        need(path != nullptr, "path");
        need(session != nullptr, "session");
        *session = new cascade_session(path, options_of(options));
    });
}

void cascade_close(cascade_session* session) { delete session; }

cascade_status cascade_get_info(const cascade_session* session, cascade_info* info) {
    return guarded([&] {
        need(session != nullptr, "session");
        need(info != nullptr, "info");
        const Session& from = session->session;
        const Manifest& manifest = from.manifest();
        const Certificate& certificate = from.certificate();
        cascade_info found = {};
        found.target = from.target().c_str();
        found.why = from.why().c_str();
        found.engine = from.engine().c_str();
        found.manifest_json = from.manifest_json().c_str();
        found.classes[0] = manifest.model.classes[0].c_str();
        found.classes[1] = manifest.model.classes[1].c_str();
        found.signer = from.signer().has_value() ? from.signer()->c_str() : nullptr;
        found.promise = certificate.promise.c_str();
        found.certified = certificate.status == "CERTIFIED" ? 1 : 0;
        found.stages = static_cast<std::uint32_t>(manifest.stages.size());
        found.height = static_cast<std::uint32_t>(manifest.preprocess.height);
        found.width = static_cast<std::uint32_t>(manifest.preprocess.width);
        found.alpha = certificate.alpha;
        found.delta = certificate.delta.value_or(std::numeric_limits<double>::quiet_NaN());
        found.coverage_lower = certificate.coverage_lower;
        copy_out(found, *info, "cascade_info");
    });
}

const char* cascade_class_name(const cascade_session* session, int32_t label) {
    if (session == nullptr || label < 0 || label > 1) return nullptr;
    return session->session.manifest().model.classes[static_cast<std::size_t>(label)].c_str();
}

cascade_status cascade_classify(const cascade_session* session, const cascade_image* images,
                                size_t count, cascade_result* results) {
    return cascade_classify_batches(session, images, count, largest_batch, results);
}

cascade_status cascade_classify_batches(const cascade_session* session, const cascade_image* images,
                                        size_t count, size_t max_batch, cascade_result* results) {
    return guarded([&] {
        if (max_batch == 0) throw Error(Status::usage, "max_batch is 0, must be at least 1");
        need(session != nullptr, "session");
        if (count == 0) return;
        need(images != nullptr, "images");
        need(results != nullptr, "results");
        check_size<cascade_result>(results->struct_size, "cascade_result");
        const std::vector<Answer> answers =
            session->session.classify(images_of(images, count), max_batch);
        const size_t stride = results->struct_size;
        auto* place = reinterpret_cast<unsigned char*>(results);
        for (const Answer& answer : answers) {
            auto* result = reinterpret_cast<cascade_result*>(place);
            result->struct_size = stride;
            copy_out(result_of(session->session, answer), *result, "cascade_result");
            place += stride;
        }
    });
}

const char* cascade_reason_text(cascade_reason reason) {
    static constexpr const char* texts[] = {"acted",      "below threshold", "ambiguous", "empty set",
                                            "not finite", "not accepted",    "unreadable"};
    return reason >= CASCADE_ACTED && reason <= CASCADE_UNREADABLE ? texts[reason] : "unknown";
}

cascade_status cascade_submit(cascade_session* session, const cascade_image* image,
                              cascade_done_function done, void* user) {
    return guarded([&] {
        need(session != nullptr, "session");
        need(image != nullptr, "image");
        need(done != nullptr, "done");
        const Session& owner = session->session;
        const bool taken = session->queue.submit(
            images_of(image, 1).front(), [&owner, done, user](const Answer& answer) {
                const cascade_result result = result_of(owner, answer);
                done(&result, user);
            });
        if (!taken) {
            throw Error(Status::busy,
                        "the queue is full: " + std::to_string(owner.options().queue_capacity) +
                            " images wait already; try again, or drop this one");
        }
    });
}

cascade_status cascade_get_stats(const cascade_session* session, cascade_stats* stats) {
    return guarded([&] {
        need(session != nullptr, "session");
        need(stats != nullptr, "stats");
        const Metrics& from = session->session.metrics();
        cascade_stats found = {};
        found.images = from.images;
        found.acted = from.acted;
        found.deferred = from.deferred;
        found.unreadable = from.unreadable;
        found.refused = from.refused;
        found.failures = from.failures;
        found.batches = from.batches;
        found.queued = session->queue.waiting();
        std::copy(from.reasons.begin(), from.reasons.end(), found.reasons);
        std::copy(from.exits.begin(), from.exits.end(), found.exits);
        fill(from.decide, found.decide);
        fill(from.submitted, found.submitted);
        copy_out(found, *stats, "cascade_stats");
    });
}

double cascade_bucket_bound_us(uint32_t index) { return Histogram::bound_us(index); }

}  // extern "C"
