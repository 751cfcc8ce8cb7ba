// A bundle as a folder, and what both forms share. In: a path. Out: names and bytes, or an Error.
// Spec: docs/bundle-format.md, "Layout".

#include "container.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "refuse.h"

namespace cascade {
namespace {

namespace fs = std::filesystem;

bool is_letter_or_digit(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

std::string reason(int error) {
    return std::generic_category().message(error);
}

class Folder : public Container {
public:
    explicit Folder(fs::path root) : root_(std::move(root)) {}

    std::set<std::string> names() const override {
        std::set<std::string> found;
        walk(root_, "", found);
        return found;
    }

    std::uint64_t size(const std::string& name) const override { return open_file(name).size(); }

    void each_chunk(const std::string& name, const Take& take) const override {
        const File file = open_file(name);
        std::vector<std::byte> chunk(std::min<std::uint64_t>(chunk_bytes, file.size() + 1));
        for (;;) {
            const ssize_t got = ::read(file.descriptor(), chunk.data(), chunk.size());
            if (got == 0) {
                return;
            }
            if (got > 0) {
                take(std::span(chunk).first(static_cast<std::size_t>(got)));
            } else if (errno != EINTR) {
                refuse(name + ": cannot be read (" + reason(errno) + ")");
            }
        }
    }

private:
    void walk(const fs::path& folder, const std::string& prefix,
              std::set<std::string>& found) const {
        for (const fs::directory_entry& entry : list(folder)) {
            const std::string name = prefix + entry.path().filename().string();
            if (!is_name(name)) {
                refuse(in_quotes(name) + ": a name that a bundle cannot hold; remove the file");
            }
            const fs::file_type kind = entry.symlink_status().type();
            if (kind == fs::file_type::symlink) {
                refuse(name + ": is a link, a bundle holds only files; copy the file");
            }
            if (kind == fs::file_type::directory) {
                walk(entry.path(), name + "/", found);
            } else if (kind == fs::file_type::regular) {
                found.insert(name);
                check_count(found.size());
            } else {
                refuse(name + ": neither a file nor a folder; remove it");
            }
        }
    }

    // Sorted, so that the first thing that is wrong is the same on every machine.
    static std::vector<fs::directory_entry> list(const fs::path& folder) {
        std::error_code error;
        std::vector<fs::directory_entry> entries;
        fs::directory_iterator at(folder, error);
        for (; !error && at != fs::directory_iterator(); at.increment(error)) {
            entries.push_back(*at);
        }
        if (error) {
            refuse(folder.string() + ": cannot be listed (" + error.message() + ")");
        }
        std::sort(entries.begin(), entries.end());
        return entries;
    }

    // The file, still a file: what was put in its place meanwhile is not waited for.
    File open_file(const std::string& name) const {
        const fs::path path = root_ / name;
        File file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
        struct stat status{};
        if (file.descriptor() < 0 || ::fstat(file.descriptor(), &status) != 0) {
            refuse(name + ": cannot be read (" + reason(errno) + ")");
        }
        if (!S_ISREG(status.st_mode)) {
            refuse(name + ": is no file any more; copy the bundle again");
        }
        return file;
    }

    fs::path root_;
};

}

bool is_name(std::string_view path) {
    bool first = true;  // of a segment
    for (const char c : path) {
        if (c == '/' && !first) {
            first = true;
        } else if (is_letter_or_digit(c) ||
                   (!first && std::strchr("._+-", c) != nullptr && c != 0)) {
            first = false;
        } else {
            return false;
        }
    }
    return !first && path.size() <= max_name;
}

void check_count(std::size_t files) {
    if (files > max_files) {
        refuse("the bundle has at least " + std::to_string(files) + " files, the limit is " +
               std::to_string(max_files));
    }
}

std::vector<std::byte> Container::read(const std::string& name,
                                       std::optional<std::uint64_t> limit) const {
    const auto check = [&](std::uint64_t bytes) {
        if (limit && bytes > *limit) {
            refuse(name + ": " + std::to_string(bytes) + " bytes, the limit is " +
                   std::to_string(*limit) + "; this is no bundle of ours");
        }
    };
    const std::uint64_t expected = size(name);
    check(expected);
    std::vector<std::byte> data;
    data.reserve(expected);
    each_chunk(name, [&](std::span<const std::byte> chunk) {
        check(data.size() + chunk.size());  // it may have grown since
        data.insert(data.end(), chunk.begin(), chunk.end());
    });
    return data;
}

std::unique_ptr<Container> open_container(const std::string& path) {
    File file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    struct stat status{};
    if (file.descriptor() < 0 || ::fstat(file.descriptor(), &status) != 0) {
        const int error = errno;
        refuse(path + ": no such bundle" +
               (error == ENOENT ? "" : " that can be read (" + reason(error) + ")"));
    }
    if (S_ISDIR(status.st_mode)) {
        return std::make_unique<Folder>(path);
    }
    if (!S_ISREG(status.st_mode)) {
        refuse(path + ": no such bundle");
    }
    return open_archive(std::move(file), fs::path(path).filename().string());
}

File::~File() {
    if (descriptor_ >= 0) {
        ::close(descriptor_);
    }
}

bool File::read_at(std::uint64_t at, std::span<std::byte> out) const {
    while (!out.empty()) {
        const ssize_t got = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(at));
        if (got == 0) {
            return false;
        }
        if (got < 0 && errno != EINTR) {
            throw std::system_error(errno, std::generic_category());
        }
        if (got > 0) {
            at += static_cast<std::uint64_t>(got);
            out = out.subspan(static_cast<std::size_t>(got));
        }
    }
    return true;
}

std::uint64_t File::size() const {
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0) {
        throw std::system_error(errno, std::generic_category());
    }
    return static_cast<std::uint64_t>(status.st_size);
}

}
