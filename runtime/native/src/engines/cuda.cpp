// In: libcuda.so.1, where the driver is installed. Out: see cuda.h.
// API: docs.nvidia.com/cuda, "CUDA Driver API".
#include "engines/cuda.h"

#include "engines/library.h"
#include "error.h"

namespace cascade::cuda {
namespace {

constexpr int major_attribute = 75, minor_attribute = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_...

struct Found {
    std::string error, capability;
};

Found look() {
    const Library driver({.place = {},
                          .names = {"libcuda.so.1"},
                          .advice = "install the NVIDIA driver"});
    if (!driver.found()) return {"no NVIDIA GPU: " + driver.error(), {}};
    int (*init)(unsigned) = nullptr;
    int (*get_count)(int*) = nullptr;
    int (*get_device)(int*, int) = nullptr;
    int (*get_attribute)(int*, int, int) = nullptr;
    driver.bind(init, "cuInit");
    driver.bind(get_count, "cuDeviceGetCount");
    driver.bind(get_device, "cuDeviceGet");
    driver.bind(get_attribute, "cuDeviceGetAttribute");
    int count = 0, device = 0, major = 0, minor = 0;
    if (const int result = init(0); result != 0) {
        return {"no NVIDIA GPU (the driver gives error " + std::to_string(result) + ")", {}};
    }
    if (get_count(&count) != 0 || count < 1 || get_device(&device, 0) != 0) {
        return {"no NVIDIA GPU (the driver counts none)", {}};
    }
    get_attribute(&major, major_attribute, device);
    get_attribute(&minor, minor_attribute, device);
    return {{}, "sm" + std::to_string(major) + std::to_string(minor)};
}

const Found& found() {
    static const Found once = [] {
        try {
            return look();
        } catch (const Error& error) {
            return Found{error.what(), {}};
        }
    }();
    return once;
}

}  // namespace

std::optional<std::string> missing() {
    if (found().error.empty()) return std::nullopt;
    return found().error;
}

std::string capability() { return found().capability; }

}  // namespace cascade::cuda
