// Calls the C API on the CPU with random arguments. Fields are inside or outside of their ranges, maps have exactly the size of the shape,
// and their values are arbitrary. A rejected call must not write outputs. An accepted one must return a consistent result, which is equal
// if several threads call at once. Build it with sanitizers.
//     fuzz_api CASES [FIRST_SEED]
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "../../plugins/csrc/tfiseg.h"

namespace {

constexpr int32_t kMax = std::numeric_limits<int32_t>::max(), kMin = std::numeric_limits<int32_t>::min();
constexpr int32_t kEdges[] = {kMin, kMin + 1, -4097, -1, 0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 65, 254, 255, 256, 1024, 1025,
                              4095, 4096, 4097, 32767, 32768, 65535, 65536, 1 << 29, kMax - 1, kMax};
constexpr int64_t kMaxPixels = 1 << 15, kMaxBytes = 64 << 20;  // larger problems are not run
constexpr int32_t kCanary = -77;

using Random = std::mt19937;

int32_t below(Random &random, int32_t n) { return int32_t(random() % uint32_t(n)); }

// Returns mostly a value in [1, max], with probability 1 / odds any value.
int32_t field(Random &random, int32_t max, int32_t odds) {
    if (below(random, odds)) return 1 + below(random, max);
    return below(random, 2) ? kEdges[size_t(below(random, int32_t(sizeof kEdges / sizeof *kEdges)))] : int32_t(random());
}

float value(Random &random, bool wild) {
    constexpr float kWild[] = {-3.0f, 3.0f, 1e30f, -1e30f, 1e-40f, HUGE_VALF, -HUGE_VALF, NAN, -0.0f};
    if (wild && below(random, 6) == 0) return kWild[below(random, 9)];
    return std::uniform_real_distribution<float>(0.0f, 1.0f)(random);
}

double number(Random &random, double max) {
    constexpr double kWild[] = {-1.0, 0.0, 1e300, -1e300, HUGE_VAL, -HUGE_VAL, NAN};
    return below(random, 5) ? std::uniform_real_distribution<double>(0.0, max)(random) : kWild[below(random, 7)];
}

// A problem and the memory of its maps.
struct Case {
    tfiseg_problem problem = {};
    std::vector<uint8_t> class_map, things = std::vector<uint8_t>(256, 1);
    std::vector<double> split = std::vector<double>(256);
    std::vector<float> logits, displacement, boundary, affinity, scores, rule, part_rule;
    std::vector<int32_t> offsets;

    explicit Case(Random &random) {
        constexpr int32_t kOdds = 24;
        tfiseg_problem &p = problem;
        p.struct_size = below(random, 40) ? uint32_t(sizeof p) : uint32_t(field(random, 400, 4));
        p.batch = field(random, 2, kOdds);
        p.height = field(random, 40, kOdds);
        p.width = field(random, 40, kOdds);
        const bool is_logits = below(random, 2);
        p.out_height = is_logits || !below(random, kOdds) ? field(random, 80, kOdds) : p.height;
        p.out_width = is_logits || !below(random, kOdds) ? field(random, 80, kOdds) : p.width;
        p.classes = below(random, 6) ? 2 + below(random, 4) : field(random, 255, kOdds);
        p.value_type = below(random, kOdds) ? int32_t(TFISEG_FLOAT32) : field(random, 3, 4);
        p.affinity_channels = field(random, 4, kOdds);
        p.affinity_stride = field(random, 5, kOdds);
        p.boundary_stride = field(random, 5, kOdds);
        p.min_area = below(random, 4) ? below(random, 20) : field(random, 100, 2);
        p.max_instances = field(random, 40, kOdds);
        p.threads = field(random, 4, kOdds);
        p.merge_affinity = number(random, 1.0);
        p.centre_radius = number(random, 5.0);
        for (double &ratio : split) ratio = below(random, 2) ? NAN : number(random, 1.0);
        for (uint8_t &thing : things) thing = uint8_t(below(random, 8) ? 1 : below(random, 256));
        set_pointers(random, is_logits);
    }

    // Sets the pointers to the maps.
    void set_pointers(Random &random, bool is_logits) {
        tfiseg_problem &p = problem;
        p.things = below(random, 60) ? things.data() : nullptr;
        p.split = below(random, 60) ? split.data() : nullptr;
        static const uint8_t kPixel = 0;
        static const float kValue = 0.0f;
        // the workspace size needs only any pointer; allocate_maps() allocates the maps
        if (is_logits) p.logits = &kValue;
        if (!is_logits || !below(random, 60)) p.class_map = &kPixel;
        if (below(random, 3) == 0) p.displacement = &kValue;
        if (below(random, 2)) p.boundary = &kValue;
        if (below(random, 3) == 0) p.scores = &kValue;
        if (below(random, 2)) p.affinity = &kValue;
        if (p.affinity && below(random, 40)) {
            const int32_t channels = std::min(std::max(p.affinity_channels, 0), TFISEG_MAX_AFFINITY_CHANNELS);
            for (int32_t k = 0; k < 2 * channels; ++k) offsets.push_back(below(random, 30) ? below(random, 9) - 4 : field(random, 4096, 2));
            if (offsets.empty()) offsets.push_back(0);
            p.affinity_offsets_yx = offsets.data();
        }
        if (p.affinity && below(random, 2)) {
            p.evidence_hidden = field(random, 8, 12);
            rule = weights(random, p.evidence_hidden);
            p.evidence_rule = rule.data();
        }
        if (p.affinity && p.boundary && below(random, 2)) {
            p.part_hidden = field(random, 8, 12);
            part_rule = weights(random, p.part_hidden);
            p.part_rule = part_rule.data();
        }
        if (p.boundary && below(random, 2)) p.sharpen = field(random, 32, 12);
    }

    static std::vector<float> weights(Random &random, int32_t hidden) {
        const auto units = size_t(std::min(std::max(hidden, 0), TFISEG_MAX_EVIDENCE_HIDDEN));
        std::vector<float> all(units * (TFISEG_EVIDENCE_FEATURES + 2) + 1);
        for (float &w : all) w = value(random, true) * 2.0f - 1.0f;
        return all;
    }

    // Allocates and fills the maps, with exactly the sizes of the shape.
    void allocate_maps(Random &random) {
        tfiseg_problem &p = problem;
        const auto cells = [&p](int32_t stride) { return size_t(p.batch) * size_t((p.height - 1) / stride + 1) * size_t((p.width - 1) / stride + 1); };
        const auto maps = [&](const void *&pointer, std::vector<float> &values, size_t count, float scale) {
            if (!pointer) return;
            const bool wild = below(random, 3) == 0;
            values.resize(count);
            for (float &v : values) v = (value(random, wild) - (scale > 1.0f ? 0.5f : 0.0f)) * scale;
            pointer = values.data();
        };
        if (p.class_map) {
            class_map.resize(cells(1));
            for (uint8_t &c : class_map) c = uint8_t(below(random, 12) ? below(random, 3) : below(random, 256));
            p.class_map = class_map.data();
        }
        maps(p.logits, logits, size_t(p.classes) * cells(1), 8.0f);
        maps(p.displacement, displacement, 2 * cells(1), 8.0f);
        maps(p.boundary, boundary, cells(p.boundary ? p.boundary_stride : 1), 1.0f);
        maps(p.scores, scores, cells(1), 1.0f);
        maps(p.affinity, affinity, size_t(p.affinity_channels) * cells(p.affinity ? p.affinity_stride : 1), 1.0f);
    }
};

struct Output {
    std::vector<int32_t> label_map, count, regions, semantic_map_32;
    std::vector<uint8_t> semantic_map;
    std::vector<float> table;
    std::vector<char> workspace;
    tfiseg_result result = {};

    Output(size_t pictures, size_t pixels, size_t rows, size_t bytes)
        : label_map(pictures * pixels, kCanary), count(pictures, kCanary), regions(pictures, kCanary), semantic_map_32(pictures * pixels, kCanary),
          semantic_map(pictures * pixels, 77), table(pictures * rows * TFISEG_TABLE_COLUMNS), workspace(bytes) {
        result.struct_size = sizeof result;
        result.label_map = label_map.data();
        result.semantic_map = semantic_map.data();
        result.semantic_map_32 = semantic_map_32.data();
        result.count = count.data();
        result.regions = regions.data();
        result.table = table.data();
        result.workspace = workspace.data();
        result.workspace_bytes = int64_t(bytes);
    }

    bool is_unchanged() const {
        const auto is_canary = [](int32_t v) { return v == kCanary; };
        return std::all_of(label_map.begin(), label_map.end(), is_canary) && std::all_of(count.begin(), count.end(), is_canary);
    }

    bool operator==(const Output &o) const {
        return label_map == o.label_map && count == o.count && regions == o.regions && semantic_map == o.semantic_map && table == o.table;
    }

    // Labels are 1..count, numbered by their first pixel.
    bool is_consistent(int32_t max_instances) const {
        const size_t pixels = label_map.size() / count.size();
        for (size_t n = 0; n < count.size(); ++n) {
            if (count[n] < 0 || count[n] > max_instances || regions[n] < 0) return false;
            int32_t largest = 0;
            for (size_t i = n * pixels; i < (n + 1) * pixels; ++i) {
                if (label_map[i] < 0 || label_map[i] > largest + 1) return false;
                largest = std::max(largest, label_map[i]);
                if (semantic_map_32[i] != semantic_map[i]) return false;
            }
            if (largest != count[n]) return false;
        }
        return true;
    }
};

bool fail(uint32_t seed, const char *reason) {
    std::printf("seed %u: %s\n", seed, reason);
    return false;
}

// Checks that a problem is rejected and no output is written.
bool is_rejected(uint32_t seed, const tfiseg_problem &p) {
    Output out(1, 1, 1, 1 << 10);
    const int32_t status = tfiseg_cluster_cpu(&p, &out.result);
    if (status == TFISEG_OK || !out.is_unchanged()) return fail(seed, "a problem without a workspace size was clustered");
    int32_t region = kCanary;
    int64_t regions[8], edges[7], counts[2];
    if (tfiseg_region_graph(&p, &region, regions, 1, edges, 1, counts) == TFISEG_OK || region != kCanary)
        return fail(seed, "a problem without a workspace size has a region graph");
    return true;
}

bool cluster(uint32_t seed) {
    Random random(seed);
    Case c(random);
    const int64_t bytes = tfiseg_workspace_size(&c.problem, TFISEG_ON_CPU), on_gpu = tfiseg_workspace_size(&c.problem, TFISEG_ON_CUDA);
    if (bytes < 0 || on_gpu < 0) return fail(seed, "a negative workspace size");
    if (bytes == 0) return is_rejected(seed, c.problem);
    const tfiseg_problem &p = c.problem;
    const auto pixels = int64_t(p.batch) * p.height * p.width, out_pixels = int64_t(p.batch) * p.out_height * p.out_width;
    if (std::max(pixels * (p.logits ? p.classes : 1) / 4, out_pixels) > kMaxPixels || pixels * std::max(1, p.affinity_channels) > 16 * kMaxPixels || bytes > kMaxBytes)
        return true;
    c.allocate_maps(random);
    const auto n = size_t(p.batch), rows = size_t(p.max_instances);
    Output out(n, size_t(out_pixels) / n, rows, size_t(bytes));
    if (below(random, 20) == 0) {  // invalid result structures
        tfiseg_result wrong = out.result;
        const int32_t choice = below(random, 6);
        if (choice == 0) wrong.struct_size = uint32_t(below(random, 80));
        if (choice == 1) wrong.label_map = nullptr;
        if (choice == 2) wrong.count = nullptr;
        if (choice == 3) wrong.table = nullptr;
        if (choice == 4) wrong.workspace = nullptr;
        if (choice == 5) wrong.workspace_bytes = bytes - 1;
        if (tfiseg_cluster_cpu(&p, &wrong) == TFISEG_OK || !out.is_unchanged()) return fail(seed, "an invalid result structure was accepted");
    }
    const int32_t status = tfiseg_cluster_cpu(&p, &out.result);
    if (status) {  // only offsets are checked here but not for the workspace size
        const auto is_long = [](int32_t cells) { return cells < -TFISEG_MAX_SIDE || cells > TFISEG_MAX_SIDE; };
        const bool expected = p.affinity && std::any_of(c.offsets.begin(), c.offsets.end(), is_long);
        return (expected && out.is_unchanged()) || fail(seed, tfiseg_status_string(status));
    }
    if (!out.is_consistent(p.max_instances)) return fail(seed, "labels are not 1..count in raster order");

    // three threads cluster the same problem at once, each with its own worker threads
    std::vector<Output> others(3, Output(0, 0, 0, 0));
    std::vector<std::thread> callers;
    std::vector<int32_t> statuses(others.size());
    for (size_t k = 0; k < others.size(); ++k)
        callers.emplace_back([&, k] {
            others[k] = Output(n, size_t(out_pixels) / n, rows, size_t(bytes));
            tfiseg_problem copy = p;
            copy.threads = int32_t(k) + 1;
            statuses[k] = tfiseg_cluster_cpu(&copy, &others[k].result);
        });
    for (std::thread &caller : callers) caller.join();
    for (size_t k = 0; k < others.size(); ++k)
        if (statuses[k] || !(others[k] == out)) return fail(seed, "simultaneous callers get different results");

    std::vector<int32_t> region_map(size_t(p.height) * size_t(p.width));
    std::vector<int64_t> regions(8 * size_t(below(random, 9))), edges(7 * size_t(below(random, 9)));
    regions.reserve(1);
    edges.reserve(1);
    int64_t counts[2];
    if (tfiseg_region_graph(&p, region_map.data(), regions.data(), int64_t(regions.size() / 8), edges.data(), int64_t(edges.size() / 7), counts))
        return fail(seed, "the region graph failed");
    return counts[0] >= 0 && counts[1] >= 0;
}

// Views with sizes inside and outside of their ranges. Large valid ones are not run.
bool views(uint32_t seed) {
    Random random(seed ^ 0x5eedu);
    const int32_t h = 1 + below(random, 60), w = 1 + below(random, 60);
    std::vector<uint8_t> map(size_t(h) * size_t(w)), frame(map.size() * 3), things(256, 1);
    for (size_t i = 0; i < map.size(); ++i) map[i] = uint8_t((i / size_t(w) / 9 + i % size_t(w) / 7) % 3);
    for (uint8_t &v : frame) v = uint8_t(random());
    const std::vector<double> split(256, 0.0);
    tfiseg_problem p = {};
    p.struct_size = sizeof p;
    p.batch = p.threads = 1;
    p.height = p.out_height = h;
    p.width = p.out_width = w;
    p.class_map = map.data();
    p.things = things.data();
    p.split = split.data();
    p.max_instances = 1 + below(random, 20);
    Output found(1, map.size(), size_t(p.max_instances), size_t(tfiseg_workspace_size(&p, TFISEG_ON_CPU)));
    if (tfiseg_cluster_cpu(&p, &found.result)) return fail(seed, "no components");

    tfiseg_views v = {};
    v.struct_size = below(random, 20) ? uint32_t(sizeof v) : uint32_t(below(random, 200));
    v.height = below(random, 20) ? h : field(random, 60, 2);
    v.width = below(random, 20) ? w : field(random, 60, 2);
    v.frame = frame.data();
    v.label_map = found.label_map.data();
    v.count = found.count.data();
    v.table = found.table.data();
    v.max_components = below(random, 12) ? p.max_instances : field(random, 20, 2);
    v.wanted = things.data();
    v.view_count = field(random, 4, 12);
    v.view_side = below(random, 12) ? 8 + below(random, 24) : field(random, 30, 2);
    v.threads = field(random, 3, 12);
    const int32_t max_parts = field(random, 6, 12);
    const int64_t bytes = tfiseg_views_workspace_size(&v, max_parts);
    if (bytes < 0) return fail(seed, "a negative workspace size of views");
    int32_t spare = kCanary;
    uint8_t byte = 77;
    if (bytes == 0) {
        v.views = &spare;
        v.images = v.masks = v.own = &byte;
        v.workspace = &spare;
        v.workspace_bytes = std::numeric_limits<int64_t>::max();
        tfiseg_pieces pieces = {};
        pieces.struct_size = sizeof pieces;
        pieces.max_parts = max_parts;
        pieces.labels = pieces.counts = pieces.regions = &spare;
        pieces.tables = pieces.table = found.table.data();
        pieces.label_map = pieces.count = pieces.component_of = &spare;
        const bool refused = tfiseg_place_pieces_cpu(&v, &pieces) != TFISEG_OK;
        return (refused && spare == kCanary && byte == 77) || fail(seed, "views without a workspace size were accepted");
    }
    // the arrays do not have this size, or the views are too large: only the workspace size is tested
    if (v.height != h || v.width != w || v.max_components != p.max_instances || v.threads < 1 || bytes > kMaxBytes) return true;
    const size_t cells = size_t(v.view_count) * size_t(v.view_side) * size_t(v.view_side);
    if (cells > size_t(kMaxPixels)) return true;
    std::vector<int32_t> corners(size_t(v.view_count) * TFISEG_VIEW_COLUMNS);
    std::vector<uint8_t> images(cells * 3), masks(cells), own(cells);
    std::vector<char> workspace(static_cast<size_t>(bytes));
    v.views = corners.data();
    v.images = images.data();
    v.masks = masks.data();
    v.own = own.data();
    v.workspace = workspace.data();
    v.workspace_bytes = bytes;
    if (const int32_t status = tfiseg_cut_views_cpu(&v)) return fail(seed, tfiseg_status_string(status));

    tfiseg_problem view_problem = p;
    view_problem.batch = v.view_count;
    view_problem.height = view_problem.width = view_problem.out_height = view_problem.out_width = v.view_side;
    view_problem.class_map = own.data();
    view_problem.max_instances = max_parts;
    Output parts(size_t(v.view_count), cells / size_t(v.view_count), size_t(max_parts), size_t(tfiseg_workspace_size(&view_problem, TFISEG_ON_CPU)));
    if (const int32_t status = tfiseg_cluster_cpu(&view_problem, &parts.result)) return fail(seed, tfiseg_status_string(status));
    const size_t rows = size_t(v.max_components) + size_t(v.view_count) * size_t(max_parts - 1);
    Output placed(1, map.size(), rows, 0);
    std::vector<int32_t> component_of(rows);
    tfiseg_pieces pieces = {};
    pieces.struct_size = sizeof pieces;
    pieces.max_parts = max_parts;
    pieces.least_regions = field(random, 2, 4);
    pieces.labels = parts.label_map.data();
    pieces.counts = parts.count.data();
    pieces.regions = parts.regions.data();
    pieces.tables = parts.table.data();
    pieces.label_map = placed.label_map.data();
    pieces.count = placed.count.data();
    pieces.table = placed.table.data();
    pieces.component_of = component_of.data();
    if (const int32_t status = tfiseg_place_pieces_cpu(&v, &pieces)) return fail(seed, tfiseg_status_string(status));
    return placed.count[0] >= 0 && size_t(placed.count[0]) <= rows;
}

// Mask refinement: sizes from their range and from beyond it, and labels, components, views and probabilities of any value.
bool masks(uint32_t seed) {
    Random random(seed ^ 0x3a5cu);
    const int32_t h = 1 + below(random, 60), w = 1 + below(random, 60), n = 1 + below(random, 9), k = 1 + below(random, 5);
    std::vector<int32_t> labels, components, views, sides;
    for (int32_t i = 0; i < h * w; ++i) {
        labels.push_back(below(random, 4) ? i / 11 % (n + 1) : field(random, n, 2));
        components.push_back(below(random, 4) ? i / 7 % (n + 1) : field(random, n, 2));
    }
    std::vector<float> table, foreground;
    for (int32_t i = 0; i < n * TFISEG_TABLE_COLUMNS; ++i) table.push_back(float(below(random, 70)));
    for (int32_t i = 0; i < k; ++i) {
        for (const int32_t value : {below(random, 90) - 30, below(random, 90) - 30, below(random, 90) - 5, below(random, 3), below(random, n + 3) - 1})
            views.push_back(value);
        sides.push_back(below(random, 6) ? 1 + below(random, 9) : field(random, 9, 2));
    }
    for (int32_t i = 0; i < k * 81; ++i) foreground.push_back(below(random, 9) ? float(below(random, 1200)) / 1000.0f - 0.1f : std::nanf(""));
    const int32_t count = below(random, 8) ? n : field(random, n, 2), component_count = below(random, 8) ? n : field(random, n, 2);
    tfiseg_mask_refinement r = {};
    r.struct_size = below(random, 20) ? uint32_t(sizeof r) : uint32_t(below(random, 200));
    r.height = below(random, 20) ? h : field(random, 60, 2);
    r.width = below(random, 20) ? w : field(random, 60, 2);
    r.label_map = labels.data();
    r.count = &count;
    r.table = r.component_table = table.data();
    r.max_instances = below(random, 12) ? n : field(random, 20, 2);
    r.max_components = below(random, 12) ? n : field(random, 20, 2);
    r.component_map = components.data();
    r.component_count = &component_count;
    r.views = views.data();
    r.map_sides = sides.data();
    r.foreground = foreground.data();
    r.view_count = below(random, 12) ? k : field(random, 4, 2);
    r.max_map_side = below(random, 12) ? 9 : field(random, 9, 2);
    r.value_type = below(random, 20) ? TFISEG_FLOAT32 : field(random, 1, 2);
    r.threads = field(random, 3, 12);
    const int64_t bytes = tfiseg_refine_masks_workspace_size(&r);
    if (bytes < 0) return fail(seed, "mask refinement has a negative workspace size");
    std::vector<int32_t> refined(size_t(h) * size_t(w), kCanary), instance_of(static_cast<size_t>(n), kCanary);
    std::vector<float> rows(table.size());
    int32_t found = kCanary;
    std::vector<char> workspace(bytes > kMaxBytes ? 1 : size_t(bytes) + 1);
    r.refined_map = refined.data();
    r.refined_count = &found;
    r.refined_table = rows.data();
    r.instance_of = instance_of.data();
    r.workspace = workspace.data();
    r.workspace_bytes = bytes ? bytes : std::numeric_limits<int64_t>::max();
    if (bytes == 0) {
        const bool refused = tfiseg_refine_masks_cpu(&r) != TFISEG_OK;
        return (refused && found == kCanary && refined[0] == kCanary) || fail(seed, "mask refinement without a workspace size was accepted");
    }
    const bool fits = r.height == h && r.width == w && r.max_instances == n && r.max_components == n && r.view_count == k && r.max_map_side == 9;
    if (!fits || r.value_type != TFISEG_FLOAT32 || r.threads < 1 || bytes > kMaxBytes) return true;
    if (const int32_t status = tfiseg_refine_masks_cpu(&r)) return fail(seed, tfiseg_status_string(status));
    return found == TFISEG_COUNT_OVERFLOW || (found >= 0 && found <= n) || fail(seed, "refined masks have more instances than before");
}

bool fit(uint32_t seed) {
    Random random(seed ^ 0xf17u);
    const int32_t h = field(random, 40, 6), w = field(random, 40, 6), out_h = field(random, 40, 6), out_w = field(random, 40, 6);
    const auto is_side = [](int32_t side) { return side >= 1 && side <= TFISEG_MAX_OUT_SIDE; };
    const bool valid = is_side(h) && is_side(w) && is_side(out_h) && is_side(out_w);
    if (valid && std::max(int64_t(h) * w, int64_t(out_h) * out_w) > 8 * kMaxPixels) return true;
    const std::vector<uint8_t> frame(valid ? size_t(h) * size_t(w) * 3 : 3, 100);
    std::vector<float> out(valid ? size_t(out_h) * size_t(out_w) * 3 : 3, -1.0f);
    const int32_t status = tfiseg_fit_frame(frame.data(), h, w, out.data(), out_h, out_w);
    const auto is_100 = [](float v) { return std::abs(v - 100.0f) < 0.01f; };
    if (valid) return (status == TFISEG_OK && std::all_of(out.begin(), out.end(), is_100)) || fail(seed, "a frame was not resized");
    return (status == TFISEG_BAD_SHAPE && out[0] == -1.0f) || fail(seed, "a side out of range was accepted");
}

}  // namespace

int main(int argc, char **argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
    const uint32_t first = argc > 2 ? uint32_t(std::atoi(argv[2])) : 0;
    int failed = 0;
    for (uint32_t seed = first; seed < first + uint32_t(cases); ++seed) failed += !cluster(seed) || !views(seed) || !masks(seed) || !fit(seed);
    for (int32_t status = -1; status < 12; ++status) failed += !tfiseg_status_string(status);
    std::printf("%d cases, %d failed\n", cases, failed);
    return failed != 0;
}
