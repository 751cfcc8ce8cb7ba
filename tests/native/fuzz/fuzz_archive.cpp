// A zip of any bytes: its directory, then every member. The file is one in memory.

#include <sys/mman.h>
#include <unistd.h>

#include "bundle/container.h"
#include "bundle/sums.h"
#include "try_to.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace cascade;
    File file(memfd_create("archive", 0));
    if (write(file.descriptor(), data, size) != static_cast<ssize_t>(size)) {
        __builtin_trap();
    }
    try_to([&] {
        const auto archive = open_archive(std::move(file), "a.zip");
        for (const std::string& name : archive->names()) {
            try_to([&] { parse_sums(archive->read(name, 1 << 16)); });
        }
    });
    return 0;
}
