// Instances in a C++ program, through tfiseg's C API: logits from a file, a label PNG out.
//     cluster_logits logits.npy labels.png [HEIGHT WIDTH]
// logits.npy: float32 (classes, h, w), as numpy.save writes it. labels.png: 16 bit, 0 = none, 1.. = instances, at HEIGHT x WIDTH
// (default: that of the logits).
//
// On a GPU, with logits that your network left there: give device pointers, ask tfiseg_workspace_size(&problem, TFISEG_ON_CUDA),
// and call tfiseg_cluster_cuda(&problem, &result, stream), which enqueues and returns.
#include <png.h>
#include <tfiseg.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

[[noreturn]] static void fail(const std::string &what) {
    std::fprintf(stderr, "cluster_logits: %s\n", what.c_str());
    std::exit(1);
}

// A .npy file of float32 in C order; its shape goes to `shape`.
static std::vector<float> read_npy(const std::string &path, std::vector<long> &shape) {
    std::ifstream file(path, std::ios::binary);
    char start[10];
    if (!file.read(start, sizeof start) || std::memcmp(start, "\x93NUMPY", 6) != 0 || start[6] != 1) fail(path + " is no .npy file of version 1");
    std::string header(size_t(uint8_t(start[8])) | size_t(uint8_t(start[9])) << 8, ' ');
    file.read(&header[0], std::streamsize(header.size()));
    if (header.find("'<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos)
        fail(path + " must hold float32 in C order: numpy.ascontiguousarray(logits, numpy.float32)");
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
    if (!file.read(reinterpret_cast<char *>(values.data()), std::streamsize(count * sizeof(float)))) fail(path + " ends too early");
    return values;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 5) fail("usage: cluster_logits logits.npy labels.png [HEIGHT WIDTH]");
    std::vector<long> shape;
    const std::vector<float> logits = read_npy(argv[1], shape);
    if (shape.size() != 3) fail("the logits must be (classes, h, w)");

    // What to do. Everything that is left at zero is not given.
    std::vector<uint8_t> things(256, 1);  // every class but 0 is countable
    std::vector<double> split(256, std::nan(""));  // every neck is decided from its shape
    tfiseg_problem problem = {};
    problem.struct_size = sizeof problem;
    problem.batch = 1;
    problem.classes = int32_t(shape[0]);
    problem.height = int32_t(shape[1]);
    problem.width = int32_t(shape[2]);
    problem.out_height = argc == 5 ? std::atoi(argv[3]) : problem.height;
    problem.out_width = argc == 5 ? std::atoi(argv[4]) : problem.width;
    problem.logits = logits.data();
    problem.things = things.data();
    problem.split = split.data();
    problem.min_area = 25;
    problem.max_instances = 256;
    problem.threads = int32_t(std::max(1u, std::thread::hardware_concurrency()));

    // Where the result goes. A robot keeps these from frame to frame.
    const int64_t bytes = tfiseg_workspace_size(&problem, TFISEG_ON_CPU);
    if (bytes == 0) fail("this problem can't be clustered: " + std::string(tfiseg_status_string(TFISEG_BAD_SHAPE)));
    std::vector<char> workspace(static_cast<size_t>(bytes));
    std::vector<int32_t> label_map(size_t(problem.out_height) * size_t(problem.out_width));
    std::vector<float> table(size_t(problem.max_instances) * TFISEG_TABLE_COLUMNS);
    int32_t count = 0;
    tfiseg_result result = {};
    result.struct_size = sizeof result;
    result.label_map = label_map.data();
    result.count = &count;
    result.table = table.data();
    result.workspace = workspace.data();
    result.workspace_bytes = bytes;
    if (const int32_t status = tfiseg_cluster_cpu(&problem, &result)) fail(tfiseg_status_string(status));

    for (int32_t k = 0; k < count; ++k) {
        const float *row = &table[size_t(k) * TFISEG_TABLE_COLUMNS];
        std::printf("%d: class %.0f, score %.2f, box (%.0f, %.0f, %.0f, %.0f), %.0f pixels\n", k + 1, row[0], row[1], row[2], row[3], row[4], row[5], row[6]);
    }
    const std::vector<uint16_t> grey(label_map.begin(), label_map.end());
    png_image image = {};
    image.version = PNG_IMAGE_VERSION;
    image.width = png_uint_32(problem.out_width);
    image.height = png_uint_32(problem.out_height);
    image.format = PNG_FORMAT_LINEAR_Y;  // 16 bit
    if (!png_image_write_to_file(&image, argv[2], 0, grey.data(), 0, nullptr)) fail(image.message);
    return 0;
}
