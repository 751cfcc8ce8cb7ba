// Judged as cascade_runtime/golden.py does; see self_test.h.
#include "self_test.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "bundle/bundle.h"
#include "bundle/golden.h"
#include "bundle/refuse.h"
#include "error.h"

namespace cascade {
namespace {

using Exits = std::vector<std::vector<ExitOutputs>>;  // by stage and image

const std::string file = golden_name;
constexpr const char* again = "; rebuild with cascade-compile bundle";
constexpr const char* verdict_on_machine = "; this machine does not run the certified cascade";

// Largest absolute difference of an output from the recorded one: other processors of the same kind
// round and order sums differently.
double tolerance_of(const Target& target) {
    static const std::map<std::string, double> known = {
        {"fp32", 1e-3}, {"bf16", 0.1}, {"fp16", 0.1}, {"mixed", 0.1}, {"int8", 0.2}};
    const auto found = known.find(target.precision);
    if (found != known.end()) return found->second;
    throw Error(Status::target, "the golden vectors: this version does not know how far " +
                                    target.precision + " may differ");
}

Exits recorded_exits(const GoldenTarget& recorded, std::size_t images) {
    Exits exits(recorded.stages);
    for (std::size_t stage = 0; stage < recorded.stages; ++stage) {
        for (std::size_t image = 0; image < images; ++image) {
            const std::size_t at = stage * images + image;
            exits[stage].push_back({{recorded.logits[2 * at], recorded.logits[2 * at + 1]},
                                    recorded.gate[at]});
        }
    }
    return exits;
}

bool same(const Verdict& verdict, const GoldenTarget& recorded, std::size_t image) {
    return verdict.label == recorded.label[image] && verdict.stage == recorded.stage[image];
}

// Before memory is taken for them: of no images, a small file may claim any number of stages.
void check_stages(const GoldenTarget& recorded, const Decision& decision,
                  const std::string& target) {
    if (recorded.stages == decision.exits.size()) return;
    refuse(file + ": " + in_quotes(target) + " has " + std::to_string(recorded.stages) +
           " stages, the decision " + std::to_string(decision.exits.size()) + again);
}

// The recorded outputs decide as recorded, to the bit; that needs no engine.
void check_recorded(const Exits& exits, const GoldenTarget& recorded, const Decision& decision,
                    std::size_t images, const std::string& target) {
    for (std::size_t image = 0; image < images; ++image) {
        std::vector<ExitOutputs> outputs;
        for (const auto& stage : exits) outputs.push_back(stage[image]);
        if (!same(decide(outputs, decision), recorded, image)) {
            refuse(file + ": the outputs recorded for image " + std::to_string(image) + " of " +
                   in_quotes(target) + " do not decide as recorded" + again);
        }
    }
}

// How far two outputs are apart; NaN equals NaN, and is infinitely far from anything else.
float distance(float now, float then) {
    if (now == then || (std::isnan(now) && std::isnan(then))) return 0;
    const float difference = std::fabs(now - then);
    return std::isnan(difference) ? std::numeric_limits<float>::infinity() : difference;
}

void check_close(const Exits& now, const Exits& then, double tolerance, const std::string& target) {
    for (std::size_t stage = 0; stage < then.size(); ++stage) {
        float logits = 0, gate = 0;
        for (std::size_t image = 0; image < then[stage].size(); ++image) {
            const ExitOutputs& a = now[stage][image];
            const ExitOutputs& b = then[stage][image];
            logits = std::max({logits, distance(a.logits[0], b.logits[0]),
                               distance(a.logits[1], b.logits[1])});
            gate = std::max(gate, distance(a.gate, b.gate));
        }
        const bool wrong_logits = logits > static_cast<float>(tolerance);
        if (!wrong_logits && gate <= static_cast<float>(tolerance)) continue;
        char text[160];
        std::snprintf(text, sizeof text, "%s of stage %zu of '", wrong_logits ? "logits" : "gate",
                      stage);
        char difference[96];
        std::snprintf(difference, sizeof difference,
                      "' differ by %.3g from the recorded ones (tolerance %g)",
                      static_cast<double>(wrong_logits ? logits : gate), tolerance);
        throw Error(Status::target,
                    file + ": " + text + target + difference + verdict_on_machine);
    }
}

// Whether a difference within the tolerance may flip a comparison of this exit.
bool near_a_threshold(const ExitOutputs& outputs, const Decision& decision, const ExitRule& rule,
                      double tolerance) {
    const float m = margin(outputs, rule);
    const float score = score_logit(outputs, rule);
    // Two logits, each off by it.
    const auto margin_slack =
        static_cast<float>(std::fabs(2.0 * tolerance / static_cast<double>(rule.temperature)));
    const auto gate_slack =
        static_cast<float>(std::fabs(static_cast<double>(rule.platt_a)) * tolerance);
    const float slack = rule.score == "gate" ? gate_slack : margin_slack;
    const auto at = [&](float tau) { return std::fabs(score - tau) <= slack; };
    const auto at_bar = [&](float bar) {
        return std::fabs(std::fabs(m) - std::fabs(bar)) <= margin_slack;
    };
    if (rule.tau_logit.has_value() && at(*rule.tau_logit)) return true;
    if (at_bar(decision.set_logit)) return true;
    if (!decision.accept.has_value()) return false;
    return at(decision.accept->tau_logit) || at_bar(decision.accept->set_logit_at);
}

}  // namespace

std::size_t self_test(const Stages& stages, const Manifest& manifest, const std::string& target,
                      std::span<const std::byte> bytes) {
    const Decision& decision = manifest.decision.at(target);
    const Golden golden = load_golden(bytes, manifest.preprocess);
    const auto recorded = golden.targets.find(target);
    if (recorded == golden.targets.end()) {
        refuse(file + ": holds no vectors of " + in_quotes(target) + again);
    }
    check_stages(recorded->second, decision, target);
    const Exits then = recorded_exits(recorded->second, golden.count);
    check_recorded(then, recorded->second, decision, golden.count, target);

    const double tolerance = tolerance_of(manifest.targets.at(target));
    const Pixels pixels{golden.images.data(), golden.count, manifest.preprocess.height,
                        manifest.preprocess.width};
    check_close(stages.forward_all(pixels), then, tolerance, target);
    const std::vector<Verdict> verdicts = stages.forward(pixels, decision);
    for (std::size_t image = 0; image < golden.count; ++image) {
        if (same(verdicts[image], recorded->second, image)) continue;
        bool near = false;
        for (std::size_t stage = 0; stage < then.size(); ++stage) {
            near |= near_a_threshold(then[stage][image], decision, decision.exits[stage], tolerance);
        }
        if (near) continue;
        throw Error(Status::target, file + ": image " + std::to_string(image) + " of " +
                                        in_quotes(target) + " gives another decision than recorded" +
                                        verdict_on_machine);
    }
    return golden.count;
}

}  // namespace cascade
