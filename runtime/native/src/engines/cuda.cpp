// In: libcuda.so.1, where the driver is installed. Out: see cuda.h. On the primary context, which
// TensorRT and ONNX Runtime use as well. API: docs.nvidia.com/cuda, "CUDA Driver API".
#include "engines/cuda.h"

#include <algorithm>

#include "engines/library.h"
#include "error.h"

namespace cascade::cuda {
namespace {

constexpr int major_attribute = 75, minor_attribute = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_...
constexpr unsigned non_blocking = 1;                       // CU_STREAM_NON_BLOCKING

using Result = int;  // 0: it worked
using Context = void*;

// The members are named as the driver's functions are, but for the version that some end with.
struct Driver {
    Result (*cuInit)(unsigned);
    Result (*cuDeviceGetCount)(int*);
    Result (*cuDeviceGet)(int*, int);
    Result (*cuDeviceGetAttribute)(int*, int attribute, int device);
    Result (*cuDevicePrimaryCtxRetain)(Context*, int device);
    Result (*cuCtxSetCurrent)(Context);
    Result (*cuMemAlloc)(Pointer*, std::size_t);
    Result (*cuMemFree)(Pointer);
    Result (*cuStreamCreate)(Stream*, unsigned);
    Result (*cuStreamDestroy)(Stream);
    Result (*cuMemcpyHtoDAsync)(Pointer, const void*, std::size_t, Stream);
    Result (*cuMemcpyDtoHAsync)(void*, Pointer, std::size_t, Stream);
    Result (*cuStreamSynchronize)(Stream);
};

struct Found {
    std::string error, capability;
    Driver driver = {};
    Context context = nullptr;
};

void bind(const Library& library, Driver& driver) {
    library.bind(driver.cuInit, "cuInit");
    library.bind(driver.cuDeviceGetCount, "cuDeviceGetCount");
    library.bind(driver.cuDeviceGet, "cuDeviceGet");
    library.bind(driver.cuDeviceGetAttribute, "cuDeviceGetAttribute");
    library.bind(driver.cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
    library.bind(driver.cuCtxSetCurrent, "cuCtxSetCurrent");
    library.bind(driver.cuMemAlloc, "cuMemAlloc_v2");
    library.bind(driver.cuMemFree, "cuMemFree_v2");
    library.bind(driver.cuStreamCreate, "cuStreamCreate");
    library.bind(driver.cuStreamDestroy, "cuStreamDestroy_v2");
    library.bind(driver.cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2");
    library.bind(driver.cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2");
    library.bind(driver.cuStreamSynchronize, "cuStreamSynchronize");
}

Found look() {
    Found found;
    const Library library(
        {.place = {}, .names = {"libcuda.so.1"}, .advice = "install the NVIDIA driver"});
    if (!library.found()) {
        found.error = "no NVIDIA GPU: " + library.error();
        return found;
    }
    Driver& driver = found.driver;
    bind(library, driver);
    int count = 0, device = 0, major = 0, minor = 0;
    if (const Result result = driver.cuInit(0); result != 0) {
        found.error = "no NVIDIA GPU (the driver gives error " + std::to_string(result) + ")";
        return found;
    }
    if (driver.cuDeviceGetCount(&count) != 0 || count < 1 || driver.cuDeviceGet(&device, 0) != 0) {
        found.error = "no NVIDIA GPU (the driver counts none)";
        return found;
    }
    driver.cuDeviceGetAttribute(&major, major_attribute, device);
    driver.cuDeviceGetAttribute(&minor, minor_attribute, device);
    found.capability = "sm" + std::to_string(major) + std::to_string(minor);
    if (driver.cuDevicePrimaryCtxRetain(&found.context, device) != 0) {
        found.error = "the NVIDIA GPU cannot be used (another process has it?); see nvidia-smi";
    }
    return found;
}

const Found& found() {
    static const Found once = [] {
        try {
            return look();
        } catch (const Error& error) {
            Found none;
            none.error = error.what();
            return none;
        }
    }();
    return once;
}

void check(Result result) {
    if (result == 0) return;
    throw Error(Status::failure, "the GPU failed with error " + std::to_string(result) +
                                     "; see nvidia-smi and dmesg");
}

}  // namespace

std::optional<std::string> missing() {
    if (found().error.empty()) return std::nullopt;
    return found().error;
}

std::string capability() { return found().capability; }

void use() { check(found().driver.cuCtxSetCurrent(found().context)); }

Pointer allocate(std::size_t bytes) {
    Pointer pointer = 0;
    check(found().driver.cuMemAlloc(&pointer, std::max<std::size_t>(bytes, 1)));
    return pointer;
}

void release(Pointer pointer) noexcept { found().driver.cuMemFree(pointer); }

Stream make_stream() {
    Stream stream = nullptr;
    check(found().driver.cuStreamCreate(&stream, non_blocking));
    return stream;
}

void release(Stream stream) noexcept { found().driver.cuStreamDestroy(stream); }

void upload(Pointer to, const void* from, std::size_t bytes, Stream stream) {
    check(found().driver.cuMemcpyHtoDAsync(to, from, bytes, stream));
}

void download(void* to, Pointer from, std::size_t bytes, Stream stream) {
    check(found().driver.cuMemcpyDtoHAsync(to, from, bytes, stream));
}

void wait(Stream stream) { check(found().driver.cuStreamSynchronize(stream)); }

}  // namespace cascade::cuda
