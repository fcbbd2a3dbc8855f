// Compares the CPU operator with the GPU phases (shuffled.cpp on a CPU, cuda_runner.cu on a GPU) for random problems, views, refined masks
// and frames to preprocess, and checks that arguments out of range are rejected. Build it with sanitizers, or run it under
// compute-sanitizer.
//     fuzz CASES [FIRST_SEED]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../plugins/csrc/tfiseg.h"

extern "C" {
int32_t cluster_by_phases(const tfiseg_problem *, tfiseg_result *, uint32_t seed, int32_t threads);
int32_t cut_views_by_phases(const tfiseg_views *, uint32_t seed, int32_t threads);
int32_t place_pieces_by_phases(const tfiseg_views *, const tfiseg_pieces *, uint32_t seed, int32_t threads);
int32_t fit_by_phases(const uint8_t *frame, int32_t h, int32_t w, float *out, int32_t out_h, int32_t out_w, uint32_t seed, int32_t threads);
int32_t cut_mask_views_by_phases(const tfiseg_mask_views *, uint32_t seed, int32_t threads);
int32_t refine_masks_by_phases(const tfiseg_mask_refinement *, uint32_t seed, int32_t threads);
}

namespace {

struct Output {
    std::vector<int32_t> label_map, count, regions;
    std::vector<uint8_t> semantic_map;
    std::vector<float> table;
    tfiseg_result result = {};

    explicit Output(const tfiseg_problem &p) {
        const size_t n = size_t(p.batch), pixels = n * size_t(p.out_height) * size_t(p.out_width);
        label_map.assign(pixels, -7);
        semantic_map.assign(pixels, 77);
        count.assign(n, -7);
        regions.assign(n, -7);
        table.assign(n * size_t(p.max_instances) * TFISEG_TABLE_COLUMNS, 0.0f);
        result.struct_size = sizeof result;
        result.label_map = label_map.data();
        result.semantic_map = semantic_map.data();
        result.count = count.data();
        result.regions = regions.data();
        result.table = table.data();
    }

    bool same_as(const Output &o) const {
        return label_map == o.label_map && semantic_map == o.semantic_map && count == o.count && regions == o.regions;
    }
};

std::vector<float> randoms(std::mt19937 &random, size_t n, float low, float high) {
    std::uniform_real_distribution<float> any(low, high);
    std::vector<float> values(n);
    for (float &v : values) v = any(random);
    return values;
}

// Replaces random values by values out of range, infinity and NaN, like a faulty network.
void corrupt(std::mt19937 &random, std::vector<float> &values) {
    const float wrong[] = {-3.0f, 3.0f, 1e30f, -1e30f, 1e-40f, HUGE_VALF, -HUGE_VALF, std::nanf("")};
    const uint32_t interval = 1 + random() % 40;
    for (float &v : values)
        if (random() % interval == 0) v = wrong[random() % 8];
}

bool compare_results(uint32_t seed) {
    std::mt19937 random(seed);
    const auto below = [&](int32_t n) { return int32_t(random() % uint32_t(n)); };
    tfiseg_problem p = {};
    p.struct_size = sizeof p;
    p.batch = 1 + below(2);
    p.height = 1 + below(48);
    p.width = 1 + below(48);
    p.out_height = p.height;
    p.out_width = p.width;
    p.classes = 2 + below(4);
    p.centre_radius = 2.5;
    p.merge_affinity = 0.3;
    p.min_area = below(12);
    p.max_instances = below(4) ? 1000 : 1 + below(5);
    p.threads = 1 + below(4);
    const size_t plane = size_t(p.height) * size_t(p.width), n = plane * size_t(p.batch);
    std::vector<uint8_t> things(256, 1);
    things[0] = things[255] = 0;
    const double ratios[] = {0.0, 0.4, 0.9, 0.0 / 1.0};
    std::vector<double> split(256, below(2) ? std::nan("") : ratios[below(4)]);
    p.things = things.data();
    p.split = split.data();

    std::vector<uint8_t> map(n);
    const int32_t block = 1 + below(7), classes = p.classes;
    std::vector<uint8_t> coarse(n);
    for (uint8_t &c : coarse) c = uint8_t(below(classes));
    for (size_t i = 0; i < n; ++i) {
        const size_t y = i / size_t(p.width), x = i % size_t(p.width);
        map[i] = below(30) ? coarse[(y / size_t(block) * size_t(p.width) + x / size_t(block)) % n] : uint8_t(below(2) ? 255 : 0);
    }
    std::vector<float> logits, displacement, boundary, affinity, scores, rule, part_rule;
    std::vector<int32_t> offsets;
    if (below(2)) {
        p.class_map = map.data();
    } else {
        logits = randoms(random, n * size_t(p.classes), 0.0f, 1.0f);
        for (size_t i = 0; i < n; ++i) {
            const size_t picture = i / plane, at = i % plane;
            if (map[i] < p.classes) logits[(picture * size_t(p.classes) + map[i]) * plane + at] += 2.0f;
        }
        p.logits = logits.data();
        p.out_height = 1 + below(90);
        p.out_width = 1 + below(90);
    }
    if (below(3) == 0) p.displacement = (displacement = randoms(random, 2 * n, -6.0f, 6.0f)).data();
    if (below(3) == 0) p.boundary = (boundary = randoms(random, n, 0.0f, 1.0f)).data();
    if (below(3) == 0) p.scores = (scores = randoms(random, n, 0.0f, 1.0f)).data();
    if (below(3) == 0) {
        p.affinity_channels = 1 + below(4);
        p.affinity_stride = 1 + below(4);
        const size_t cells = size_t((p.height + p.affinity_stride - 1) / p.affinity_stride) * size_t((p.width + p.affinity_stride - 1) / p.affinity_stride);
        p.affinity = (affinity = randoms(random, size_t(p.batch * p.affinity_channels) * cells, 0.0f, 1.0f)).data();
        for (int32_t k = 0; k < 2 * p.affinity_channels; ++k) offsets.push_back(below(7) - 3);
        p.affinity_offsets_yx = offsets.data();
        if (below(2)) {
            p.evidence_hidden = 1 + below(8);
            rule = randoms(random, size_t(p.evidence_hidden) * (TFISEG_EVIDENCE_FEATURES + 2) + 1, -1.0f, 1.0f);
            p.evidence_rule = rule.data();
        }
        if (below(3)) {  // a second pass, with lines with gaps as boundary
            p.part_hidden = 1 + below(8);
            part_rule = randoms(random, size_t(p.part_hidden) * (TFISEG_EVIDENCE_FEATURES + 2) + 1, -1.0f, 1.0f);
            p.part_rule = part_rule.data();
            boundary = randoms(random, n, 0.0f, 0.4f);
            const size_t spacing = size_t(6 + below(20)), is_horizontal = size_t(below(2));
            for (size_t i = 0; i < n; ++i)
                if ((is_horizontal ? i / size_t(p.width) : i % size_t(p.width)) % spacing == spacing / 2 && below(12)) boundary[i] = 0.9f;
            p.boundary = boundary.data();
        }
    }

    if (below(3) == 0) {
        for (std::vector<float> *values : {&displacement, &boundary, &affinity, &scores, &rule, &part_rule})
            if (below(2)) corrupt(random, *values);
        if (below(4) == 0) p.merge_affinity = std::nan("");
        if (below(4) == 0) p.centre_radius = std::nan("");
        if (below(4) == 0) split[1] = below(2) ? HUGE_VAL : -HUGE_VAL;
        for (int32_t &offset : offsets)
            if (below(6) == 0) offset = below(2) ? TFISEG_MAX_SIDE : -TFISEG_MAX_SIDE;
    }
    if (p.boundary && below(2)) p.sharpen = 1 + below(8);
    p.boundary_stride = below(2) ? 1 : 1 + below(3);
    Output cpu(p), gpu(p);
    std::vector<char> workspace(size_t(tfiseg_workspace_size(&p, TFISEG_ON_CPU)));
    cpu.result.workspace = workspace.data();
    cpu.result.workspace_bytes = int64_t(workspace.size());
    if (const int32_t status = tfiseg_cluster_cpu(&p, &cpu.result)) {
        std::printf("seed %u: %s\n", seed, tfiseg_status_string(status));
        return false;
    }
    std::vector<char> gpu_workspace(size_t(tfiseg_workspace_size(&p, TFISEG_ON_CUDA)));
    gpu.result.workspace = gpu_workspace.data();
    gpu.result.workspace_bytes = int64_t(gpu_workspace.size());
    if (const int32_t status = cluster_by_phases(&p, &gpu.result, seed, 1 + below(3))) {
        std::printf("seed %u, phases: %s\n", seed, tfiseg_status_string(status));
        return false;
    }
    if (!cpu.same_as(gpu)) std::printf("seed %u: the results of phases and CPU differ\n", seed);
    return cpu.same_as(gpu);
}

// Rendered views and placed instances, of the CPU's threads or of the phases.
struct ViewsOutput {
    std::vector<int32_t> views, label_map, count, component_of;
    std::vector<uint8_t> images, masks, own;
    std::vector<float> table;
    std::vector<char> workspace;
    tfiseg_views call;
    tfiseg_pieces placed = {};

    ViewsOutput(const tfiseg_views &v, int32_t max_parts) : call(v) {
        const size_t cells = size_t(v.view_count) * size_t(v.view_side) * size_t(v.view_side), pixels = size_t(v.height) * size_t(v.width);
        const size_t rows = size_t(v.max_components + v.view_count * (max_parts - 1));
        views.assign(size_t(v.view_count) * TFISEG_VIEW_COLUMNS, -7);
        images.assign(cells * 3, 77);
        masks.assign(cells, 77);
        own.assign(cells, 77);
        label_map.assign(pixels, -7);
        count.assign(1, -7);
        component_of.assign(rows, -7);
        table.assign(rows * TFISEG_TABLE_COLUMNS, -7.0f);
        workspace.resize(size_t(tfiseg_views_workspace_size(&v, max_parts)));
        call.views = views.data();
        call.images = images.data();
        call.masks = masks.data();
        call.own = own.data();
        call.workspace = workspace.data();
        call.workspace_bytes = int64_t(workspace.size());
        placed.struct_size = sizeof placed;
        placed.max_parts = max_parts;
        placed.label_map = label_map.data();
        placed.count = count.data();
        placed.table = table.data();
        placed.component_of = component_of.data();
    }

    bool same_as(const ViewsOutput &o) const {
        return views == o.views && images == o.images && masks == o.masks && own == o.own && label_map == o.label_map && count == o.count &&
               component_of == o.component_of && table == o.table;
    }
};

// Refined masks, once by the CPU's threads and once by the phases.
struct RefinedOutput {
    std::vector<int32_t> label_map, count, instance_of;
    std::vector<float> table;
    std::vector<char> workspace;
    tfiseg_mask_refinement refinement;

    explicit RefinedOutput(const tfiseg_mask_refinement &r) : refinement(r) {
        label_map.assign(size_t(r.height) * size_t(r.width), -7);
        count.assign(1, -7);
        instance_of.assign(size_t(r.max_instances), -7);
        table.assign(size_t(r.max_instances) * TFISEG_TABLE_COLUMNS, -7.0f);
        workspace.resize(size_t(tfiseg_refine_masks_workspace_size(&r)));
        refinement.refined_map = label_map.data();
        refinement.refined_count = count.data();
        refinement.refined_table = table.data();
        refinement.instance_of = instance_of.data();
        refinement.workspace = workspace.data();
        refinement.workspace_bytes = int64_t(workspace.size());
    }

    bool same_as(const RefinedOutput &o) const {
        return label_map == o.label_map && count == o.count && instance_of == o.instance_of && table == o.table;
    }
};

// Instances in the components of some views, and foreground maps with any values: NaN and values out of range, too.
bool compare_refined_masks(uint32_t seed, const tfiseg_views &components, const ViewsOutput &instances, std::mt19937 &random) {
    std::vector<int32_t> sides(size_t(components.view_count));
    std::vector<float> foreground;
    for (int32_t &side : sides) {
        side = int32_t(1 + random() % 12);
        for (int32_t k = 0; k < side * side; ++k) foreground.push_back(random() % 20 ? float(random() % 1000) / 800.0f - 0.1f : std::nanf(""));
    }
    tfiseg_mask_refinement r = {};
    r.struct_size = sizeof r;
    r.height = components.height;
    r.width = components.width;
    r.label_map = instances.label_map.data();
    r.count = instances.count.data();
    r.table = instances.table.data();
    r.max_instances = int32_t(instances.component_of.size());
    r.component_map = components.label_map;
    r.component_count = components.count;
    r.component_table = components.table;
    r.max_components = components.max_components;
    r.views = instances.views.data();
    r.map_sides = sides.data();
    r.foreground = foreground.data();
    r.view_count = components.view_count;
    r.max_map_side = 12;
    r.value_type = TFISEG_FLOAT32;
    r.threads = int32_t(1 + random() % 3);
    RefinedOutput cpu(r), gpu(r);
    if (tfiseg_refine_masks_cpu(&cpu.refinement) || refine_masks_by_phases(&gpu.refinement, seed, r.threads)) return false;
    if (!cpu.same_as(gpu)) std::printf("seed %u: the refined masks of phases and CPU differ\n", seed);
    return cpu.same_as(gpu);
}

// Views for mask refinement, once by the CPU's threads and once by the phases.
struct MaskViewsOutput {
    std::vector<int32_t> views;
    std::vector<uint8_t> images, masks;
    std::vector<char> workspace;
    tfiseg_mask_views call;

    explicit MaskViewsOutput(const tfiseg_mask_views &v) : call(v) {
        const size_t cells = size_t(v.view_count) * size_t(v.view_side) * size_t(v.view_side);
        views.assign(size_t(v.known_count + v.view_count) * TFISEG_VIEW_COLUMNS, -7);
        images.assign(cells * 3, 77);
        masks.assign(cells, 77);
        workspace.resize(size_t(tfiseg_mask_views_workspace_size(&v)));
        call.views = views.data();
        call.images = images.data();
        call.masks = masks.data();
        call.workspace = workspace.data();
        call.workspace_bytes = int64_t(workspace.size());
    }

    bool same_as(const MaskViewsOutput &o) const { return views == o.views && images == o.images && masks == o.masks; }
};

bool compare_mask_views(uint32_t seed, const tfiseg_views &components, const ViewsOutput &known, std::mt19937 &random) {
    tfiseg_mask_views v = {};
    v.struct_size = sizeof v;
    v.height = components.height;
    v.width = components.width;
    v.frame = components.frame;
    v.label_map = components.label_map;
    v.count = components.count;
    v.table = components.table;
    v.max_components = components.max_components;
    v.known = known.views.data();
    v.known_count = int32_t(random() % uint32_t(components.view_count + 1));
    v.known_side = components.view_side;
    v.view_count = int32_t(1 + random() % 4);
    v.view_side = int32_t(8 + random() % 20);
    v.threads = int32_t(1 + random() % 3);
    MaskViewsOutput cpu(v), gpu(v);
    if (tfiseg_cut_mask_views_cpu(&cpu.call) || cut_mask_views_by_phases(&gpu.call, seed, v.threads)) return false;
    if (!cpu.same_as(gpu)) std::printf("seed %u: the mask views of phases and CPU differ\n", seed);
    return cpu.same_as(gpu);
}

bool compare_views(uint32_t seed) {
    std::mt19937 random(seed);
    const auto below = [&](int32_t n) { return int32_t(random() % uint32_t(n)); };
    tfiseg_problem p = {};
    p.struct_size = sizeof p;
    p.batch = 1;
    p.height = p.out_height = 1 + below(90);
    p.width = p.out_width = 1 + below(90);
    p.max_instances = 20;
    p.threads = 1;
    const std::vector<uint8_t> things(256, 1);
    std::vector<double> split(256, 0.0);
    p.things = things.data();
    p.split = split.data();
    const int32_t block = 4 + below(12), across = p.width / block + 1;
    std::vector<uint8_t> coarse(size_t(across * (p.height / block + 1))), map, frame(size_t(p.height * p.width) * 3);
    for (uint8_t &c : coarse) c = uint8_t(below(3));
    for (uint8_t &v : frame) v = uint8_t(below(256));
    for (int32_t i = 0; i < p.height * p.width; ++i) map.push_back(coarse[size_t(i / p.width / block * across + i % p.width / block)]);
    p.class_map = map.data();
    const auto cluster = [](tfiseg_problem &problem, Output &output) {
        std::vector<char> workspace(size_t(tfiseg_workspace_size(&problem, TFISEG_ON_CPU)));
        output.result.workspace = workspace.data();
        output.result.workspace_bytes = int64_t(workspace.size());
        return tfiseg_cluster_cpu(&problem, &output.result) == TFISEG_OK;
    };
    Output components(p);
    if (!cluster(p, components)) return false;

    tfiseg_views v = {};
    v.struct_size = sizeof v;
    v.height = p.height;
    v.width = p.width;
    v.frame = frame.data();
    v.label_map = components.label_map.data();
    v.count = components.count.data();
    v.table = components.table.data();
    v.max_components = p.max_instances;
    v.wanted = things.data();
    v.view_count = 1 + below(4);
    v.view_side = 8 + below(20);
    v.threads = 1 + below(3);
    constexpr int32_t kParts = 5;
    ViewsOutput cpu(v, kParts), gpu(v, kParts);
    if (tfiseg_cut_views_cpu(&cpu.call) || cut_views_by_phases(&gpu.call, seed, 1 + below(3))) return false;
    p.batch = v.view_count;
    p.height = p.width = p.out_height = p.out_width = v.view_side;
    p.class_map = cpu.own.data();
    p.max_instances = kParts;
    std::fill(split.begin(), split.end(), 1.0);
    Output parts(p);
    if (!cluster(p, parts)) return false;
    for (ViewsOutput *output : {&cpu, &gpu}) {
        output->placed.least_regions = 1 + below(2);
        output->placed.labels = parts.label_map.data();
        output->placed.counts = parts.count.data();
        output->placed.regions = parts.regions.data();
        output->placed.tables = parts.table.data();
    }
    gpu.placed.least_regions = cpu.placed.least_regions;
    if (tfiseg_place_pieces_cpu(&cpu.call, &cpu.placed) || place_pieces_by_phases(&gpu.call, &gpu.placed, seed, 1 + below(3))) return false;
    if (!cpu.same_as(gpu)) std::printf("seed %u: the views or instances of phases and CPU differ\n", seed);
    return cpu.same_as(gpu) && compare_refined_masks(seed, v, cpu, random) && compare_mask_views(seed, v, cpu, random);
}

// Resizes a frame of any size to any size: every pixel is written, in the range of the frame's values, and equal to the phase's result.
bool fit_frame(uint32_t seed) {
    std::mt19937 random(seed);
    const auto side = [&] { return int32_t(1 + random() % 70); };
    const int32_t wide = random() % 8 == 0 ? 40 : 1;  // now and then, several tiles per row, or source rows too wide for them
    const int32_t h = side(), w = side() * (random() % 2 ? wide : 1), out_h = 1 + side() / wide, out_w = side() * (random() % 2 ? wide : 1);
    std::vector<uint8_t> frame(size_t(h) * size_t(w) * 3);
    for (uint8_t &v : frame) v = uint8_t(50 + random() % 100);
    std::vector<float> fitted(size_t(out_h) * size_t(out_w) * 3, -1.0f);
    if (tfiseg_fit_frame(frame.data(), h, w, fitted.data(), out_h, out_w)) return false;
    for (const float v : fitted)
        if (v < 49.99f || v > 149.01f) return false;
    std::vector<float> by_phases(fitted.size(), -2.0f);
    if (fit_by_phases(frame.data(), h, w, by_phases.data(), out_h, out_w, seed, 1 + int32_t(random() % 3))) return false;
    const bool is_same = !std::memcmp(fitted.data(), by_phases.data(), fitted.size() * sizeof(float));
    if (!is_same) std::printf("seed %u: the phase's %d x %d from %d x %d differs from the CPU's\n", seed, out_h, out_w, h, w);
    return is_same;
}

// Arguments out of range give an error status, and nothing is read or written.
bool reject_arguments(uint32_t seed) {
    std::mt19937 random(seed);
    constexpr int32_t kMax = 2147483647, kMin = -kMax - 1;
    const int32_t wrong = random() % 2 ? kMax - int32_t(random() % 3) : kMin + int32_t(random() % 3);
    const uint8_t pixel = 1;
    const float value = 0.5f;
    const std::vector<uint8_t> things(256, 1);
    const std::vector<double> split(256, 0.0);
    const int32_t offsets[] = {0, 1};
    tfiseg_problem p = {};
    p.struct_size = sizeof p;
    p.batch = p.height = p.width = p.out_height = p.out_width = p.threads = p.max_instances = 1;
    p.class_map = &pixel;
    p.things = things.data();
    p.split = split.data();
    p.boundary = p.affinity = &value;
    p.affinity_offsets_yx = offsets;
    p.affinity_channels = p.affinity_stride = p.boundary_stride = 1;
    Output output(p);
    std::vector<char> workspace(size_t(tfiseg_workspace_size(&p, TFISEG_ON_CPU)));
    output.result.workspace = workspace.data();
    output.result.workspace_bytes = int64_t(workspace.size());
    if (tfiseg_cluster_cpu(&p, &output.result)) return false;
    const int32_t far[] = {wrong, wrong};
    int32_t *const fields[] = {&p.height,          &p.width,           &p.out_height,    &p.out_width, &p.affinity_channels, &p.affinity_stride,
                               &p.boundary_stride, &p.evidence_hidden, &p.max_instances, &p.sharpen,   &p.part_hidden};
    constexpr size_t kFields = sizeof fields / sizeof fields[0];
    const size_t choice = random() % (kFields + 2);
    if (choice < kFields) {
        *fields[choice] = wrong;
    } else if (choice == kFields) {
        p.affinity_offsets_yx = far;
    } else {
        p.struct_size = uint32_t(random() % 100);
    }
    if (tfiseg_cluster_cpu(&p, &output.result)) return true;
    std::printf("seed %u: argument %zu out of range was accepted\n", seed, choice);
    return false;
}

}  // namespace

int main(int argc, char **argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
    const uint32_t first = argc > 2 ? uint32_t(std::atoi(argv[2])) : 0;
    int failed = 0;
    for (uint32_t seed = first; seed < first + uint32_t(cases); ++seed)
        failed += !compare_results(seed) || !compare_views(seed) || !fit_frame(seed) || !reject_arguments(seed);
    std::printf("%d cases, %d failed\n", cases, failed);
    return failed != 0;
}
