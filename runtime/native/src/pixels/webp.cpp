// WebP by libwebp and libwebpdemux. In: the bytes of a file. Out: rows of RGB of the first frame,
// transparency laid on black. Spec: docs/bundle-format.md, "Preprocessing", 1 to 3.

#include <vector>

#include <webp/decode.h>
#include <webp/demux.h>

#include "pixels/colour.h"
#include "pixels/decoder.h"
#include "pixels/exif.h"

namespace cascade::pixels {
namespace {

struct DeleteDemuxer {
    void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};

// A frame's place and coded bytes, released with the object.
class FirstFrame {
public:
    explicit FirstFrame(const WebPDemuxer* demuxer) {
        if (WebPDemuxGetFrame(demuxer, 1, &frame_) == 0) {
            refuse_damaged("it has no frame");
        }
    }
    ~FirstFrame() { WebPDemuxReleaseIterator(&frame_); }
    FirstFrame(const FirstFrame&) = delete;
    FirstFrame& operator=(const FirstFrame&) = delete;
    const WebPIterator* operator->() const { return &frame_; }

private:
    WebPIterator frame_{};
};

class Webp final : public Decoder {
public:
    explicit Webp(Bytes file);

    int width() const override { return width_; }
    int height() const override { return height_; }
    int orientation() override;
    void decode(const RowSink& sink) override;

private:
    std::vector<std::byte> chunk(const char* name) const;

    std::unique_ptr<WebPDemuxer, DeleteDemuxer> demuxer_;
    int width_ = 0, height_ = 0;
    bool has_alpha_ = false;
};

Webp::Webp(Bytes file) {
    const WebPData data{reinterpret_cast<const std::uint8_t*>(file.data()), file.size()};
    WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
    demuxer_.reset(WebPDemuxPartial(&data, &state));
    if (state == WEBP_DEMUX_PARSING_HEADER || state == WEBP_DEMUX_PARSED_HEADER) {
        refuse_truncated();
    }
    if (demuxer_ == nullptr || state != WEBP_DEMUX_DONE) {
        refuse_damaged("its chunks are not those of a WebP file");
    }
    width_ = static_cast<int>(WebPDemuxGetI(demuxer_.get(), WEBP_FF_CANVAS_WIDTH));
    height_ = static_cast<int>(WebPDemuxGetI(demuxer_.get(), WEBP_FF_CANVAS_HEIGHT));
    WebPBitstreamFeatures features;
    has_alpha_ = WebPGetFeatures(data.bytes, data.size, &features) != VP8_STATUS_OK ||
                 features.has_alpha != 0;
}

std::vector<std::byte> Webp::chunk(const char* name) const {
    WebPChunkIterator found{};
    std::vector<std::byte> copy;
    if (WebPDemuxGetChunk(demuxer_.get(), name, 1, &found) != 0) {
        const auto bytes = std::as_bytes(std::span(found.chunk.bytes, found.chunk.size));
        copy.assign(bytes.begin(), bytes.end());
    }
    WebPDemuxReleaseChunkIterator(&found);
    return copy;
}

int Webp::orientation() { return upright_orientation(chunk("EXIF"), chunk("XMP ")); }

void Webp::decode(const RowSink& sink) {
    const FirstFrame frame(demuxer_.get());
    const std::size_t samples = has_alpha_ ? 4 : 3;
    const std::size_t stride = width_ * samples;
    std::vector<std::uint8_t> canvas(stride * height_);  // outside the frame: transparent, black
    WebPDecoderConfig config;
    if (WebPInitDecoderConfig(&config) == 0) {
        refuse_damaged("libwebp is of another version than it was compiled for");
    }
    const std::size_t corner = frame->y_offset * stride + frame->x_offset * samples;
    config.output.colorspace = has_alpha_ ? MODE_RGBA : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA = {canvas.data() + corner, static_cast<int>(stride),
                            canvas.size() - corner};
    const VP8StatusCode status =
        WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
    if (status == VP8_STATUS_OUT_OF_MEMORY) {
        throw std::bad_alloc();
    }
    if (status == VP8_STATUS_NOT_ENOUGH_DATA) {
        refuse_truncated();
    }
    if (status != VP8_STATUS_OK) {
        refuse_damaged("libwebp: status " + std::to_string(status));
    }
    for (int y = 0; y < height_; ++y) {
        std::uint8_t* row = canvas.data() + y * stride;
        for (int x = 0; has_alpha_ && x < width_; ++x) {  // in place: the front overtakes nothing
            const std::uint8_t* in = row + 4 * x;
            const std::uint8_t alpha = in[3];
            const std::uint8_t rgb[] = {on_black(in[0], alpha), on_black(in[1], alpha),
                                        on_black(in[2], alpha)};
            std::copy(rgb, rgb + 3, row + 3 * x);
        }
        sink(y, row);
    }
}

}  // namespace

std::unique_ptr<Decoder> open_webp(Bytes file) { return std::make_unique<Webp>(file); }

}  // namespace cascade::pixels
