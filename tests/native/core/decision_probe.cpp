// Decides what it is told. In, on stdin, numbers as binary32 bits in hex: one rule,
//     POLICY SET_LOGIT (- | ACCEPT_TAU ACCEPT_BAR) EXITS (SCORE A B T (- | TAU))...
// then a line an image: L0 L1 GATE for each exit. Out: a line an image, LABEL STAGE REASON SET SCORE
// MARGIN, the last two as bits.
#include <bit>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

#include "decision.h"

using namespace cascade;

namespace {

float number(std::istream& in) {
    std::string word;
    in >> word;
    return std::bit_cast<float>(static_cast<std::uint32_t>(std::stoul(word, nullptr, 16)));
}

std::optional<float> optional(std::istream& in) {
    in >> std::ws;
    if (in.peek() != '-') return number(in);
    in.get();
    return std::nullopt;
}

Decision rule(std::istream& in) {
    Decision decision;
    in >> decision.policy;
    decision.set_logit = number(in);
    if (const auto tau = optional(in)) decision.accept = AcceptRule{*tau, number(in)};
    std::size_t exits = 0;
    in >> exits;
    for (std::size_t i = 0; i < exits; ++i) {
        ExitRule exit;
        in >> exit.score;
        exit.platt_a = number(in);
        exit.platt_b = number(in);
        exit.temperature = number(in);
        exit.tau_logit = optional(in);
        decision.exits.push_back(exit);
    }
    return decision;
}

}  // namespace

int main() {
    std::string line;
    std::getline(std::cin, line);
    std::istringstream head(line);
    const Decision decision = rule(head);
    while (std::getline(std::cin, line)) {
        std::istringstream in(line);
        std::vector<ExitOutputs> exits;
        for (std::size_t i = 0; i < decision.exits.size(); ++i) {
            ExitOutputs outputs;
            outputs.logits[0] = number(in);
            outputs.logits[1] = number(in);
            outputs.gate = number(in);
            exits.push_back(outputs);
        }
        const Verdict verdict = decide(exits, decision);
        std::printf("%d %d %d %d %08x %08x\n", verdict.label, verdict.stage,
                    static_cast<int>(verdict.reason), verdict.in_set[0] + 2 * verdict.in_set[1],
                    std::bit_cast<std::uint32_t>(verdict.score_logit),
                    std::bit_cast<std::uint32_t>(verdict.margin));
    }
}
