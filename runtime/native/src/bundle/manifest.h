#pragma once
// The bundle's manifest as typed structures. In: the bytes of `manifest.json`. Out: a `Manifest`,
// or an Error that names the field. Spec: docs/bundle-format.md, "Manifest" and "Limits".
//
// Fields have the names and the order of the specification. A number that the page calls float32
// is rounded to one here, once; std::nullopt stands where the page says null or absent.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cascade {

// A JSON object that maps names to values, in the order of the file: between targets of equal speed
// the earlier one is taken.
template <class Value>
class Table {
public:
    void add(std::string name, Value value) {
        index_.emplace(name, rows_.size());
        rows_.emplace_back(std::move(name), std::move(value));
    }
    const Value* find(std::string_view name) const {
        const auto found = index_.find(name);
        return found == index_.end() ? nullptr : &rows_[found->second].second;
    }
    const Value& at(std::string_view name) const {
        if (const Value* value = find(name)) {
            return *value;
        }
        throw std::out_of_range("no entry " + std::string(name));
    }
    bool contains(std::string_view name) const { return find(name) != nullptr; }
    bool empty() const { return rows_.empty(); }
    std::size_t size() const { return rows_.size(); }
    auto begin() const { return rows_.begin(); }
    auto end() const { return rows_.end(); }

private:
    std::vector<std::pair<std::string, Value>> rows_;
    std::map<std::string, std::size_t, std::less<>> index_;
};

struct MadeBy {
    std::string version, command, git_commit;
    std::int64_t seed = 0;
    std::string created;
    Table<std::string> versions;
    std::string machine;
};

inline constexpr std::size_t max_stages = 127;  // a stage's number is an int8

struct Model {
    std::string name, preset;
    std::vector<std::string> classes;  // two
    std::int64_t parameters = 0;
    std::vector<std::int64_t> exits;
    std::string data;
};

// How an image becomes the uint8 pixels that stage 0 takes.
struct Preprocess {
    int height = 0, width = 0;
    std::string color, exif;
    std::string resize;  // "bilinear" or "bicubic"
    std::string crop;    // "none" or "center"
    std::string jpeg;    // "full" or "reduced"
    std::int64_t max_pixels = 0;
};

struct StageInfo {
    std::string name;
    std::vector<std::int64_t> blocks;  // first, and the one after the last
    std::int64_t parameters = 0, macs = 0, tokens = 0, width = 0;
    std::optional<std::string> input;  // "pixels" or "tokens"; see stage_inputs
};

struct TargetStage {
    std::vector<std::string> files;  // the one to open first in front
};

struct Target {
    std::string backend, precision, device;
    std::vector<TargetStage> stages;
    double images_per_s = 0;
    Table<double> parity;
    std::vector<std::string> islands;
    bool forced = false;
    Table<double> inspector;
};

struct ExitRule {
    std::string score;  // "gate" or "softmax"
    float platt_a = 0, platt_b = 0, temperature = 1;
    std::optional<float> tau_logit;  // none: +inf, the exit never answers
};

struct AcceptRule {
    float tau_logit = 0, set_logit_at = 0;
};

struct Decision {
    std::string policy;  // "certified", "softmax", "gate", "scrc-i" or "scrc-t"
    std::vector<ExitRule> exits;
    float set_logit = 0;
    std::optional<AcceptRule> accept;
};

struct SetCertificate {
    std::int64_t accepted = 0, misses = 0;
    double risk_upper = 0, coverage = 0, coverage_lower = 0;
    std::int64_t ambiguous = 0, empty = 0;
};

struct Certificate {
    std::string status;  // "CERTIFIED" or "INFEASIBLE"
    std::string method, promise, advice;
    double alpha = 0;
    std::optional<double> delta;  // none: the promise is one on average
    std::int64_t claims = 1;
    double coverage_floor = 0;
    std::int64_t n = 0, accepted = 0, errors = 0;
    double risk_upper = 0, coverage = 0, coverage_lower = 0;
    std::vector<std::int64_t> exit_counts, class_errors, class_accepted;
    std::int64_t path_length = 0, path_tested = 0;
    std::string calibration_sha256;
    std::int64_t calibration_uses = 0;
    std::map<std::string, std::string> engines;  // path to SHA-256
    std::string binding;
    std::optional<double> fnr_promised, fnr_upper;
    std::optional<SetCertificate> sets;
};

struct Recipe {
    std::string backend, precision;
    std::vector<TargetStage> stages;
    std::string reference;
    std::vector<std::string> islands;
    Table<double> parity;
};

// `search` is checked as everything else is, and then not kept: nothing here needs it.
struct Manifest {
    std::string format, format_version;
    MadeBy made_by;
    Model model;
    Preprocess preprocess;
    std::vector<StageInfo> stages;
    Table<Target> targets;
    Table<Decision> decision;
    Table<Certificate> certificates;
    Table<Recipe> recipes;
};

// Read and check a manifest.
Manifest decode_manifest(std::span<const std::byte> data);

// The relations and limits that a type cannot say; decode_manifest has called it.
void check_limits(const Manifest& manifest);

// What each stage takes, "pixels" or "tokens": pixels the first, the tokens of the one before
// unless it says otherwise.
std::vector<std::string> stage_inputs(const std::vector<StageInfo>& stages);

}
