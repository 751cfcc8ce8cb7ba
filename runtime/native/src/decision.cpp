// The rule that is certified; see decision.h. NaN never answers: comparisons are written so that
// whatever is not comparable falls to the deferring side.
#include "decision.h"

#include <cmath>

namespace cascade {
namespace {

bool answers(float score, const ExitRule& rule) {
    return rule.tau_logit.has_value() && score >= *rule.tau_logit;
}

bool accepts(float score, const Decision& decision) {
    return !decision.accept.has_value() || score >= decision.accept->tau_logit;
}

// logit(1 - lambda): another one exactly at SCRC's threshold.
float set_bar(float score, const Decision& decision) {
    const bool at = decision.accept.has_value() && score == decision.accept->tau_logit;
    return at ? decision.accept->set_logit_at : decision.set_logit;
}

Reason reason_of(const Verdict& verdict, const Decision& decision, const ExitRule& rule) {
    const float score = verdict.score_logit;
    if (!std::isfinite(score) || !std::isfinite(verdict.margin)) return Reason::not_finite;
    if (!answers(score, rule)) return Reason::below_threshold;
    if (!accepts(score, decision)) return Reason::not_accepted;
    if (verdict.in_set[0] && verdict.in_set[1]) return Reason::ambiguous;
    if (!verdict.in_set[0] && !verdict.in_set[1]) return Reason::empty;
    return Reason::acted;
}

}  // namespace

float margin(const ExitOutputs& outputs, const ExitRule& rule) {
    const float difference = outputs.logits[1] - outputs.logits[0];
    return difference / rule.temperature;
}

float score_logit(const ExitOutputs& outputs, const ExitRule& rule) {
    if (rule.score == "softmax") return std::fabs(margin(outputs, rule));
    const float scaled = rule.platt_a * outputs.gate;
    return scaled + rule.platt_b;
}

Verdict decide_exit(const ExitOutputs& outputs, const Decision& decision, std::size_t stage) {
    const ExitRule& rule = decision.exits[stage];
    Verdict verdict;
    verdict.stage = static_cast<std::int8_t>(stage);
    verdict.margin = margin(outputs, rule);
    verdict.score_logit = score_logit(outputs, rule);
    const float bar = set_bar(verdict.score_logit, decision);
    verdict.in_set = {-verdict.margin >= bar, verdict.margin >= bar};
    verdict.reason = reason_of(verdict, decision, rule);
    if (verdict.reason == Reason::acted) verdict.label = verdict.in_set[1] ? 1 : 0;
    return verdict;
}

Verdict decide(std::span<const ExitOutputs> exits, const Decision& decision) {
    Verdict verdict;
    for (std::size_t stage = 0; stage < exits.size(); ++stage) {
        verdict = decide_exit(exits[stage], decision, stage);
        if (!verdict.passes_on()) break;
    }
    return verdict;
}

double sigmoid(double x) {
    if (x >= 0) return 1.0 / (1.0 + std::exp(-x));
    const double power = std::exp(x);
    return power / (1.0 + power);
}

}  // namespace cascade
