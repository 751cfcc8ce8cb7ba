// Frames as a camera gives them, submitted one by one and answered together: C++ over the C API.
//
//     classify_cpp BUNDLE WIDTH HEIGHT FRAMES.rgb
//
// The file holds raw RGB frames, one after the other. One line a frame.
#include <cascade/cascade.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

void check(cascade_status status) {
    if (status != CASCADE_OK) throw std::runtime_error(cascade_last_error());
}

using Session = std::unique_ptr<cascade_session, decltype(&cascade_close)>;

Session open(const char* path) {
    cascade_options options;
    check(cascade_default_options(&options, sizeof options));
    options.max_batch = 8;
    options.max_delay_us = 5000;
    cascade_session* session = nullptr;
    check(cascade_open(path, &options, &session));
    return Session(session, cascade_close);
}

// Where one answer goes; `done` is called by a thread of the session.
struct Answer {
    std::atomic<bool> ready = false;
    std::string text;

    static void done(const cascade_result* result, void* user) {
        auto* answer = static_cast<Answer*>(user);
        answer->text = result->status == CASCADE_OK ? cascade_reason_text(result->reason)
                                                    : result->message;
        if (result->decision >= 0) answer->text += " on class " + std::to_string(result->decision);
        answer->ready = true;
        answer->ready.notify_one();
    }
};

int run(char** argv) {
    const Session session = open(argv[1]);
    const auto width = static_cast<std::uint32_t>(std::stoul(argv[2]));
    const auto height = static_cast<std::uint32_t>(std::stoul(argv[3]));
    std::ifstream file(argv[4], std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const std::size_t size = std::size_t{3} * width * height;
    if (size == 0 || bytes.size() < size) throw std::runtime_error("there is no whole frame");

    std::vector<Answer> answers(bytes.size() / size);
    for (std::size_t i = 0; i < answers.size(); ++i) {
        const cascade_image frame =
            cascade_frame(CASCADE_RGB, width, height, bytes.data() + i * size, size);
        while (true) {
            const cascade_status status =
                cascade_submit(session.get(), &frame, Answer::done, &answers[i]);
            if (status == CASCADE_OK) break;
            if (status != CASCADE_BUSY) check(status);
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // a camera would drop it
        }
    }
    for (std::size_t i = 0; i < answers.size(); ++i) {
        answers[i].ready.wait(false);
        std::printf("frame %zu: %s\n", i, answers[i].text.c_str());
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s BUNDLE WIDTH HEIGHT FRAMES.rgb\n", argv[0]);
        return CASCADE_USAGE;
    }
    try {
        return run(argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
