// What relates the fields of a manifest to each other, beyond their types. In: a decoded
// `Manifest`. Out: nothing, or an Error that names the field. A value outside these limits would
// let one stage run another's engine, or name a file outside the bundle. Spec:
// docs/bundle-format.md, "Limits".

#include <algorithm>
#include <set>

#include "container.h"
#include "manifest.h"
#include "refuse.h"

namespace cascade {
namespace {

constexpr std::size_t max_part = 64;

void need(bool holds, const std::string& where, const std::string& what) {
    if (!holds) {
        refuse("manifest.json: " + where + " needs " + what);
    }
}

std::string entry(const char* table, const std::string& name) {
    return std::string(table) + "[" + in_quotes(name) + "]";
}

bool is_part(const std::string& text) {
    return text.size() <= max_part && text.find('/') == std::string::npos && is_name(text);
}

void check_target(const std::string& name, const Target& target, std::size_t stages) {
    const std::string where = entry("targets", name);
    for (const std::string& part : {target.backend, target.precision, target.device}) {
        need(is_part(part), where,
             "backend, precision and device of letters, digits and . _ + -, at most 64");
    }
    need(name == target.backend + "/" + target.precision + "/" + target.device, where,
         "the name of its own fields; it does not match its own fields");
    need(target.stages.size() == stages, where + ".stages",
         "one entry a stage; it has " + std::to_string(target.stages.size()) +
             " stages, the model has " + std::to_string(stages));
    need(target.images_per_s >= 0, where + ".images_per_s", ">= 0");
    for (std::size_t s = 0; s < stages; ++s) {
        const std::vector<std::string>& files = target.stages[s].files;
        const std::string here = where + ".stages[" + std::to_string(s) + "].files";
        const std::string own = "stage" + std::to_string(s) + ".";
        need(!files.empty(), here, "at least one engine file");
        need(std::set(files.begin(), files.end()).size() == files.size(), here, "each file once");
        for (const std::string& path : files) {
            need(is_name(path), here, "paths inside the bundle, not " + in_quotes(path));
            need(path.substr(path.rfind('/') + 1).starts_with(own), here,
                 "files named " + own + "*, not " + in_quotes(path) + ": that is not its engine");
        }
    }
}

void check_decision(const std::string& name, const Decision& decision, std::size_t stages) {
    const std::string where = entry("decision", name);
    const std::string& policy = decision.policy;
    need(decision.exits.size() == stages, where + ".exits",
         "one entry a stage; it does not cover every exit");
    need(decision.accept.has_value() == policy.starts_with("scrc-"), where + ".accept",
         "the policy scrc-i or scrc-t: accept goes with these and with no other, this is " +
             in_quotes(policy));
    const bool one_score = policy == "softmax" || policy == "gate";
    for (const ExitRule& rule : decision.exits) {
        need(!one_score || rule.score == policy, where + ".exits",
             "the policy's score; under " + in_quotes(policy) + " that is every exit's score");
    }
}

void check_recipe(const std::string& name, const Recipe& recipe, std::size_t stages) {
    need(name == recipe.backend + "/" + recipe.precision && recipe.stages.size() == stages,
         entry("recipes", name), "its own fields for a name, and one entry a stage");
}

}

void check_limits(const Manifest& m) {
    const std::size_t stages = m.stages.size();
    need(!m.targets.empty(), "targets", "an entry; targets is empty, there is nothing to run");
    need(stages >= 1 && stages <= max_stages, "stages", "1 to 127 of them");
    need(m.stages[0].input != "tokens", "stages[0].input",
         "pixels; stages[0].input is 'tokens', the first takes pixels");
    need(m.model.exits.size() == stages, "model.exits", "one entry a stage");
    for (const auto& [name, target] : m.targets) {
        check_target(name, target, stages);
        need(m.decision.contains(name) && m.certificates.contains(name), entry("targets", name),
             "a decision and a certificate; there is no decision or certificate for it");
    }
    for (const auto& [name, decision] : m.decision) {
        check_decision(name, decision, stages);
    }
    for (const auto& [name, certificate] : m.certificates) {
        need(certificate.exit_counts.size() == stages, entry("certificates", name) + ".exit_counts",
             "one entry a stage");
    }
    for (const auto& [name, recipe] : m.recipes) {
        check_recipe(name, recipe, stages);
    }
}

}
