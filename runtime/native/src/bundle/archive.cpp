// A bundle as one zip whose members are stored, not compressed. In: an open file. Out: a Container,
// or an Error that names the member. Only the directory is read to know every member's place; no
// byte is ever inflated. Specs: docs/bundle-format.md, "Zip form"; PKWARE's APPNOTE.TXT 6.3.10, 4.3
// and 4.5.3. What an archive may be beyond these (bytes in front, a comment, zip64) is as Python's
// zipfile takes it, so that both readers open the same archives.

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <system_error>

#include "container.h"
#include "refuse.h"

namespace cascade {
namespace {

constexpr std::uint64_t max_directory_bytes = 4 << 20;
constexpr std::size_t end_bytes = 22, locator_bytes = 20, end64_bytes = 56;
constexpr std::size_t entry_bytes = 46, local_bytes = 30, max_comment = 1 << 16;
constexpr std::uint32_t end_mark = 0x06054b50, locator_mark = 0x07064b50, end64_mark = 0x06064b50;
constexpr std::uint32_t entry_mark = 0x02014b50, local_mark = 0x04034b50;
constexpr std::uint64_t in_extra = 0xffffffff;        // the number stands in the zip64 extra field
constexpr std::uint64_t nowhere = ~std::uint64_t{0};  // beyond the end of any archive
constexpr unsigned max_version = 63;
constexpr unsigned encrypted_flags = 0x0001 | 0x0020 | 0x0040;  // encrypted, patched, strongly so

using Bytes = std::span<const std::byte>;

// The little-endian number of `size` bytes at `at`, which the caller knows to be there.
std::uint64_t number(Bytes data, std::size_t at, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = size; i-- > 0;) {
        value = value << 8 | std::to_integer<std::uint64_t>(data[at + i]);
    }
    return value;
}

std::string text(Bytes data) {
    return {reinterpret_cast<const char*>(data.data()), data.size()};
}

struct Member {
    std::string name;
    std::uint64_t start = 0;  // of its local header
    std::uint64_t packed = 0, size = 0;
    std::uint64_t end = 0;  // where the next one begins
    unsigned flags = 0, method = 0, mode = 0;
    std::uint32_t crc = 0;
};

// Where the directory lies, and what its offsets count from.
struct Directory {
    std::uint64_t start = 0, size = 0, offset = 0;
};

class Archive : public Container {
public:
    Archive(File file, std::string name) : file_(std::move(file)), name_(std::move(name)) {
        guarded(name_, [&] { scan(); });
    }

    std::set<std::string> names() const override {
        std::set<std::string> found;
        for (const auto& [name, member] : members_) {
            found.insert(name);
        }
        return found;
    }

    std::uint64_t size(const std::string& name) const override { return member(name).size; }

    void each_chunk(const std::string& name, const Take& take) const override {
        const Member& m = member(name);
        guarded(name, [&] {
            std::uint64_t at = content(m), left = m.size;
            std::vector<std::byte> buffer(std::min<std::uint64_t>(chunk_bytes, left));
            uLong crc = crc32(0, nullptr, 0);
            while (left > 0) {
                const auto chunk =
                    std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), left));
                need(file_.read_at(at, chunk), "it is cut short");
                crc = crc32(crc, reinterpret_cast<const Bytef*>(chunk.data()),
                            static_cast<uInt>(chunk.size()));
                take(chunk);
                at += chunk.size();
                left -= chunk.size();
            }
            need(crc == m.crc, "its CRC-32 is another");
        });
    }

private:
    // What cannot be read as a zip is said with the name of what was wanted.
    struct Damaged {
        const char* why;
    };

    static void need(bool holds, const char* why) {
        if (!holds) {
            throw Damaged{why};
        }
    }

    template <class Read>
    void guarded(const std::string& wanted, const Read& read) const {
        std::string why;
        try {
            return read();
        } catch (const Damaged& damaged) {
            why = damaged.why;
        } catch (const std::system_error& error) {
            why = error.what();
        }
        refuse(wanted + ": cannot be read, the zip archive " + name_ + " is damaged or is none (" +
               why + ")");
    }

    const Member& member(const std::string& name) const {
        const auto found = members_.find(name);
        if (found == members_.end()) {
            refuse(name + ": is not in the archive");
        }
        return found->second;
    }

    // Every member, after the directory was found to be one of plain, stored, separate files.
    void scan() {
        const std::uint64_t size = file_.size();
        const Directory directory = find_directory(size);
        std::vector<Member> members = read_directory(directory);
        check_count(members.size());
        for (const Member& member : members) {
            check_member(member);
        }
        check_apart(members, size, directory.start);
        for (Member& member : members) {
            members_.emplace(member.name, std::move(member));
        }
    }

    Directory find_directory(std::uint64_t size) const {
        need(size >= end_bytes, "it has no directory");
        const std::uint64_t tail_start =
            size - std::min<std::uint64_t>(size, max_comment + end_bytes);
        std::vector<std::byte> tail(size - tail_start);
        need(file_.read_at(tail_start, tail), "it has no directory");
        const std::uint64_t at = tail_start + find_end(tail);
        Bytes end = Bytes(tail).subspan(at - tail_start, end_bytes);
        Directory found{.start = at, .size = number(end, 12, 4), .offset = number(end, 16, 4)};
        read_end64(at, found);
        need(found.size <= found.start, "its directory lies outside");
        need(found.size <= max_directory_bytes, "its directory is over 4194304 bytes long");
        found.start -= found.size;
        return found;
    }

    // Where the end record is: last, or else the last place that looks like one, before a comment.
    static std::size_t find_end(Bytes tail) {
        const std::size_t last = tail.size() - end_bytes;
        if (number(tail, last, 4) == end_mark && number(tail, last + 20, 2) == 0) {
            return last;
        }
        for (std::size_t at = tail.size() - 3; at-- > 0;) {
            if (number(tail, at, 4) == end_mark) {
                need(at <= last, "its end is cut short");
                return at;
            }
        }
        throw Damaged{"it has no directory"};
    }

    // The zip64 records in front of the end record, where there are any.
    void read_end64(std::uint64_t at, Directory& found) const {
        if (at < locator_bytes + end64_bytes) {
            return;
        }
        std::array<std::byte, end64_bytes + locator_bytes> records{};
        need(file_.read_at(at - records.size(), records), "it is cut short");
        const Bytes end = Bytes(records).first(end64_bytes);
        const Bytes locator = Bytes(records).last(locator_bytes);
        if (number(locator, 0, 4) != locator_mark) {
            return;
        }
        need(number(locator, 4, 4) == 0 && number(locator, 16, 4) <= 1, "it spans several disks");
        if (number(end, 0, 4) == end64_mark) {
            found = {.start = at - records.size(),
                     .size = number(end, 40, 8),
                     .offset = number(end, 48, 8)};
        }
    }

    std::vector<Member> read_directory(const Directory& directory) const {
        std::vector<std::byte> data(directory.size);
        need(file_.read_at(directory.start, data), "it is cut short");
        Bytes left = data;
        const auto take = [&left](std::uint64_t bytes) {
            const Bytes taken = left.first(std::min<std::uint64_t>(bytes, left.size()));
            left = left.subspan(taken.size());
            return taken;
        };
        std::vector<Member> members;
        while (!left.empty()) {
            const Bytes entry = take(entry_bytes);
            need(entry.size() == entry_bytes, "its directory is cut short");
            need(number(entry, 0, 4) == entry_mark, "its directory is damaged");
            need(number(entry, 6, 1) <= max_version, "it is of a later version");
            Member member;
            member.flags = static_cast<unsigned>(number(entry, 8, 2));
            member.method = static_cast<unsigned>(number(entry, 10, 2));
            member.crc = static_cast<std::uint32_t>(number(entry, 16, 4));
            member.packed = number(entry, 20, 4);
            member.size = number(entry, 24, 4);
            member.mode = static_cast<unsigned>(number(entry, 40, 2));
            member.start = number(entry, 42, 4);
            member.name = text(take(number(entry, 28, 2)));
            read_extra(take(number(entry, 30, 2)), member);
            take(number(entry, 32, 2));  // the comment
            member.start = place(member.start, directory);
            members.push_back(std::move(member));
            check_count(members.size());
        }
        return members;
    }

    // The zip64 field of an entry: the numbers that do not fit its 32 bits, in this order.
    static void read_extra(Bytes extra, Member& member) {
        while (extra.size() >= 4) {
            const std::uint64_t kind = number(extra, 0, 2), size = number(extra, 2, 2);
            need(size + 4 <= extra.size(), "an extra field is damaged");
            Bytes field = extra.subspan(4, size);
            extra = extra.subspan(4 + size);
            if (kind != 1) {
                continue;
            }
            for (std::uint64_t* value : {&member.size, &member.packed, &member.start}) {
                const bool full = value == &member.size && *value == ~std::uint64_t{0};
                if (*value == in_extra || full) {
                    need(field.size() >= 8, "a zip64 field is damaged");
                    *value = number(field, 0, 8);
                    field = field.subspan(8);
                }
            }
        }
    }

    // Offsets count from the front of the archive, which need not be that of the file.
    static std::uint64_t place(std::uint64_t offset, const Directory& directory) {
        if (offset >= directory.offset) {
            const std::uint64_t after = offset - directory.offset;
            return after > nowhere - directory.start ? nowhere : directory.start + after;
        }
        const std::uint64_t before = directory.offset - offset;
        return before > directory.start ? nowhere : directory.start - before;
    }

    static void check_member(const Member& m) {
        if (!is_name(m.name)) {
            refuse(in_quotes(m.name) +
                   ": a name that a bundle cannot hold; pack files only, without "
                   "entries for folders (zip -0 -D)");
        }
        if (m.method != 0 || m.packed != m.size) {
            refuse(m.name + ": is compressed; pack the bundle without compression (zip -0)");
        }
        if ((m.mode & 0170000) == 0120000) {
            refuse(m.name + ": is a link, a bundle holds only files; pack the file itself");
        }
    }

    // That no name is there twice and no two members share a byte: otherwise one small file could
    // stand for many big ones. Sets where each one ends.
    void check_apart(std::vector<Member>& members, std::uint64_t size,
                     std::uint64_t directory) const {
        std::map<std::string_view, std::size_t> times;
        std::uint64_t total = 0;
        for (const Member& member : members) {
            ++times[member.name];
        }
        for (const Member& member : members) {
            if (times[member.name] > 1) {
                refuse(member.name + ": is in the archive " + std::to_string(times[member.name]) +
                       " times");
            }
        }
        for (const Member& member : members) {
            if (member.size > size - total) {
                refuse(name_ + ": its members are larger than the archive; damaged");
            }
            total += member.size;
        }
        std::stable_sort(members.begin(), members.end(),
                         [](const Member& a, const Member& b) { return a.start < b.start; });
        std::uint64_t end = 0;
        for (Member& m : members) {
            if (m.start < end) {
                refuse(m.name + ": overlaps another member of the archive; damaged");
            }
            const std::uint64_t bytes = local_bytes + m.name.size() + m.size;
            if (m.start > size || bytes > size - m.start) {
                refuse(m.name + ": lies outside the archive; it is cut short, copy it again");
            }
            end = m.start + bytes;
            const auto next = &m + 1;
            m.end =
                next == members.data() + members.size() ? std::max(directory, end) : next->start;
        }
    }

    // Where a member's bytes begin: after the header in front of them, which must be its own.
    std::uint64_t content(const Member& m) const {
        std::array<std::byte, local_bytes> header{};
        need(file_.read_at(m.start, header), "it is cut short");
        need(number(header, 0, 4) == local_mark, "the header in front of it is damaged");
        need((m.flags & encrypted_flags) == 0, "it is encrypted");
        std::vector<std::byte> name(number(header, 26, 2));
        need(file_.read_at(m.start + local_bytes, name) && text(name) == m.name,
             "it has another name in front than in the directory");
        const std::uint64_t start = m.start + local_bytes + name.size() + number(header, 28, 2);
        need(start <= m.end && m.size <= m.end - start, "it overlaps what comes after it");
        return start;
    }

    File file_;
    std::string name_;
    std::map<std::string, Member> members_;
};

}

std::unique_ptr<Container> open_archive(File file, const std::string& file_name) {
    return std::make_unique<Archive>(std::move(file), file_name);
}

}
