// PNG files of any bytes: see decode.h.

#include "decode.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    return cascade::try_to_decode({data, size});
}
