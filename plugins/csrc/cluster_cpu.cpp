// DisplacementFieldClustering on the CPU.
//
// Phases: classes (cpu_classes.h) -> basins (cpu_basins.h) -> region graph (cpu_region_graph.h) -> unions (cpu_unions.h, agglomeration.h)
// -> full resolution (cpu_output.h). All but the merges run on all threads. The arithmetic is in field.h, merge.h, sharpen.h, parts.h and
// upsample.h, which the GPU shares. Memory: the workspace (11 bytes per grid pixel with a class map, 18 with logits; 24 more with a second
// pass), 8 bytes twice per pixel pair that touches across basins, and about 200 per region.
#include <chrono>
#include <cmath>
#include <limits>
#include <new>

#include "check.h"
#include "cpu_output.h"
#include "cpu_unions.h"

namespace tfiseg {
namespace {

double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// No phase splits into more blocks than this: further threads would only be started and joined.
int32_t useful_threads(const tfiseg_problem &p) {
    const int32_t pixels = int32_t(int64_t(p.height) * p.width >> 12);
    return std::max(1, std::min(p.threads, std::max({p.height / 16, p.width / 64, p.out_height / 16, pixels})));
}

void cluster_picture(const tfiseg_problem &p, int32_t index, Team &team, tfiseg_result &result) {
    const double start = now_ms();
    const int64_t out_n = int64_t(p.out_height) * p.out_width;
    int32_t *label_map = result.label_map + index * out_n;
    uint8_t *semantic_map = result.semantic_map ? result.semantic_map + index * out_n : nullptr;
    Arena arena(result.workspace, result.workspace_bytes);
    int32_t *map = p.logits ? arena.take<int32_t>(int64_t(p.height) * p.width) : label_map;
    Picture picture(p, index, team, arena);
    RegionGraph graph = build_region_graph(picture, map);
    if (result.regions) result.regions[index] = int32_t(graph.regions.size());
    Unions unions(picture, graph);
    LargeVector<Region> instances = unions.run();
    const double clustered = now_ms();
    const uint8_t *semantic = picture.class_map;
    if (p.logits) {
        semantic = upsample(picture, instances, label_map, semantic_map);
    } else if (semantic_map) {
        std::copy_n(semantic, out_n, semantic_map);
    }
    if (result.semantic_map_32) std::copy_n(semantic, out_n, result.semantic_map_32 + index * out_n);
    result.count[index] = int32_t(instances.size());
    write_table(picture, instances, unions.is_stopped(), result.table + int64_t(index) * p.max_instances * TFISEG_TABLE_COLUMNS);
    result.cluster_ms += clustered - start;
    result.upsample_ms += now_ms() - clustered;
}

// Rows of tfiseg_region_graph.
void write_region(const Region &r, int64_t *row) {
    const int64_t values[8] = {r.area, r.sum_x, r.sum_y, r.sum_xx, r.sum_xy, r.sum_yy, r.peak, r.class_id};
    std::copy_n(values, 8, row);
}

void write_edge(const Edge &e, int64_t *row) {
    const int64_t values[7] = {e.a, e.b, e.saddle, e.contact, e.boundary_sum, e.affinity_sum, e.affinity_count};
    std::copy_n(values, 7, row);
}

template <class Work>
int32_t catch_errors(const Work &work) {
    try {
        work();
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    } catch (...) {
        return TFISEG_INTERNAL_ERROR;
    }
    return TFISEG_OK;
}

}  // namespace

int64_t cpu_workspace_bytes(const tfiseg_problem &p) {
    const int64_t grid = int64_t(p.height) * p.width, out = int64_t(p.out_height) * p.out_width;
    int64_t bytes = grid * (1 + 4);                              // classes, links
    bytes += p.displacement ? grid : grid * (2 + 4);             // centers; or column and squared distances
    if (p.scores || p.logits) bytes += grid * 2;                 // scores
    if (p.boundary && p.boundary_stride > 1) bytes += grid * 4;  // boundary
    if (p.logits) bytes += grid * (1 + 4) + out;                 // grid classes, grid labels, classes at the output size
    if (p.part_rule) bytes += grid * (3 * 4 + 1) + cpu_workspace_bytes(second_pass_problem(p, p.things));  // pieces, parts, distances, classes
    return bytes + 16 * Arena::kAlign;
}

}  // namespace tfiseg

extern "C" {

int32_t tfiseg_cluster_cpu(const tfiseg_problem *problem, tfiseg_result *result) {
    using namespace tfiseg;
    if (const int32_t status = check(problem, result, TFISEG_ON_CPU)) return status;
    return catch_errors([&] {
        Team team(useful_threads(*problem));
        result->cluster_ms = result->upsample_ms = 0.0;
        for (int32_t index = 0; index < problem->batch; ++index) cluster_picture(*problem, index, team, *result);
    });
}

int32_t tfiseg_region_graph(const tfiseg_problem *problem, int32_t *region_map, int64_t *regions, int64_t capacity_regions,
                            int64_t *edges, int64_t capacity_edges, int64_t *counts) {
    using namespace tfiseg;
    if (const int32_t status = check(problem, TFISEG_ON_CPU)) return status;
    if (const int32_t status = check_offsets(*problem)) return status;
    if (!region_map || !regions || !edges || !counts) return TFISEG_MISSING_POINTER;
    return catch_errors([&] {
        Team team(useful_threads(*problem));
        std::vector<char> workspace(size_t(tfiseg_workspace_size(problem, TFISEG_ON_CPU)));
        Picture picture(*problem, 0, team, Arena(workspace.data(), int64_t(workspace.size())));
        const RegionGraph graph = build_region_graph(picture, region_map);
        graph.map_ranks();
        counts[0] = int64_t(graph.regions.size());
        counts[1] = int64_t(graph.edges().size());
        for (int64_t k = 0; k < std::min(counts[0], capacity_regions); ++k) write_region(graph.regions[size_t(k)], regions + k * 8);
        for (int64_t k = 0; k < std::min(counts[1], capacity_edges); ++k) write_edge(graph.edges()[size_t(k)], edges + k * 7);
    });
}

}  // extern "C"
