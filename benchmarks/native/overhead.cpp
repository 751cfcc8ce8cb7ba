// What libcascade costs beyond the engine that it runs. In: a bundle and a target. Out, on stdout:
// one JSON object.
//
//     cascade_overhead pairs BUNDLE TARGET THREADS SECONDS PIXELS FIRST
//         Batch 1: `cascade_classify` on a frame, and the same engines called for the same stages
//         with nothing around them, in turns. PIXELS is a file of uint8 [N, H, W, 3]. FIRST, bare or
//         cascade, is loaded first: where an engine's memory comes to lie is worth a few percent.
//         {"bare_s": [...], "cascade_s": [...]}, a number a pass over all images
//     cascade_overhead open BUNDLE TARGET THREADS IMAGE
//         {"open_s", "first_decision_s", "resident_mib", "stage"}, times from the start of main;
//         memory is that after one image and then a batch of it; the exit that was final for it
//     cascade_overhead bare BUNDLE TARGET THREADS STAGE
//         {"resident_mib"} of a process that has only loaded the engines and run those up to STAGE
//         on the same batches
#include <cascade/cascade.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "engines/engine.h"
#include "target.h"

namespace {

constexpr std::size_t batch_size = 32;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

void need(cascade_status status) {
    if (status != CASCADE_OK) throw std::runtime_error(cascade_last_error());
}

double resident_mib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with("VmRSS:")) return std::stod(line.substr(6)) / 1024;
    }
    return 0;
}

class Session {
public:
    Session(const char* bundle, const char* target, unsigned threads) {
        cascade_options options;
        need(cascade_default_options(&options, sizeof options));
        options.target = target;
        options.threads = threads;
        options.warm_up = 0;
        need(cascade_open(bundle, &options, &session_));
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() { cascade_close(session_); }

    cascade_info info() const {
        cascade_info found = {};
        found.struct_size = sizeof found;
        need(cascade_get_info(session_, &found));
        return found;
    }

    cascade_result classify(const cascade_image& image, std::size_t copies = 1) const {
        const std::vector<cascade_image> images(copies, image);
        std::vector<cascade_result> results(copies);
        results.front().struct_size = sizeof(cascade_result);
        need(cascade_classify(session_, images.data(), copies, results.data()));
        if (results.front().status != CASCADE_OK) throw std::runtime_error(results.front().message);
        return results.front();
    }

private:
    cascade_session* session_ = nullptr;
};

// The engines and no more: a stage is one call of its library.
class Bare {
public:
    Bare(const char* path, const char* target, unsigned threads) {
        const cascade::Bundle bundle = cascade::Bundle::open(path);
        const cascade::Manifest& manifest = bundle.manifest();
        height_ = manifest.preprocess.height;
        width_ = manifest.preprocess.width;
        for (const std::string& input : cascade::stage_inputs(manifest.stages)) {
            takes_pixels_.push_back(input == "pixels");
        }
        engines_ = cascade::load_engines(bundle, target, {}, threads);
    }

    // `count` images through the stages up to and with `last`.
    void run(const std::uint8_t* pixels, std::size_t last, std::int64_t count = 1) const {
        cascade::Outputs outputs;
        for (std::size_t stage = 0; stage <= last; ++stage) {
            cascade::Batch batch;
            if (takes_pixels_[stage]) {
                batch = {pixels, cascade::Element::uint8, {count, height_, width_, 3}};
            } else {
                batch = {outputs.tokens.data, cascade::Element::float32, outputs.tokens.shape};
            }
            outputs = engines_[stage]->run(batch);
        }
    }

    std::size_t image_bytes() const { return std::size_t{3} * height_ * width_; }

private:
    std::vector<std::unique_ptr<cascade::Engine>> engines_;
    std::vector<bool> takes_pixels_;
    int height_ = 0, width_ = 0;
};

std::vector<std::uint8_t> bytes_of(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void print(const char* name, const std::vector<double>& values) {
    std::printf("\"%s\": [", name);
    for (std::size_t i = 0; i < values.size(); ++i) std::printf(i ? ", %.9f" : "%.9f", values[i]);
    std::printf("]");
}

void pairs(const char* bundle, const char* target, unsigned threads, double seconds,
           const char* file, bool bare_first) {
    std::optional<Bare> loaded;
    if (bare_first) loaded.emplace(bundle, target, threads);
    const Session session(bundle, target, threads);
    if (!bare_first) loaded.emplace(bundle, target, threads);
    const Bare& bare = *loaded;
    const cascade_info info = session.info();
    const std::vector<std::uint8_t> pixels = bytes_of(file);
    const std::size_t count = pixels.size() / bare.image_bytes();
    if (count == 0) throw std::runtime_error(std::string(file) + " has no image");
    std::vector<cascade_image> frames;
    std::vector<std::size_t> last;
    for (std::size_t i = 0; i < count; ++i) {
        frames.push_back(cascade_frame(CASCADE_RGB, info.width, info.height,
                                       &pixels[i * bare.image_bytes()], bare.image_bytes()));
        last.push_back(static_cast<std::size_t>(session.classify(frames.back()).stage));
        bare.run(&pixels[i * bare.image_bytes()], last.back());
    }
    std::vector<double> bare_s, cascade_s;
    const Clock::time_point start = Clock::now();
    while (bare_s.size() < 8 || seconds_since(start) < seconds) {
        double sums[2] = {};
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t turn = 0; turn < 2; ++turn) {
                const std::size_t side = (turn + i + bare_s.size()) % 2;
                const Clock::time_point began = Clock::now();
                if (side == 0) {
                    bare.run(&pixels[i * bare.image_bytes()], last[i]);
                } else {
                    session.classify(frames[i]);
                }
                sums[side] += seconds_since(began);
            }
        }
        bare_s.push_back(sums[0]);
        cascade_s.push_back(sums[1]);
    }
    std::printf("{");
    print("bare_s", bare_s);
    std::printf(", ");
    print("cascade_s", cascade_s);
    std::printf("}\n");
}

void open(Clock::time_point start, const char* bundle, const char* target, unsigned threads,
          const char* file) {
    const Session session(bundle, target, threads);
    const double opened = seconds_since(start);
    const cascade_result result = session.classify(cascade_file(file));
    const double decided = seconds_since(start);
    session.classify(cascade_file(file), batch_size);
    std::printf(
        "{\"open_s\": %.6f, \"first_decision_s\": %.6f, \"resident_mib\": %.3f, \"stage\": %d}\n",
        opened, decided, resident_mib(), result.stage);
}

void bare(const char* bundle, const char* target, unsigned threads, int stage) {
    const Bare engines(bundle, target, threads);
    if (stage < 0) throw std::runtime_error("STAGE is an exit, from 0");
    const std::vector<std::uint8_t> black(batch_size * engines.image_bytes());
    engines.run(black.data(), static_cast<std::size_t>(stage));
    engines.run(black.data(), static_cast<std::size_t>(stage), batch_size);
    std::printf("{\"resident_mib\": %.3f}\n", resident_mib());
}

}  // namespace

int main(int argc, char** argv) {
    const Clock::time_point start = Clock::now();
    const std::string verb = argc > 1 ? argv[1] : "";
    try {
        const unsigned threads = argc > 4 ? static_cast<unsigned>(std::atoi(argv[4])) : 0;
        if (verb == "pairs" && argc == 8) {
            const bool bare_first = std::string(argv[7]) == "bare";
            pairs(argv[2], argv[3], threads, std::atof(argv[5]), argv[6], bare_first);
        } else if (verb == "open" && argc == 6) {
            open(start, argv[2], argv[3], threads, argv[5]);
        } else if (verb == "bare" && argc == 6) {
            bare(argv[2], argv[3], threads, std::atoi(argv[5]));
        } else {
            std::fprintf(stderr, "usage: cascade_overhead pairs|open|bare BUNDLE TARGET THREADS ...\n");
            return 2;
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
