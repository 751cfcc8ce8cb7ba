// See images.h.
#include "images.h"

#include <limits>

#include "copy_struct.h"

namespace cascade {
namespace {

[[noreturn]] void refuse_image(std::size_t index, const std::string& what) {
    throw Error(Status::usage, "images[" + std::to_string(index) + "]" + what);
}

Encoded bytes_of(const void* data, std::size_t size, std::size_t index) {
    if (data == nullptr && size > 0) refuse_image(index, ".data is null");
    return {static_cast<const std::byte*>(data), size};
}

Frame frame_of(const cascade_image& image, std::size_t index) {
    if (image.format < CASCADE_RGB || image.format > CASCADE_NV12) {
        refuse_image(index, ".format is " + std::to_string(image.format) + ", must be 0 to 5");
    }
    constexpr std::uint32_t most = std::numeric_limits<int>::max();
    if (image.width > most || image.height > most) {
        refuse_image(index, ": no frame is " + std::to_string(image.width) + " x " +
                                std::to_string(image.height) + " pixels");
    }
    Frame frame;
    frame.format = static_cast<FrameFormat>(image.format);
    frame.width = static_cast<int>(image.width);
    frame.height = static_cast<int>(image.height);
    frame.planes[0] = bytes_of(image.data, image.size, index);
    frame.strides = {image.stride, image.chroma_stride};
    if (image.chroma != nullptr) {
        frame.planes[1] = bytes_of(image.chroma, image.chroma_size, index);
    } else if (frame.format == FrameFormat::nv12) {
        // The second plane lies behind the first, as one buffer of a camera has them.
        const std::size_t stride = image.stride != 0 ? image.stride : image.width;
        const std::size_t luma = stride * image.height;  // no overflow: both are below 2^31 ...
        if (stride > most || luma > image.size) {        // ... or it is refused here
            refuse_image(index, ": " + std::to_string(image.size) +
                                    " bytes are too few for the frame's first plane");
        }
        frame.planes[1] = frame.planes[0].subspan(luma);
        frame.planes[0] = frame.planes[0].first(luma);
    }
    return frame;
}

Image image_of(const cascade_image& image, std::size_t index) {
    switch (image.kind) {
        case CASCADE_IMAGE_FILE:
            if (image.path == nullptr) refuse_image(index, ".path is null");
            return FilePath{image.path};
        case CASCADE_IMAGE_ENCODED:
            return bytes_of(image.data, image.size, index);
        case CASCADE_IMAGE_FRAME:
            return frame_of(image, index);
        default:
            refuse_image(index, ".kind is " + std::to_string(image.kind) + ", must be 0 to 2");
    }
}

}  // namespace

std::vector<Image> images_of(const cascade_image* images, std::size_t count) {
    std::vector<Image> found;
    found.reserve(count);
    const std::size_t stride = images->struct_size;
    const auto* place = reinterpret_cast<const unsigned char*>(images);
    for (std::size_t index = 0; index < count; ++index, place += stride) {
        const auto* given = reinterpret_cast<const cascade_image*>(place);
        if (given->struct_size != stride) {
            refuse_image(index, ".struct_size is not that of the first image");
        }
        cascade_image image = {};
        copy_in(*given, image, "cascade_image");
        found.push_back(image_of(image, index));
    }
    return found;
}

}  // namespace cascade
