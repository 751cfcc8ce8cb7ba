// Running stages, and handing on what has not exited; see stages.h.
#include "stages.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <numeric>

#include "error.h"

namespace cascade {
namespace {

constexpr std::array<std::size_t, 12> batch_sizes = {32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1};
static_assert(batch_sizes.front() == largest_batch);
constexpr auto warm_up_time = std::chrono::seconds(1);
constexpr const char* again = "; rebuild the bundle with cascade-compile bundle";

std::string described(const Output& output) {
    if (output.data == nullptr && output.shape.empty()) return "missing";
    std::string text = output.is_float32 ? "float32 (" : "of another type (";
    for (const std::int64_t side : output.shape) text += std::to_string(side) + ",";
    text.back() = ')';
    return text;
}

void expect(const Output& output, const char* name, std::size_t stage,
            const std::vector<std::int64_t>& shape) {
    if (output.is_float32 && output.shape == shape) return;
    throw Error(Status::bundle, "stage " + std::to_string(stage) + ": output '" + name + "' is " +
                                    described(output) + ", expected " +
                                    described({nullptr, shape, true}) + again);
}

// A wrong engine must not pass for a right answer.
void check(const Outputs& outputs, std::size_t stage, std::size_t count, bool handed_on) {
    const auto size = static_cast<std::int64_t>(count);
    expect(outputs.logits, "logits", stage, {size, 2});
    expect(outputs.gate, "gate", stage, {size});
    const std::vector<std::int64_t>& shape = outputs.tokens.shape;
    if (handed_on && (shape.size() < 2 || shape.front() != size || !outputs.tokens.is_float32)) {
        throw Error(Status::bundle, "stage " + std::to_string(stage) +
                                        ": output 'tokens' is missing or has the wrong batch" +
                                        again);
    }
}

ExitOutputs exit_of(const Outputs& outputs, std::size_t row) {
    return {{outputs.logits.data[2 * row], outputs.logits.data[2 * row + 1]},
            outputs.gate.data[row]};
}

std::size_t row_size(const std::vector<std::int64_t>& shape) {
    return std::accumulate(shape.begin() + 1, shape.end(), std::size_t{1},
                           [](std::size_t size, std::int64_t side) { return size * side; });
}

}  // namespace

std::size_t piece_of(std::size_t left) {
    return *std::find_if(batch_sizes.begin(), batch_sizes.end(),
                         [left](std::size_t size) { return size <= left; });
}

// The tokens of the images that go on, one after the other. Where all of a single run go on, its own
// memory is handed over; else the rows are gathered.
class Stages::Tokens {
public:
    // `rows`: those of this run that go on; `most`: how many of all the stage's runs can.
    void add(Outputs& outputs, const std::vector<std::size_t>& rows, std::size_t most) {
        if (rows.empty()) return;
        check_rows(outputs.tokens.shape);
        shape_ = outputs.tokens.shape;
        if (rows.size() == most) {
            data_ = outputs.tokens.data;
            owner_ = std::move(outputs.owner);
            return;
        }
        const std::size_t size = row_size(shape_);
        gathered_.reserve(most * size);
        for (const std::size_t row : rows) {
            const float* from = outputs.tokens.data + row * size;
            gathered_.insert(gathered_.end(), from, from + size);
        }
        data_ = gathered_.data();
    }

    Batch piece(std::size_t start, std::size_t size) const {
        Batch batch{data_ + start * row_size(shape_), Element::float32, shape_};
        batch.shape.front() = static_cast<std::int64_t>(size);
        return batch;
    }

private:
    // An image's tokens are as many as those before: the next stage takes them as one block.
    void check_rows(const std::vector<std::int64_t>& shape) const {
        if (shape_.empty() ||
            std::equal(shape_.begin() + 1, shape_.end(), shape.begin() + 1, shape.end())) {
            return;
        }
        throw Error(Status::bundle, "output 'tokens' is " + described({nullptr, shape, true}) +
                                        " and was " + described({nullptr, shape_, true}) +
                                        ": its shape changes with the batch" + again);
    }

    std::vector<std::int64_t> shape_;
    const float* data_ = nullptr;
    std::shared_ptr<void> owner_;
    std::vector<float> gathered_;
};

// Chosen images as one block: in place where all are taken.
class Stages::Rows {
public:
    Rows() = default;
    Rows(const Pixels& pixels, const std::vector<std::size_t>& going)
        : data_(pixels.data), size_(pixels.image_bytes()), shape_{0, pixels.height, pixels.width, 3} {
        if (going.size() == pixels.count) return;
        gathered_.resize(going.size() * size_);
        for (std::size_t i = 0; i < going.size(); ++i) {
            std::memcpy(gathered_.data() + i * size_, pixels.data + going[i] * size_, size_);
        }
        data_ = gathered_.data();
    }

    Batch piece(std::size_t start, std::size_t size) const {
        Batch batch{data_ + start * size_, Element::uint8, shape_};
        batch.shape.front() = static_cast<std::int64_t>(size);
        return batch;
    }

private:
    const std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
    std::vector<std::int64_t> shape_;
    std::vector<std::uint8_t> gathered_;
};

Stages::Stages(std::vector<std::unique_ptr<Engine>> engines, std::vector<bool> takes_pixels)
    : engines_(std::move(engines)), takes_pixels_(std::move(takes_pixels)) {}

// One stage over `count` images, piece by piece; `take` is given each piece's outputs and where in
// the batch it begins.
template <typename Take>
void Stages::run(std::size_t stage, Way way, const Rows& pixels, const Tokens& tokens,
                 std::size_t count, Take take) const {
    Engine* const whole = engines_[stage].get();
    Engine* const engine = way.share == Share::every_thread ? whole : whole->side_by_side();
    for (std::size_t start = 0; start < count;) {
        const std::size_t size = piece_of(std::min(count - start, way.most));
        Outputs outputs = engine->run(takes_pixels_[stage] ? pixels.piece(start, size)
                                                           : tokens.piece(start, size));
        check(outputs, stage, size, hands_on(stage));
        take(outputs, start, size);
        start += size;
    }
}

bool Stages::hands_on(std::size_t stage) const {
    return stage + 1 < engines_.size() && !takes_pixels_[stage + 1];
}

bool Stages::divisible() const {
    return std::all_of(engines_.begin(), engines_.end(),
                       [](const auto& engine) { return engine->side_by_side() != nullptr; });
}

std::vector<Verdict> Stages::forward(const Pixels& pixels, const Decision& decision,
                                     Way way) const {
    std::vector<Verdict> verdicts(pixels.count);
    std::vector<std::size_t> going(pixels.count);  // the images that have not exited
    std::iota(going.begin(), going.end(), std::size_t{0});
    Tokens tokens;
    for (std::size_t stage = 0; stage < engines_.size() && !going.empty(); ++stage) {
        const Rows rows = takes_pixels_[stage] ? Rows(pixels, going) : Rows();
        std::vector<std::size_t> onward;
        Tokens next;
        run(stage, way, rows, tokens, going.size(),
            [&](Outputs& outputs, std::size_t start, std::size_t size) {
                std::vector<std::size_t> staying;
                for (std::size_t row = 0; row < size; ++row) {
                    const std::size_t image = going[start + row];
                    verdicts[image] = decide_exit(exit_of(outputs, row), decision, stage);
                    if (!verdicts[image].passes_on()) continue;
                    onward.push_back(image);
                    staying.push_back(row);
                }
                if (hands_on(stage)) next.add(outputs, staying, going.size());
            });
        going = std::move(onward);
        tokens = std::move(next);
    }
    return verdicts;
}

std::vector<std::vector<ExitOutputs>> Stages::forward_all(const Pixels& pixels, Way way) const {
    std::vector<std::vector<ExitOutputs>> exits(engines_.size());
    std::vector<std::size_t> everyone(pixels.count);
    std::iota(everyone.begin(), everyone.end(), std::size_t{0});
    const Rows rows(pixels, everyone);
    Tokens tokens;
    for (std::size_t stage = 0; stage < engines_.size(); ++stage) {
        Tokens next;
        run(stage, way, rows, tokens, pixels.count,
            [&](Outputs& outputs, std::size_t, std::size_t size) {
                for (std::size_t row = 0; row < size; ++row) {
                    exits[stage].push_back(exit_of(outputs, row));
                }
                const std::vector<std::size_t> all(everyone.begin(), everyone.begin() + size);
                if (hands_on(stage)) next.add(outputs, all, pixels.count);
            });
        tokens = std::move(next);
    }
    return exits;
}

void Stages::warm_up(int height, int width) const {
    const auto started = std::chrono::steady_clock::now();
    std::vector<std::uint8_t> blank;
    for (const Share share : {Share::every_thread, Share::one_thread}) {
        if (share == Share::one_thread && !divisible()) break;
        for (auto size = batch_sizes.rbegin(); size != batch_sizes.rend(); ++size) {
            Pixels pixels{nullptr, *size, height, width};
            blank.resize(*size * pixels.image_bytes());
            pixels.data = blank.data();
            forward_all(pixels, {share});
            if (std::chrono::steady_clock::now() - started > warm_up_time) break;
        }
    }
}

}  // namespace cascade
