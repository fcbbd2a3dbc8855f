// Reads and writes PNG files with libpng's simplified interface.
#ifndef TFISEG_SAMPLES_PNG_FILES_H_
#define TFISEG_SAMPLES_PNG_FILES_H_

#include <png.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <tfiseg.hpp>

// Writes a label map as a PNG of 16 bits per pixel.
inline void write_labels(const std::string &path, tfiseg::Span<const int32_t> label_map, tfiseg::Size size) {
    const std::vector<uint16_t> labels(label_map.begin(), label_map.end());
    png_image image = {};
    image.version = PNG_IMAGE_VERSION;
    image.width = png_uint_32(size.width);
    image.height = png_uint_32(size.height);
    image.format = PNG_FORMAT_LINEAR_Y;  // 16 bits
    if (!png_image_write_to_file(&image, path.c_str(), 0, labels.data(), 0, nullptr)) throw std::runtime_error(path + ": " + image.message);
}

// Reads a PNG as a frame: BGR, 8 bits, rows without padding.
inline std::vector<uint8_t> read_frame(const std::string &path, tfiseg::Size &size) {
    png_image image = {};
    image.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_file(&image, path.c_str())) throw std::runtime_error(path + ": " + image.message);
    image.format = PNG_FORMAT_BGR;
    size = {int32_t(image.height), int32_t(image.width)};
    std::vector<uint8_t> frame(PNG_IMAGE_SIZE(image));
    if (!png_image_finish_read(&image, nullptr, frame.data(), 0, nullptr)) throw std::runtime_error(path + ": " + image.message);
    return frame;
}

#endif
