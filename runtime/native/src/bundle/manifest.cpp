// From the JSON of a manifest to its structures, field by field. Spec: docs/bundle-format.md,
// "Manifest" and the tables of the sections after it. Fields that are not named there are ignored.

#include "manifest.h"

#include <algorithm>

#include "fields.h"

namespace cascade {
namespace {

constexpr const char* format_name = "cascade-edge.bundle";
constexpr std::size_t max_minor_digits = 9;

std::string text(const Field& f) {
    return f.text();
}
double number(const Field& f) {
    return f.number();
}
std::int64_t count(const Field& f) {
    return f.count();
}

template <class Decode>
auto optional(const std::optional<Field>& field, const Decode& decode)
    -> std::optional<decltype(decode(*field))> {
    return field ? std::optional(decode(*field)) : std::nullopt;
}

std::vector<std::string> texts(const std::optional<Field>& f) {
    return f ? f->list(text) : std::vector<std::string>();
}

Table<double> numbers(const std::optional<Field>& f) {
    return f ? f->table(number) : Table<double>();
}

MadeBy made_by(const Field& f) {
    return {.version = f.at("version").text(),
            .command = f.at("command").text(),
            .git_commit = f.at("git_commit").text(),
            .seed = f.at("seed").integer(),
            .created = f.at("created").text(),
            .versions = f.at("versions").table(text),
            .machine = f.at("machine").text()};
}

Model model(const Field& f) {
    Model found{.name = f.at("name").text(),
                .preset = f.at("preset").text(),
                .classes = f.at("classes").list(text),
                .parameters = f.at("parameters").count(),
                .exits = f.at("exits").list(count),
                .data = f.at("data").text()};
    f.at("classes").need(found.classes.size() == 2, "needs two names");
    return found;
}

int side(const Field& f) {
    constexpr std::int64_t longest = 1 << 16;
    const std::int64_t pixels = f.integer();
    f.need(pixels >= 1 && pixels <= longest, "needs 1 <= pixels <= 65536");
    return static_cast<int>(pixels);
}

Preprocess preprocess(const Field& f) {
    Preprocess found{.height = side(f.at("height")),
                     .width = side(f.at("width")),
                     .color = f.at("color").one_of({"RGB"}),
                     .exif = f.at("exif").one_of({"apply"}),
                     .resize = f.at("resize").one_of({"bilinear", "bicubic"}),
                     .crop = f.at("crop").one_of({"none", "center"}),
                     .jpeg = f.at("jpeg").one_of({"full", "reduced"}),
                     .max_pixels = f.at("max_pixels").integer()};
    f.at("max_pixels").need(found.max_pixels >= 1, "needs to be >= 1");
    return found;
}

StageInfo stage_info(const Field& f) {
    StageInfo found{.name = f.at("name").text(),
                    .blocks = f.at("blocks").list(count),
                    .parameters = f.at("parameters").count(),
                    .macs = f.at("macs").count(),
                    .tokens = f.at("tokens").count(),
                    .width = f.at("width").count(),
                    .input = std::nullopt};
    f.at("blocks").need(found.blocks.size() == 2, "needs two numbers");
    f.at("blocks").need(found.blocks[0] <= found.blocks[1], "needs first <= one after the last");
    if (const std::optional<Field> input = f.nullable("input")) {
        found.input = input->one_of({"pixels", "tokens"});
    }
    return found;
}

TargetStage target_stage(const Field& f) {
    return {.files = f.at("files").list(text)};
}

Target target(const Field& f) {
    const std::optional<Field> forced = f.maybe("forced");
    return {.backend = f.at("backend").text(),
            .precision = f.at("precision").text(),
            .device = f.at("device").text(),
            .stages = f.at("stages").list(target_stage),
            .images_per_s = f.at("images_per_s").number(),
            .parity = f.at("parity").table(number),
            .islands = texts(f.maybe("islands")),
            .forced = forced && forced->boolean(),
            .inspector = numbers(f.maybe("inspector"))};
}

ExitRule exit_rule(const Field& f) {
    ExitRule found{.score = f.at("score").one_of({"gate", "softmax"}),
                   .platt_a = f.at("platt_a").float32(),
                   .platt_b = f.at("platt_b").float32(),
                   .temperature = f.at("temperature").float32(),
                   .tau_logit = std::nullopt};
    f.at("temperature").need(found.temperature > 0, "needs a float32 > 0");
    if (const Field tau = f.at("tau_logit"); !tau.is_null()) {
        found.tau_logit = tau.float32();
    }
    return found;
}

Decision decision(const Field& f) {
    const auto accept = [](const Field& a) -> AcceptRule {
        return {.tau_logit = a.at("tau_logit").float32(),
                .set_logit_at = a.at("set_logit_at").float32()};
    };
    return {.policy = f.at("policy").one_of({"certified", "softmax", "gate", "scrc-i", "scrc-t"}),
            .exits = f.at("exits").list(exit_rule),
            .set_logit = f.at("set_logit").float32(),
            .accept = optional(f.nullable("accept"), accept)};
}

SetCertificate set_certificate(const Field& f) {
    return {.accepted = f.at("accepted").count(),
            .misses = f.at("misses").count(),
            .risk_upper = f.at("risk_upper").share(),
            .coverage = f.at("coverage").share(),
            .coverage_lower = f.at("coverage_lower").share(),
            .ambiguous = f.at("ambiguous").count(),
            .empty = f.at("empty").count()};
}

std::optional<double> probability(const Field& f) {
    if (f.is_null()) {
        return std::nullopt;
    }
    f.need(f.number() > 0 && f.number() < 1, "needs null or between 0 and 1");
    return f.number();
}

Certificate certificate(const Field& f) {
    const auto share = [](const Field& s) { return s.share(); };
    Certificate c;
    c.status = f.at("status").one_of({"CERTIFIED", "INFEASIBLE"});
    c.method = f.at("method").text();
    c.promise = f.at("promise").text();
    c.advice = f.at("advice").text();
    c.alpha = f.at("alpha").share();
    c.delta = probability(f.at("delta"));
    c.claims = f.at("claims").count();
    f.at("claims").need(c.claims >= 1, "needs >= 1");
    c.coverage_floor = f.at("coverage_floor").share();
    c.n = f.at("n").count();
    c.accepted = f.at("accepted").count();
    c.errors = f.at("errors").count();
    f.need(c.errors <= c.accepted && c.accepted <= c.n, "needs errors <= accepted <= n");
    c.risk_upper = f.at("risk_upper").share();
    c.coverage = f.at("coverage").share();
    c.coverage_lower = f.at("coverage_lower").share();
    c.exit_counts = f.at("exit_counts").list(count);
    c.class_errors = f.at("class_errors").list(count);
    c.class_accepted = f.at("class_accepted").list(count);
    f.at("class_errors").need(c.class_errors.size() == 2, "needs one entry a class");
    f.at("class_accepted").need(c.class_accepted.size() == 2, "needs one entry a class");
    c.path_length = f.at("path_length").count();
    c.path_tested = f.at("path_tested").count();
    c.calibration_sha256 = f.at("calibration_sha256").text();
    c.calibration_uses = f.at("calibration_uses").count();
    for (const auto& [path, digest] : f.at("engines").table(text)) {
        c.engines.emplace(path, digest);
    }
    c.binding = f.at("binding").text();
    c.fnr_promised = optional(f.nullable("fnr_promised"), share);
    c.fnr_upper = optional(f.nullable("fnr_upper"), share);
    c.sets = optional(f.nullable("sets"), set_certificate);
    return c;
}

Recipe recipe(const Field& f) {
    return {.backend = f.at("backend").text(),
            .precision = f.at("precision").text(),
            .stages = f.at("stages").list(target_stage),
            .reference = f.at("reference").text(),
            .islands = texts(f.maybe("islands")),
            .parity = f.at("parity").table(number)};
}

// Informative, and checked all the same: no known field may hold what the page does not allow.
bool candidate(const Field& f) {
    for (const char* name : {"name", "reason"}) {
        f.at(name).text();
    }
    f.at("outcome").one_of(
        {"shipped", "certified", "failed", "not reached", "passed over", "left out"});
    f.at("parity").table(number);
    for (const char* name : {"images_per_s", "slowest", "fastest"}) {
        if (const Field speed = f.at(name); !speed.is_null()) {
            speed.number();
        }
    }
    for (const char* name : {"engine_bytes", "accepted", "errors", "steps", "tested", "passed"}) {
        f.at(name).integer();
    }
    return true;
}

void check_search(const Field& f) {
    f.at("candidates").list(candidate);
    for (const char* name :
         {"n_select", "timed", "batch", "rounds", "sequence_length", "sequence_tested"}) {
        f.at(name).integer();
    }
}

// Before any other field: another major version may mean anything by them.
void check_version(const json::Object& head) {
    const auto shown = [&](const char* key) -> std::string {
        const json::Value* value = json::find(head, key);
        const auto* text = value ? std::get_if<std::string>(&value->content) : nullptr;
        return text ? in_quotes(*text) : value ? "no string" : "missing";
    };
    const json::Value* format = json::find(head, "format");
    const auto* name = format ? std::get_if<std::string>(&format->content) : nullptr;
    if (!name || *name != format_name) {
        refuse("manifest.json: format is " + shown("format") + ", this reader knows '" +
               format_name + "'");
    }
    const json::Value* found = json::find(head, "format_version");
    const auto* version = found ? std::get_if<std::string>(&found->content) : nullptr;
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const std::size_t digits =
        version ? version->size() - std::min<std::size_t>(2, version->size()) : 0;
    if (digits < 1 || digits > max_minor_digits || !version->starts_with("1.") ||
        !std::all_of(version->begin() + 2, version->end(), is_digit)) {
        refuse("manifest.json: format_version is " + shown("format_version") +
               ", this reader knows 1.x; upgrade cascade-edge to open this bundle");
    }
}

}

Manifest decode_manifest(std::span<const std::byte> data) {
    const json::Value root{json::parse(data, "manifest.json")};
    check_version(std::get<json::Object>(root.content));
    const Field f(root, "");
    const std::optional<Field> recipes = f.maybe("recipes");
    if (const std::optional<Field> search = f.nullable("search")) {
        check_search(*search);
    }
    Manifest found{.format = f.at("format").text(),
                   .format_version = f.at("format_version").text(),
                   .made_by = made_by(f.at("made_by")),
                   .model = model(f.at("model")),
                   .preprocess = preprocess(f.at("preprocess")),
                   .stages = f.at("stages").list(stage_info),
                   .targets = f.at("targets").table(target),
                   .decision = f.at("decision").table(decision),
                   .certificates = f.at("certificates").table(certificate),
                   .recipes = recipes ? recipes->table(recipe) : Table<Recipe>()};
    check_limits(found);
    return found;
}

std::vector<std::string> stage_inputs(const std::vector<StageInfo>& stages) {
    std::vector<std::string> inputs;
    for (const StageInfo& stage : stages) {
        inputs.push_back(inputs.empty() ? "pixels" : stage.input.value_or("tokens"));
    }
    return inputs;
}

}
