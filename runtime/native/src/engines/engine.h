#pragma once
// The engines that a target can run on: one file a backend, each a `Backend`, and one line in
// registry.cpp. In: a stage's verified bytes. Out: an `Engine`, which runs one batch at a time and
// is safe to call from several threads at once. Spec: docs/bundle-format.md, "Stages".
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cascade {

enum class Element { uint8, float32 };

// A batch that somebody else owns: uint8 [B, H, W, 3] or float32 [B, N, D].
struct Batch {
    const void* data = nullptr;
    Element element = Element::float32;
    std::vector<std::int64_t> shape;

    std::size_t size() const { return static_cast<std::size_t>(shape.front()); }
};

// One float32 output as the engine gave it; `shape` is empty where the stage has no such output.
struct Output {
    const float* data = nullptr;
    std::vector<std::int64_t> shape;
    bool is_float32 = true;
};

// What a run gave; it stays valid, and its memory is nobody else's, until this is destroyed.
struct Outputs {
    Output logits, gate, tokens;
    std::shared_ptr<void> owner;
};

class Engine {
public:
    virtual ~Engine() = default;
    virtual Outputs run(const Batch& batch) = 0;

    // The same stage for callers that run at the same time, on one thread each, its outputs equal to
    // the last bit; null where it has no such form. This engine's own, made when first asked for.
    virtual Engine* side_by_side() { return nullptr; }
};

// A stage's files by bundle path, their hashes checked, and the one to open first.
struct StageFiles {
    std::map<std::string, std::vector<std::byte>> files;
    std::string main;
};

class Backend {
public:
    virtual ~Backend() = default;

    // Why this machine cannot run it, with what to do about that; nothing if it can.
    virtual std::optional<std::string> unavailable(const std::string& precision,
                                                   const std::string& device) = 0;

    // `threads`: CPU threads; 0 leaves it to the library. The files may be let go afterwards.
    virtual std::unique_ptr<Engine> load(StageFiles files, const std::string& precision,
                                         const std::string& device, unsigned threads) = 0;

    // The library and its version.
    virtual std::string version() = 0;
};

// Where the engine libraries lie: a file or a folder; empty: the environment, then the loader.
struct Libraries {
    std::string onnxruntime, openvino, tensorrt;
};

// The backend of a name; nothing if this version has none. One for each place of the library, for
// as long as the process lives: engine libraries do not like to be unloaded.
std::shared_ptr<Backend> find_backend(const std::string& name, const Libraries& libraries);

// "onnxruntime, openvino, tensorrt"
std::string known_backends();

}  // namespace cascade
