#pragma once
// What ties a certificate to the engines and the decision it was measured with. In: a manifest and
// the hashes of the bundle's files. Out: the binding, or an Error that says what does not belong.
// Spec: docs/bundle-format.md, "Certificate" and "Binding".

#include <map>
#include <string>
#include <vector>

#include "manifest.h"

namespace cascade {

// The text whose SHA-256 is the binding: everything that a promise depends on.
std::string binding_text(const Preprocess& preprocess, const Decision& decision,
                         const std::map<std::string, std::string>& engines,
                         const std::vector<std::string>& inputs);

// Every engine file of a target, sorted, each once.
std::vector<std::string> engine_files(const Target& target);

// That a target's certificate is about these engine files and this decision.
void check_certificate(const Manifest& manifest, const std::string& name,
                       const std::map<std::string, std::string>& hashes);

}
