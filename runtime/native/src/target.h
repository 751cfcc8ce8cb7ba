#pragma once
// Which target of a bundle to run, and its engines. In: a verified bundle and what was asked for.
// Out: a name with a sentence on why; `Stages`, deserialised from bytes that are hashed again.
#include <memory>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "engines/engine.h"
#include "stages.h"

namespace cascade {

struct Choice {
    std::string target, why;
};

// `wanted` a name of the manifest, or "auto": the fastest certified one that can run here.
// Throws Error(target) where it is not in the bundle, or it, or every target, cannot run.
Choice choose_target(const Manifest& manifest, const std::string& wanted,
                     const Libraries& libraries);

// One a stage, not yet a cascade.
std::vector<std::unique_ptr<Engine>> load_engines(const Bundle& bundle, const std::string& target,
                                                  const Libraries& libraries, unsigned threads);

Stages load_stages(const Bundle& bundle, const std::string& target, const Libraries& libraries,
                   unsigned threads);

// The library that runs a target, and its version.
std::string engine_version(const Target& target, const Libraries& libraries);

}  // namespace cascade
