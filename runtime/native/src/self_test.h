#pragma once
// The golden vectors, run on this machine. In: the engines, and the bytes of `golden.safetensors`.
// Out: nothing, or an Error that says what differs. Spec: docs/bundle-format.md, "Golden vectors".
#include <cstddef>
#include <span>
#include <string>

#include "bundle/manifest.h"
#include "stages.h"

namespace cascade {

// Returns how many images there are. Throws Error(bundle) where the recorded outputs do not decide
// as recorded, Error(target) where this machine does not answer as the certified one did.
std::size_t self_test(const Stages& stages, const Manifest& manifest, const std::string& target,
                      std::span<const std::byte> golden);

}  // namespace cascade
