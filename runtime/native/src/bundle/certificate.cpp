// The binding of a certificate, and whether it holds. Numbers enter as the bits of their binary32,
// so that no way of printing decides.

#include "certificate.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <set>

#include "refuse.h"
#include "sha256.h"

namespace cascade {
namespace {

// Eight lower-case hex digits, the most significant first; none is +inf.
std::string bits(std::optional<float> value) {
    constexpr char digits[] = "0123456789abcdef";
    const auto pattern =
        std::bit_cast<std::uint32_t>(value.value_or(std::numeric_limits<float>::infinity()));
    std::string text;
    for (int shift = 28; shift >= 0; shift -= 4) {
        text += digits[pattern >> shift & 15];
    }
    return text;
}

std::string joined(const std::vector<std::string>& words, const char* between) {
    std::string text;
    for (const std::string& word : words) {
        text += (text.empty() ? "" : between) + word;
    }
    return text;
}

}

std::string binding_text(const Preprocess& p, const Decision& decision,
                         const std::map<std::string, std::string>& engines,
                         const std::vector<std::string>& inputs) {
    std::string text = "preprocess " + std::to_string(p.width) + " " + std::to_string(p.height) +
                       " " + p.color + " " + p.exif + " " + p.resize + " " + p.crop + " " +
                       p.jpeg + "\n";
    if (std::count(inputs.begin(), inputs.end(), "pixels") > 1) {
        text += "inputs " + joined(inputs, " ") + "\n";
    }
    text += "policy " + decision.policy + " " + bits(decision.set_logit) + "\n";
    if (decision.accept) {
        text += "accept " + bits(decision.accept->tau_logit) + " " +
                bits(decision.accept->set_logit_at) + "\n";
    }
    for (const ExitRule& rule : decision.exits) {
        text += "exit " + rule.score + " " + bits(rule.platt_a) + " " + bits(rule.platt_b) + " " +
                bits(rule.temperature) + " " + bits(rule.tau_logit) + "\n";
    }
    for (const auto& [path, digest] : engines) {
        text += "engine " + digest + " " + path + "\n";
    }
    return text;
}

std::vector<std::string> engine_files(const Target& target) {
    std::set<std::string> files;
    for (const TargetStage& stage : target.stages) {
        files.insert(stage.files.begin(), stage.files.end());
    }
    return {files.begin(), files.end()};
}

void check_certificate(const Manifest& manifest, const std::string& name,
                       const std::map<std::string, std::string>& hashes) {
    const std::string again =
        "; certify this engine with cascade-calibrate, or rebuild with cascade-compile bundle";
    const std::string shown = in_quotes(name);
    const Decision& decision = manifest.decision.at(name);
    const Certificate& certificate = manifest.certificates.at(name);
    const std::vector<std::string> files = engine_files(manifest.targets.at(name));
    for (const std::string& path : files) {
        if (!hashes.contains(path)) {
            refuse(path + ": an engine file of " + shown + " that is not in the bundle");
        }
    }
    std::vector<std::string> certified;
    for (const auto& [path, digest] : certificate.engines) {
        certified.push_back(path);
    }
    if (certified != files) {
        refuse("manifest.json: the certificate of " + shown + " is about other files (" +
               in_quotes(joined(certified, ", ")) + ", the target has " + joined(files, ", ") +
               ")" + again);
    }
    for (const std::string& path : files) {
        if (certificate.engines.at(path) != hashes.at(path)) {
            refuse(path + ": not the engine that " + shown + " was certified on" + again);
        }
    }
    const std::string text = binding_text(manifest.preprocess, decision, certificate.engines,
                                          stage_inputs(manifest.stages));
    if (certificate.binding != sha256_hex(std::string_view(text))) {
        refuse("manifest.json: preprocess, decision or inputs of " + shown +
               " are not what was certified" + again);
    }
    const bool open = std::any_of(decision.exits.begin(), decision.exits.end(),
                                  [](const ExitRule& rule) { return rule.tau_logit.has_value(); });
    if (certificate.status != "CERTIFIED" && open) {
        refuse("manifest.json: " + shown + " is " + certificate.status +
               " and yet has a threshold that answers" + again);
    }
}

}
