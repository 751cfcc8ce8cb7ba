// A command for tests. In, on standard input, one request a line, fields separated by tabs:
//
//     image PATH HEIGHT WIDTH FILTER CROP MAX_PIXELS JPEG
//     frame PATH FORMAT WIDTH HEIGHT STRIDE0 STRIDE1 HEIGHT WIDTH FILTER CROP MAX_PIXELS JPEG
//     time COUNT PATH HEIGHT WIDTH FILTER CROP MAX_PIXELS JPEG
//
// The file of a frame holds its planes one after the other. Out, for each: "ok N" and, in the next
// N bytes, the pixels; or "error STATUS REASON". `time` decodes the file COUNT times and gives "ok 0
// SECONDS" of processor time.

#include <ctime>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "error.h"
#include "pixels/pixels.h"

using namespace cascade;
using Fields = std::vector<std::string>;

namespace {

Fields split(const std::string& line) {
    Fields fields;
    std::istringstream stream(line);
    for (std::string field; std::getline(stream, field, '\t');) {
        fields.push_back(field);
    }
    return fields;
}

Preprocess spec_of(const Fields& fields, std::size_t at) {
    Preprocess spec;
    spec.height = std::stoi(fields.at(at));
    spec.width = std::stoi(fields.at(at + 1));
    spec.resize = fields.at(at + 2);
    spec.crop = fields.at(at + 3);
    spec.max_pixels = std::stoll(fields.at(at + 4));
    spec.jpeg = fields.at(at + 5);
    return spec;
}

std::vector<std::uint8_t> output_of(const Preprocess& spec) {
    return std::vector<std::uint8_t>(std::size_t{3} * spec.height * spec.width);
}

std::vector<std::uint8_t> image(const Fields& fields) {
    const Preprocess spec = spec_of(fields, 2);
    std::vector<std::uint8_t> out = output_of(spec);
    load_image(read_image_file(fields.at(1), spec.max_pixels), spec, out);
    return out;
}

std::vector<std::uint8_t> frame(const Fields& fields) {
    static const std::map<std::string, FrameFormat> formats = {
        {"rgb", FrameFormat::rgb},   {"bgr", FrameFormat::bgr},   {"rgba", FrameFormat::rgba},
        {"bgra", FrameFormat::bgra}, {"grey", FrameFormat::grey}, {"nv12", FrameFormat::nv12}};
    const Preprocess spec = spec_of(fields, 7);
    const std::vector<std::byte> bytes = read_image_file(fields.at(1), spec.max_pixels);
    Frame frame;
    frame.format = formats.at(fields.at(2));
    frame.width = std::stoi(fields.at(3));
    frame.height = std::stoi(fields.at(4));
    frame.strides = {std::stoull(fields.at(5)), std::stoull(fields.at(6))};
    const std::size_t luma = frame.format == FrameFormat::nv12
                                 ? std::min(bytes.size(), frame.strides[0] * frame.height)
                                 : bytes.size();
    frame.planes = {std::span(bytes).first(luma), std::span(bytes).subspan(luma)};
    std::vector<std::uint8_t> out = output_of(spec);
    load_frame(frame, spec, out);
    return out;
}

double time(const Fields& fields) {
    const Preprocess spec = spec_of(fields, 3);
    std::vector<std::uint8_t> out = output_of(spec);
    const std::vector<std::byte> bytes = read_image_file(fields.at(2), spec.max_pixels);
    const std::clock_t start = std::clock();
    for (int i = 0; i < std::stoi(fields.at(1)); ++i) {
        load_image(bytes, spec, out);
    }
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const Fields fields = split(line);
        try {
            if (fields.at(0) == "time") {
                std::cout << "ok 0 " << time(fields) << std::endl;
                continue;
            }
            const std::vector<std::uint8_t> out =
                fields.at(0) == "frame" ? frame(fields) : image(fields);
            std::cout << "ok " << out.size() << '\n';
            std::cout.write(reinterpret_cast<const char*>(out.data()),
                            static_cast<std::streamsize>(out.size()));
            std::cout.flush();
        } catch (const Error& error) {
            std::cout << "error " << static_cast<int>(error.status) << ' ' << error.what()
                      << std::endl;
        }
    }
}
