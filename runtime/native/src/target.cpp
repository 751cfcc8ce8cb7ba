// Choosing and loading; see target.h. Sentences are those of cascade_runtime/cascade.py.
#include "target.h"

#include <algorithm>
#include <cstdio>

#include "bundle/refuse.h"
#include "error.h"

namespace cascade {
namespace {

std::optional<std::string> unavailable(const Target& target, const Libraries& libraries) {
    const auto backend = find_backend(target.backend, libraries);
    if (backend != nullptr) return backend->unavailable(target.precision, target.device);
    return "no backend " + in_quotes(target.backend) + " in libcascade (known: " + known_backends() +
           ")";
}

std::string rounded(double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%.0f", value);
    return text;
}

Choice named(const Manifest& manifest, const std::string& wanted, const Libraries& libraries) {
    const Target* target = manifest.targets.find(wanted);
    if (target == nullptr) {
        std::string known;
        for (const auto& [name, row] : manifest.targets) known += (known.empty() ? "" : ", ") + name;
        throw Error(Status::target,
                    "target " + in_quotes(wanted) + " is not in this bundle, which has: " + known);
    }
    if (const auto reason = unavailable(*target, libraries)) {
        throw Error(Status::target, "target " + in_quotes(wanted) + " cannot run here: " + *reason);
    }
    return {wanted, wanted + " was asked for"};
}

}  // namespace

Choice choose_target(const Manifest& manifest, const std::string& wanted,
                     const Libraries& libraries) {
    if (wanted != "auto") return named(manifest, wanted, libraries);
    struct Row {
        std::string name;
        double speed;
    };
    std::vector<Row> runnable, certified;
    std::vector<Row> by_speed;
    for (const auto& [name, target] : manifest.targets) by_speed.push_back({name, target.images_per_s});
    std::stable_sort(by_speed.begin(), by_speed.end(),
                     [](const Row& a, const Row& b) { return a.speed > b.speed; });
    std::string skipped;
    for (const Row& row : by_speed) {
        if (const auto reason = unavailable(manifest.targets.at(row.name), libraries)) {
            skipped += (skipped.empty() ? "" : "; ") + row.name + ": " + *reason;
            continue;
        }
        runnable.push_back(row);
        if (manifest.certificates.at(row.name).status == "CERTIFIED") certified.push_back(row);
    }
    if (runnable.empty()) {
        throw Error(Status::target, "no target of this bundle can run here: " + skipped);
    }
    const Row& best = (certified.empty() ? runnable : certified).front();  // others defer everything
    const bool some = !certified.empty() && certified.size() < runnable.size();
    std::string why = best.name + " is the fastest " + (some ? "certified one " : "") +
                      "that can run here (" + rounded(best.speed) + " images/s when built)";
    if (!skipped.empty()) why += "; skipped " + skipped;
    return {best.name, why};
}

std::vector<std::unique_ptr<Engine>> load_engines(const Bundle& bundle, const std::string& target,
                                                  const Libraries& libraries, unsigned threads) {
    const Target& form = bundle.manifest().targets.at(target);
    const auto backend = find_backend(form.backend, libraries);
    std::vector<std::unique_ptr<Engine>> engines;
    for (const TargetStage& stage : form.stages) {
        StageFiles files{{}, stage.files.front()};
        for (const std::string& path : stage.files) files.files[path] = bundle.read(path);
        engines.push_back(backend->load(std::move(files), form.precision, form.device, threads));
    }
    return engines;
}

Stages load_stages(const Bundle& bundle, const std::string& target, const Libraries& libraries,
                   unsigned threads) {
    std::vector<bool> takes_pixels;
    for (const std::string& input : stage_inputs(bundle.manifest().stages)) {
        takes_pixels.push_back(input == "pixels");
    }
    return Stages(load_engines(bundle, target, libraries, threads), std::move(takes_pixels));
}

std::string engine_version(const Target& target, const Libraries& libraries) {
    return find_backend(target.backend, libraries)->version();
}

}  // namespace cascade
