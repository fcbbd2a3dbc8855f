// Clusters the problems of test_aarch64.py on the machine or emulator that runs this program.
//     run_problems PROBLEMS RESULTS [THREADS]
// PROBLEMS: for each problem, an int64 size, a tfiseg_problem, and its arrays. The pointers of the structure are offsets from the address
// of the size (0: NULL). RESULTS: for each problem, label map, semantic map, counts, regions and table, whose unused rows are 0.
#include <tfiseg.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

template <class T>
void relocate(const T *&pointer, const char *base) {
    if (pointer) pointer = reinterpret_cast<const T *>(base + reinterpret_cast<intptr_t>(pointer));
}

template <class T>
void write(std::ofstream &file, const std::vector<T> &values) {
    file.write(reinterpret_cast<const char *>(values.data()), std::streamsize(values.size() * sizeof(T)));
}

template <>
void relocate(const void *&pointer, const char *base) {
    if (pointer) pointer = base + reinterpret_cast<intptr_t>(pointer);
}

void cluster(tfiseg_problem p, const char *base, std::ofstream &file) {
    relocate(p.class_map, base);
    for (const void **map : {&p.logits, &p.displacement, &p.boundary, &p.affinity, &p.scores}) relocate(*map, base);
    relocate(p.affinity_offsets_yx, base);
    relocate(p.things, base);
    relocate(p.split, base);
    relocate(p.evidence_rule, base);
    relocate(p.part_rule, base);
    const size_t n = size_t(p.batch), pixels = n * size_t(p.out_height) * size_t(p.out_width);
    std::vector<int32_t> label_map(pixels), count(n), regions(n);
    std::vector<uint8_t> semantic_map(pixels);
    std::vector<float> table(n * size_t(p.max_instances) * TFISEG_TABLE_COLUMNS);
    std::vector<char> workspace(size_t(tfiseg_workspace_size(&p, TFISEG_ON_CPU)));
    tfiseg_result result = {};
    result.struct_size = sizeof result;
    result.label_map = label_map.data();
    result.semantic_map = semantic_map.data();
    result.count = count.data();
    result.regions = regions.data();
    result.table = table.data();
    result.workspace = workspace.data();
    result.workspace_bytes = int64_t(workspace.size());
    if (const int32_t status = tfiseg_cluster_cpu(&p, &result)) {
        std::fprintf(stderr, "%s\n", tfiseg_status_string(status));
        std::exit(1);
    }
    write(file, label_map);
    write(file, semantic_map);
    write(file, count);
    write(file, regions);
    write(file, table);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    std::ifstream file(argv[1], std::ios::binary);
    const std::vector<char> problems((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::ofstream results(argv[2], std::ios::binary);
    for (size_t at = 0; at < problems.size();) {
        int64_t bytes;
        tfiseg_problem problem;
        std::memcpy(&bytes, &problems[at], sizeof bytes);
        std::memcpy(&problem, &problems[at + sizeof bytes], sizeof problem);
        if (argc > 3) problem.threads = std::atoi(argv[3]);
        cluster(problem, &problems[at], results);
        at += size_t(bytes);
    }
    return results.flush() ? 0 : 1;
}
