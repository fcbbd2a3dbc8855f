// Clusters problems that test_aarch64.py wrote, on the machine or emulator that runs this.
//     run_problems PROBLEMS RESULTS [THREADS]
// PROBLEMS: for each, an int64 size, then a tfiseg_problem whose pointers are offsets from the size's place (0: NULL), then what they
// point to. RESULTS: for each, label map, semantic map, counts, regions, table (rows that are not written are 0).
#include <tfiseg.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

template <class T>
void locate(const T *&pointer, const char *base) {
    if (pointer) pointer = reinterpret_cast<const T *>(base + reinterpret_cast<intptr_t>(pointer));
}

template <class T>
void write(std::ofstream &file, const std::vector<T> &values) {
    file.write(reinterpret_cast<const char *>(values.data()), std::streamsize(values.size() * sizeof(T)));
}

template <>
void locate(const void *&pointer, const char *base) {
    if (pointer) pointer = base + reinterpret_cast<intptr_t>(pointer);
}

void solve(tfiseg_problem p, const char *base, std::ofstream &file) {
    locate(p.class_map, base);
    for (const void **map : {&p.logits, &p.displacement, &p.boundary, &p.affinity, &p.scores}) locate(*map, base);
    locate(p.affinity_offsets_yx, base);
    locate(p.things, base);
    locate(p.split, base);
    locate(p.evidence_rule, base);
    locate(p.part_rule, base);
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
        solve(problem, &problems[at], results);
        at += size_t(bytes);
    }
    return results.flush() ? 0 : 1;
}
