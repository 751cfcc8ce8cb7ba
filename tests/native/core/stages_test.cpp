// Stages on engines of our own: which images go on, in which pieces, and what is refused.
#include "stages.h"

#include <gtest/gtest.h>

#include <numeric>

#include "error.h"

using namespace cascade;

namespace {

// Reads an image's first byte v: logits (0, v), gate v - 100, tokens (v, v + 1); a later stage reads
// the first token as v. Remembers the batch sizes that it was given.
class Fake : public Engine {
public:
    explicit Fake(std::vector<std::size_t>& seen) : seen_(seen) {}

    Outputs run(const Batch& batch) override {
        seen_.push_back(batch.size());
        auto memory = std::make_shared<std::vector<float>>();
        const std::size_t size = batch.size();
        const std::size_t width = size == 1 ? lone_tokens : 2;  // of an image's tokens
        memory->resize((3 + width) * size);
        float* logits = memory->data();
        float* gate = logits + 2 * size;
        float* tokens = gate + size;
        for (std::size_t row = 0; row < size; ++row) {
            const float v = value(batch, row);
            logits[2 * row + 1] = v;
            gate[row] = v - 100;
            tokens[width * row] = v;
            tokens[width * row + 1] = v + 1;
        }
        const auto b = static_cast<std::int64_t>(size);
        const auto w = static_cast<std::int64_t>(width);
        return {{logits, {b, logits_width}, true}, {gate, {b}, true}, {tokens, {b, 1, w}, true},
                memory};
    }

    std::int64_t logits_width = 2;
    std::size_t lone_tokens = 2;  // of an image that runs alone

private:
    static float value(const Batch& batch, std::size_t row) {
        if (batch.element == Element::float32) return static_cast<const float*>(batch.data)[2 * row];
        const std::size_t image = static_cast<std::size_t>(batch.shape[1] * batch.shape[2] * 3);
        return static_cast<const std::uint8_t*>(batch.data)[row * image];
    }
    std::vector<std::size_t>& seen_;
};

struct Cascade {
    explicit Cascade(std::vector<bool> takes_pixels, std::int64_t logits_width = 2,
                     std::size_t lone_tokens = 2)
        : seen(takes_pixels.size()) {
        std::vector<std::unique_ptr<Engine>> engines;
        for (auto& sizes : seen) {
            auto engine = std::make_unique<Fake>(sizes);
            engine->logits_width = logits_width;
            engine->lone_tokens = lone_tokens;
            engines.push_back(std::move(engine));
        }
        stages.emplace(std::move(engines), takes_pixels);
    }
    std::vector<std::vector<std::size_t>> seen;
    std::optional<Stages> stages;
};

std::vector<std::uint8_t> images(const std::vector<int>& values) {
    std::vector<std::uint8_t> bytes;
    for (const int value : values) bytes.insert(bytes.end(), 12, static_cast<std::uint8_t>(value));
    return bytes;
}

// The first exit answers where v >= 150, the second where v >= 120.
Decision rule() {
    Decision decision;
    decision.policy = "gate";
    decision.exits = {{"gate", 1, 0, 1, 50.0f}, {"gate", 1, 0, 1, 20.0f}};
    return decision;
}

std::vector<Verdict> forward(const Cascade& cascade, const std::vector<int>& values) {
    const auto bytes = images(values);
    return cascade.stages->forward({bytes.data(), values.size(), 2, 2}, rule());
}

TEST(Stages, only_images_that_did_not_exit_go_on) {
    for (const bool pixels_again : {false, true}) {
        const Cascade cascade({true, pixels_again});
        const auto verdicts = forward(cascade, {200, 110, 130, 255, 125});
        std::vector<int> stages, labels;
        for (const Verdict& verdict : verdicts) {
            stages.push_back(verdict.stage);
            labels.push_back(verdict.label);
        }
        EXPECT_EQ(stages, (std::vector<int>{0, 1, 1, 0, 1}));
        EXPECT_EQ(labels, (std::vector<int>{1, -1, 1, 1, 1}));
        EXPECT_EQ(cascade.seen[0], (std::vector<std::size_t>{5}));
        EXPECT_EQ(cascade.seen[1], (std::vector<std::size_t>{3}));
        EXPECT_EQ(verdicts[4].margin, 125.0f) << "the row of its own";
    }
}

TEST(Stages, a_batch_of_any_size_is_cut_into_the_known_pieces) {
    const Cascade cascade({true, false});
    std::vector<int> values(75);
    std::iota(values.begin(), values.end(), 101);
    const auto verdicts = forward(cascade, values);
    EXPECT_EQ(cascade.seen[0], (std::vector<std::size_t>{32, 32, 8, 3}));
    EXPECT_EQ(cascade.seen[1], (std::vector<std::size_t>{32, 16, 1}));
    for (std::size_t i = 0; i < values.size(); ++i) {
        EXPECT_EQ(verdicts[i].margin, static_cast<float>(values[i]));
    }
}

TEST(Stages, no_more_go_together_than_asked_for) {
    const Cascade cascade({true, false});
    const std::vector<int> values(13, 110);
    const auto bytes = images(values);
    cascade.stages->forward({bytes.data(), values.size(), 2, 2}, rule(), {.most = 5});
    EXPECT_EQ(cascade.seen[0], (std::vector<std::size_t>{5, 5, 3}));
    EXPECT_EQ(cascade.seen[1], (std::vector<std::size_t>{5, 5, 3}));
}

TEST(Stages, nothing_exits_early_where_all_is_asked_for) {
    const Cascade cascade({true, false});
    const auto bytes = images({200, 110, 130});
    const auto exits = cascade.stages->forward_all({bytes.data(), 3, 2, 2});
    ASSERT_EQ(exits.size(), 2u);
    EXPECT_EQ(exits[1][0].gate, 100.0f);
    EXPECT_EQ(exits[1][2].gate, 30.0f);
}

// Has another form, which remembers in a list of its own.
class Divisible : public Fake {
public:
    Divisible(std::vector<std::size_t>& seen, std::vector<std::size_t>& beside)
        : Fake(seen), beside_(beside) {}
    Engine* side_by_side() override { return &beside_; }

private:
    Fake beside_;
};

TEST(Stages, a_share_of_one_thread_runs_the_engines_other_form) {
    std::vector<std::size_t> whole, beside;
    std::vector<std::unique_ptr<Engine>> engines;
    engines.push_back(std::make_unique<Divisible>(whole, beside));
    engines.push_back(std::make_unique<Divisible>(whole, beside));
    const Stages stages(std::move(engines), {true, false});
    ASSERT_TRUE(stages.divisible());
    const auto bytes = images({200, 110, 130});
    const Pixels pixels{bytes.data(), 3, 2, 2};
    const auto verdicts = stages.forward(pixels, rule(), {Share::one_thread});
    EXPECT_TRUE(whole.empty());
    EXPECT_EQ(beside, (std::vector<std::size_t>{3, 2}));
    stages.forward(pixels, rule());
    EXPECT_EQ(whole, (std::vector<std::size_t>{3, 2}));
    EXPECT_EQ(verdicts[2].stage, 1);
}

TEST(Stages, with_an_engine_of_one_form_alone_are_not_divisible) {
    EXPECT_FALSE(Cascade({true, false}).stages->divisible());
}

TEST(Stages, no_images_are_no_runs) {
    const Cascade cascade({true, false});
    EXPECT_TRUE(forward(cascade, {}).empty());
    EXPECT_TRUE(cascade.seen[0].empty());
}

TEST(Stages, a_wrong_engine_does_not_pass_for_a_right_answer) {
    const Cascade cascade({true, false}, 3);
    try {
        forward(cascade, {200});
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.status, Status::bundle);
        EXPECT_STREQ(error.what(),
                     "stage 0: output 'logits' is float32 (1,3), expected float32 (1,2); rebuild "
                     "the bundle with cascade-compile bundle");
    }
}

// Two runs of one stage, 8 images and 1: their rows would be taken for equally long ones.
TEST(Stages, tokens_whose_shape_changes_with_the_batch_are_refused) {
    const Cascade cascade({true, false}, 2, 64);
    try {
        forward(cascade, std::vector<int>(9, 110));
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.status, Status::bundle);
        EXPECT_STREQ(error.what(),
                     "output 'tokens' is float32 (1,1,64) and was float32 (8,1,2): its shape "
                     "changes with the batch; rebuild the bundle with cascade-compile bundle");
    }
}

}  // namespace
