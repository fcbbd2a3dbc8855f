// Finds instances in the logits of any network. Reads a .npy file and writes a label PNG.
//     cluster_logits logits.npy labels.png [HEIGHT WIDTH]
// logits.npy: float32 (classes, h, w), as numpy.save writes it. labels.png: 16 bit, 0 = none, 1.. = instances, at HEIGHT x WIDTH
// (default: that of the logits).
//
// On a GPU: point the maps to your network's logits in device memory and call clusterer.enqueue(maps, result, stream), which returns at
// once.
#include "png_files.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <tfiseg.hpp>

// Reads a .npy file of float32 in C order and appends its shape to `shape`.
static std::vector<float> read_npy(const std::string &path, std::vector<long> &shape) {
    std::ifstream file(path, std::ios::binary);
    char start[10];
    if (!file.read(start, sizeof start) || std::memcmp(start, "\x93NUMPY", 6) != 0 || start[6] != 1)
        throw std::runtime_error(path + " is no .npy file of version 1");
    std::string header(size_t(uint8_t(start[8])) | size_t(uint8_t(start[9])) << 8, ' ');
    file.read(&header[0], std::streamsize(header.size()));
    if (header.find("'<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos)
        throw std::runtime_error(path + " must hold float32 in C order: numpy.ascontiguousarray(logits, numpy.float32)");
    size_t count = 1;
    for (size_t at = header.find("'shape': (") + 10; at < header.size() && header[at] != ')';) {
        char *end;
        const long side = std::strtol(&header[at], &end, 10);
        if (end == &header[at]) break;
        shape.push_back(side);
        count *= size_t(side);
        at = header.find_first_not_of(", ", size_t(end - header.data()));
    }
    std::vector<float> values(count);
    if (!file.read(reinterpret_cast<char *>(values.data()), std::streamsize(count * sizeof(float)))) throw std::runtime_error(path + " ends too early");
    return values;
}

static void run(int argc, char **argv) {
    if (argc != 3 && argc != 5) throw std::runtime_error("usage: cluster_logits logits.npy labels.png [HEIGHT WIDTH]");
    std::vector<long> shape;
    const std::vector<float> logits = read_npy(argv[1], shape);
    if (shape.size() != 3) throw std::runtime_error("the logits must be (classes, h, w)");

    tfiseg::Settings settings;  // defaults: every class except 0 is countable, and the split rule separates instances
    settings.max_instances = 256;
    tfiseg::Clusterer clusterer(settings);  // reuse it for all frames
    tfiseg::Maps maps;
    maps.logits = logits;
    maps.classes = int32_t(shape[0]);
    maps.grid = {int32_t(shape[1]), int32_t(shape[2])};
    const tfiseg::Size output = argc == 5 ? tfiseg::Size{std::atoi(argv[3]), std::atoi(argv[4])} : maps.grid;
    const tfiseg::Result result = clusterer.cluster(maps, output);

    int number = 0;
    for (const tfiseg::Instance &found : result.instances())
        std::printf("%d: class %d, score %.2f, box (%.0f, %.0f, %.0f, %.0f), %d pixels\n", ++number, found.class_id, found.score, found.x0, found.y0,
                    found.x1, found.y1, found.area);
    write_labels(argv[2], result.label_map(), result.size());
}

int main(int argc, char **argv) {
    try {
        run(argc, argv);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "cluster_logits: %s\n", error.what());
        return 1;
    }
}
