#pragma once
// From an exit's outputs to a decision. In: logits and gate of one image at one stage, and the
// target's rule. Out: a `Verdict`. Spec: docs/bundle-format.md, "Decision".
// Every operation is rounded to binary32 by itself: compiled with -ffp-contract=off.
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "bundle/manifest.h"

namespace cascade {

// Why an image was deferred; `acted` when it was not. The numbers are those of the spec.
enum class Reason : std::int8_t {
    acted = 0,
    below_threshold = 1,
    ambiguous = 2,
    empty = 3,
    not_finite = 4,
    not_accepted = 5,
};

struct ExitOutputs {
    std::array<float, 2> logits;
    float gate;
};

struct Verdict {
    std::int8_t label = -1;  // -1: deferred
    std::int8_t stage = 0;
    Reason reason = Reason::acted;
    std::array<bool, 2> in_set = {false, false};
    float score_logit = 0;
    float margin = 0;  // calibrated logit of class 1

    bool accepted() const {
        return reason == Reason::acted || reason == Reason::ambiguous || reason == Reason::empty;
    }
    // The exit did not answer, and the next one is asked.
    bool passes_on() const {
        return reason == Reason::below_threshold || reason == Reason::not_finite;
    }
};

float margin(const ExitOutputs& outputs, const ExitRule& rule);
float score_logit(const ExitOutputs& outputs, const ExitRule& rule);

// The verdict of one exit alone.
Verdict decide_exit(const ExitOutputs& outputs, const Decision& decision, std::size_t stage);

// The cascade's verdict from every exit's outputs of one image: the first that answers is final.
Verdict decide(std::span<const ExitOutputs> exits, const Decision& decision);

// 1 / (1 + e^-x) without overflow; NaN stays NaN. For people: nothing is decided with it.
double sigmoid(double x);

}  // namespace cascade
