#pragma once
// The two forms of a bundle, a folder and an uncompressed zip, seen as a set of named files. In: a
// path. Out: a `Container`: the names of the files in it, and the bytes of each. Nothing is
// trusted: links, odd names, compressed, duplicate or overlapping members are refused by name, and
// nothing is read before its size is known to be bearable. Spec: docs/bundle-format.md, "Layout",
// "Zip form".

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cascade {

inline constexpr std::size_t max_files = 10'000;
inline constexpr std::size_t max_name = 1024;
inline constexpr std::size_t chunk_bytes = 1 << 20;

// Whether a bundle may hold this path: plain ASCII segments, none beginning with a dot.
bool is_name(std::string_view path);

// Threads may share one.
class Container {
public:
    using Take = std::function<void(std::span<const std::byte>)>;

    Container() = default;
    Container(const Container&) = delete;
    Container& operator=(const Container&) = delete;
    virtual ~Container() = default;

    // Every file by its path relative to the root.
    virtual std::set<std::string> names() const = 0;
    virtual std::uint64_t size(const std::string& name) const = 0;
    // The file's bytes, piece by piece; no more than chunk_bytes of them are in memory.
    virtual void each_chunk(const std::string& name, const Take& take) const = 0;

    // The file's bytes at once; refused where they are more than `limit`.
    std::vector<std::byte> read(const std::string& name,
                                std::optional<std::uint64_t> limit = std::nullopt) const;
};

// The container at `path`; a link to a bundle is followed, a link inside one is not.
std::unique_ptr<Container> open_container(const std::string& path);

// An open file descriptor that closes itself.
class File {
public:
    explicit File(int descriptor) : descriptor_(descriptor) {}
    File(File&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
    File& operator=(File&&) = delete;
    ~File();
    int descriptor() const { return descriptor_; }
    // Fill `out` from `at`; false where the file ends before. Throws std::system_error.
    bool read_at(std::uint64_t at, std::span<std::byte> out) const;
    std::uint64_t size() const;

private:
    int descriptor_;
};

std::unique_ptr<Container> open_archive(File file, const std::string& file_name);

void check_count(std::size_t files);

}
