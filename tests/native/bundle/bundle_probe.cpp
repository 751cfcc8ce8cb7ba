// What the native reader makes of a file, as JSON, for tests that compare it with the Python one.
//
//   bundle_probe PATH [--key PEM]     open a bundle; the exit status is that of the reader
//   bundle_probe --stdin              a line "what<TAB>path[<TAB>more…]" in, a line of JSON out

#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bundle/bundle.h"
#include "bundle/certificate.h"
#include "bundle/golden.h"
#include "bundle/json.h"
#include "bundle/onnx_external.h"
#include "bundle/safetensors.h"
#include "bundle/sha256.h"
#include "bundle/sums.h"
#include "error.h"

using Json = nlohmann::ordered_json;
using namespace cascade;

namespace {

template <class Value>
Json shown(const std::optional<Value>& value) {
    return value ? Json(*value) : Json();
}

template <class Value>
Json shown(const Table<Value>& table) {
    Json found = Json::object();
    for (const auto& [name, value] : table) {
        found[name] = value;
    }
    return found;
}

Json stages_of(const std::vector<TargetStage>& stages) {
    Json found = Json::array();
    for (const TargetStage& stage : stages) {
        found.push_back({{"files", stage.files}});
    }
    return found;
}

Json shown(const Decision& d) {
    Json exits = Json::array();
    for (const ExitRule& r : d.exits) {
        exits.push_back({{"score", r.score},
                         {"platt_a", r.platt_a},
                         {"platt_b", r.platt_b},
                         {"temperature", r.temperature},
                         {"tau_logit", shown(r.tau_logit)}});
    }
    Json accept;
    if (d.accept) {
        accept = {{"tau_logit", d.accept->tau_logit}, {"set_logit_at", d.accept->set_logit_at}};
    }
    return {{"policy", d.policy}, {"exits", exits}, {"set_logit", d.set_logit}, {"accept", accept}};
}

Json shown(const Target& t) {
    return {{"backend", t.backend},
            {"precision", t.precision},
            {"device", t.device},
            {"stages", stages_of(t.stages)},
            {"images_per_s", t.images_per_s},
            {"parity", shown(t.parity)},
            {"islands", t.islands},
            {"forced", t.forced},
            {"inspector", shown(t.inspector)}};
}

Json shown(const Certificate& c) {
    Json sets;
    if (c.sets) {
        sets = {{"accepted", c.sets->accepted},
                {"misses", c.sets->misses},
                {"risk_upper", c.sets->risk_upper},
                {"coverage", c.sets->coverage},
                {"ambiguous", c.sets->ambiguous},
                {"coverage_lower", c.sets->coverage_lower},
                {"empty", c.sets->empty}};
    }
    return {{"status", c.status},
            {"method", c.method},
            {"promise", c.promise},
            {"advice", c.advice},
            {"alpha", c.alpha},
            {"delta", shown(c.delta)},
            {"claims", c.claims},
            {"coverage_floor", c.coverage_floor},
            {"n", c.n},
            {"accepted", c.accepted},
            {"errors", c.errors},
            {"risk_upper", c.risk_upper},
            {"coverage", c.coverage},
            {"coverage_lower", c.coverage_lower},
            {"exit_counts", c.exit_counts},
            {"class_errors", c.class_errors},
            {"class_accepted", c.class_accepted},
            {"path_length", c.path_length},
            {"path_tested", c.path_tested},
            {"calibration_sha256", c.calibration_sha256},
            {"calibration_uses", c.calibration_uses},
            {"engines", c.engines},
            {"binding", c.binding},
            {"fnr_promised", shown(c.fnr_promised)},
            {"fnr_upper", shown(c.fnr_upper)},
            {"sets", sets}};
}

// The manifest as a reader has it: what it kept of every field, in the file's own names.
Json shown(const Manifest& m) {
    const MadeBy& by = m.made_by;
    const Preprocess& p = m.preprocess;
    Json found = {{"format", m.format}, {"format_version", m.format_version}};
    found["made_by"] = {{"version", by.version}, {"command", by.command},
                        {"seed", by.seed},       {"git_commit", by.git_commit},
                        {"created", by.created}, {"versions", shown(by.versions)},
                        {"machine", by.machine}};
    found["model"] = {{"name", m.model.name},       {"preset", m.model.preset},
                      {"classes", m.model.classes}, {"parameters", m.model.parameters},
                      {"exits", m.model.exits},     {"data", m.model.data}};
    found["preprocess"] = {{"height", p.height}, {"width", p.width}, {"color", p.color},
                           {"exif", p.exif},     {"crop", p.crop},   {"max_pixels", p.max_pixels},
                           {"resize", p.resize}, {"jpeg", p.jpeg}};
    found["stages"] = Json::array();
    for (const StageInfo& s : m.stages) {
        found["stages"].push_back({{"name", s.name},
                                   {"blocks", s.blocks},
                                   {"parameters", s.parameters},
                                   {"macs", s.macs},
                                   {"tokens", s.tokens},
                                   {"width", s.width},
                                   {"input", shown(s.input)}});
    }
    for (const char* table : {"targets", "decision", "certificates", "recipes"}) {
        found[table] = Json::object();
    }
    for (const auto& [name, target] : m.targets) {
        found["targets"][name] = shown(target);
    }
    for (const auto& [name, decision] : m.decision) {
        found["decision"][name] = shown(decision);
    }
    for (const auto& [name, certificate] : m.certificates) {
        found["certificates"][name] = shown(certificate);
    }
    for (const auto& [name, r] : m.recipes) {
        found["recipes"][name] = {{"backend", r.backend},          {"precision", r.precision},
                                  {"stages", stages_of(r.stages)}, {"reference", r.reference},
                                  {"islands", r.islands},          {"parity", shown(r.parity)}};
    }
    return found;
}

Json bindings(const Manifest& m) {
    Json found = Json::object();
    for (const auto& [name, target] : m.targets) {
        found[name] = binding_text(m.preprocess, m.decision.at(name),
                                   m.certificates.at(name).engines, stage_inputs(m.stages));
    }
    return found;
}

Json open(const std::string& path, const std::string& key) {
    const Bundle bundle = Bundle::open(path, key);
    for (const auto& [name, digest] : bundle.hashes()) {
        if (sha256_hex(bundle.read(name)) != digest) {
            throw Error(Status::failure, name + ": read otherwise than verified");
        }
    }
    return {{"manifest", shown(bundle.manifest())},
            {"bindings", bindings(bundle.manifest())},
            {"hashes", bundle.hashes()},
            {"signed", bundle.is_signed()},
            {"signer", shown(bundle.signer())}};
}

Json tensors_of(std::span<const std::byte> data) {
    Json found = Json::object();
    for (const auto& [name, tensor] : read_safetensors(data, "vectors")) {
        found[name] = {tensor.dtype, tensor.shape, sha256_hex(tensor.data)};
    }
    return found;
}

Json golden_of(std::span<const std::byte> data, int height, int width) {
    Preprocess size;
    size.height = height;
    size.width = width;
    const Golden golden = load_golden(data, size);
    Json targets = Json::object();
    for (const auto& [name, target] : golden.targets) {
        targets[name] = {{"stages", target.stages},
                         {"logits", target.logits},
                         {"gate", target.gate},
                         {"label", target.label},
                         {"stage", target.stage}};
    }
    return {{"count", golden.count}, {"images", golden.images.size()}, {"targets", targets}};
}

std::vector<std::byte> bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    const auto data = std::as_bytes(std::span(text));
    return {data.begin(), data.end()};
}

Json answer(const std::vector<std::string>& words) {
    const std::string& what = words.at(0);
    if (what == "open") {
        return open(words.at(1), words.size() > 2 ? words[2] : "");
    }
    const std::vector<std::byte> data = bytes_of(words.at(1));
    if (what == "manifest") {
        const Manifest manifest = decode_manifest(data);
        return {{"manifest", shown(manifest)}, {"bindings", bindings(manifest)}};
    }
    if (what == "json") {
        return json::parse(data, "file").size();
    }
    if (what == "sums") {
        return parse_sums(data);
    }
    if (what == "safetensors") {
        return tensors_of(data);
    }
    if (what == "golden") {
        return golden_of(data, std::stoi(words.at(2)), std::stoi(words.at(3)));
    }
    if (what == "onnx") {
        check_external_data(data, words.at(2), {words.begin() + 3, words.end()});
        Json found = Json::array();
        each_external_location(data, words[2], [&](const std::string& l) { found.push_back(l); });
        return found;
    }
    throw Error(Status::usage, "no such question: " + what);
}

int print(const std::vector<std::string>& words) {
    Json line;
    try {
        line = {{"status", 0}, {"value", answer(words)}};
    } catch (const Error& error) {
        line = {{"status", static_cast<int>(error.status)}, {"message", error.what()}};
    }
    std::cout << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
    return line["status"];
}

}

int main(int count, char** arguments) {
    const std::vector<std::string> given(arguments + 1, arguments + count);
    if (given.size() == 1 && given[0] == "--stdin") {
        for (std::string line; std::getline(std::cin, line);) {
            std::vector<std::string> words;
            std::istringstream parts(line);
            for (std::string word; std::getline(parts, word, '\t');) {
                words.push_back(word);
            }
            print(words);
        }
        return 0;
    }
    if (given.size() == 1) {
        return print({"open", given[0]});
    }
    if (given.size() == 3 && given[1] == "--key") {
        return print({"open", given[0], given[2]});
    }
    std::cerr << "usage: bundle_probe PATH [--key PEM] | --stdin\n";
    return static_cast<int>(Status::usage);
}
