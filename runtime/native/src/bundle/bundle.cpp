// The order of checks of a bundle, and reads that are verified again. Spec: docs/bundle-format.md,
// "Order of checks", 1 to 6.

#include "bundle.h"

#include <string_view>

#include "certificate.h"
#include "refuse.h"
#include "sha256.h"
#include "signature.h"
#include "sums.h"

namespace cascade {
namespace {

constexpr std::uint64_t max_manifest_bytes = 16 << 20;
constexpr std::uint64_t max_signature_bytes = 4096;  // another length is then named for what it is

using Hashes = std::map<std::string, std::string>;
using Names = std::set<std::string>;

void expect(const std::string& name, const std::string& found, const std::string& listed) {
    if (found != listed) {
        refuse(name + ": SHA-256 is " + found.substr(0, 12) + "…, " + sums_name + " says " +
               listed.substr(0, 12) + "…; the file was changed or damaged, copy the bundle again");
    }
}

// Before anything else is looked at but the file set.
void check_signature(const Container& container, const Names& names, const PublicKey& key,
                     std::span<const std::byte> sums) {
    const std::string name = signature_name;
    if (!names.contains(name)) {
        refuse(name + ": missing; a signature is required, and here is none");
    }
    key.check(sums, container.read(name, max_signature_bytes), name);
}

// The listed hashes, after the file set and every hash were found to match the list.
Hashes verify(const Container& container, const Names& names, std::span<const std::byte> sums) {
    Hashes hashes = parse_sums(sums);
    for (const auto& [name, digest] : hashes) {
        if (!names.contains(name)) {
            refuse(name + ": listed in " + sums_name + " but missing; copy the bundle again");
        }
    }
    for (const std::string& name : names) {
        if (!hashes.contains(name) && name != sums_name && name != signature_name) {
            refuse(name + ": not listed in " + sums_name + "; remove it or copy the bundle again");
        }
    }
    for (const auto& [name, digest] : hashes) {
        Sha256 hash;
        container.each_chunk(name, [&](std::span<const std::byte> chunk) { hash.update(chunk); });
        expect(name, hash.hex(), digest);
    }
    return hashes;
}

std::vector<std::byte> read_listed(const Container& container, const Hashes& hashes,
                                   const std::string& name,
                                   std::optional<std::uint64_t> limit = std::nullopt) {
    const auto listed = hashes.find(name);
    if (listed == hashes.end()) {
        refuse(name + ": not in the bundle; rebuild with cascade-compile bundle");
    }
    std::vector<std::byte> data = container.read(name, limit);
    expect(name, sha256_hex(data), listed->second);
    return data;
}

void check_recipe_files(const Manifest& manifest, const Hashes& hashes) {
    const auto need = [&](const std::string& path) {
        if (!hashes.contains(path)) {
            refuse(in_quotes(path) + ": a file of a build recipe that is not in the bundle");
        }
    };
    for (const auto& [name, recipe] : manifest.recipes) {
        need(recipe.reference);
        for (const TargetStage& stage : recipe.stages) {
            for (const std::string& path : stage.files) {
                need(path);
            }
        }
    }
}

}

Bundle Bundle::open(const std::string& path, const std::string& public_key_file) {
    std::optional<PublicKey> key;
    if (!public_key_file.empty()) {
        key = PublicKey::load(public_key_file);
    }
    Bundle bundle;
    bundle.container_ = open_container(path);
    const Container& container = *bundle.container_;
    const Names names = container.names();
    if (!names.contains(sums_name)) {
        refuse(std::string(sums_name) + ": missing; this is no sealed bundle");
    }
    const std::vector<std::byte> sums = container.read(sums_name, max_sums_bytes);
    if (key) {
        check_signature(container, names, *key, sums);
        bundle.signer_ = key->fingerprint();
    }
    bundle.is_signed_ = names.contains(signature_name);
    bundle.hashes_ = verify(container, names, sums);
    if (!bundle.hashes_.contains(manifest_name)) {
        refuse(std::string(manifest_name) + ": missing; rebuild with cascade-compile bundle");
    }
    bundle.manifest_ = std::make_shared<const Manifest>(
        decode_manifest(read_listed(container, bundle.hashes_, manifest_name, max_manifest_bytes)));
    for (const auto& [name, target] : bundle.manifest().targets) {
        check_certificate(bundle.manifest(), name, bundle.hashes_);
    }
    check_recipe_files(bundle.manifest(), bundle.hashes_);
    return bundle;
}

std::vector<std::byte> Bundle::read(const std::string& path) const {
    return read_listed(*container_, hashes_, path);
}

std::uint64_t Bundle::size(const std::string& path) const {
    return container_->size(path);
}

}
