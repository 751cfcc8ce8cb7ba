#pragma once
// The cascade's stages on their engines: every exit of every image, or early exit. In: uint8 pixels
// [B, H, W, 3]. Out: each exit's outputs, or a verdict an image. A stage takes the tokens of the one
// before it or, where another network begins, the pixels again. Spec: docs/bundle-format.md,
// "Stages", "Decision".
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "decision.h"
#include "engines/engine.h"

namespace cascade {

// Preprocessed images, one after the other.
struct Pixels {
    const std::uint8_t* data = nullptr;
    std::size_t count = 0;
    int height = 0, width = 0;

    std::size_t image_bytes() const { return std::size_t{3} * height * width; }
};

// On what a call runs: every thread at once, or one, beside others that do the same.
enum class Share { every_thread, one_thread };

constexpr std::size_t largest_batch = 32;

// How a call runs: on what, and how many images together, at most and never more than the largest.
struct Way {
    Share share = Share::every_thread;
    std::size_t most = largest_batch;
};

class Stages {
public:
    // `takes_pixels`: one an engine; the first does.
    Stages(std::vector<std::unique_ptr<Engine>> engines, std::vector<bool> takes_pixels);

    // One verdict an image; only those that did not exit go on to the next stage.
    std::vector<Verdict> forward(const Pixels& pixels, const Decision& decision,
                                 Way way = {}) const;

    // Outputs by stage and image, nothing exits early.
    std::vector<std::vector<ExitOutputs>> forward_all(const Pixels& pixels, Way way = {}) const;

    // Whether `Share::one_thread` can be asked for; what that needs is made here.
    bool divisible() const;

    // Run the batch sizes once, smallest first, for about a second: no later call pays for a first
    // time.
    void warm_up(int height, int width) const;

    std::size_t size() const { return engines_.size(); }

private:
    class Tokens;
    class Rows;
    template <typename Take>
    void run(std::size_t stage, Way way, const Rows& pixels, const Tokens& tokens,
             std::size_t count, Take take) const;
    bool hands_on(std::size_t stage) const;  // whether the next one takes its tokens

    std::vector<std::unique_ptr<Engine>> engines_;
    std::vector<bool> takes_pixels_;
};

// A batch is cut into pieces of these sizes, largest first: an engine prepares itself anew for each
// size that it meets. What is left after an exit is a few images, so every small size is there.
std::size_t piece_of(std::size_t left);

}  // namespace cascade
