// The operator on a GPU: which arrays lie where in the caller's workspace, and the order of the phases.
//
// An executor runs phases: `each(n, phase)` for a number known beforehand, `each_counted(count, most, phase)` for one that a former
// phase counted, `rounds(n, phases)` for loops whose end is decided on the device, `prefix_sum(...)` for bit counts. The CUDA
// executor (cluster_cuda.cu) launches kernels; the one of the tests (tests/plugins/shuffled.cpp) runs all items in random order.
#pragma once
#include <algorithm>

#include "parts.h"
#include "sharpen.h"
#include "tfiseg.h"

namespace tfiseg {

// Arrays carved out of the caller's workspace. Without memory, it only counts the bytes.
class Carver {
  public:
    explicit Carver(void *memory) {
        base_ = reinterpret_cast<uintptr_t>(memory);
        at_ = base_ ? (base_ + kAlign - 1) / kAlign * kAlign : kAlign;
    }

    template <class T>
    T *take(int64_t n) {
        T *taken = reinterpret_cast<T *>(at_);
        at_ += uintptr_t((n * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign);
        most_ = std::max(most_, at_);
        return taken;
    }

    uintptr_t mark() const { return at_; }
    void back_to(uintptr_t mark) { at_ = mark; }
    int64_t bytes() const { return int64_t(most_ - base_); }

    static constexpr int64_t kAlign = 256;

  private:
    uintptr_t base_, at_, most_ = 0;
};

// Grids up to this many pixels have room for every possible region and edge; larger grids for one per four pixels, many times
// what a photograph needs. Where that is not enough, the count says so (TFISEG_COUNT_OVERFLOW).
constexpr int64_t kFullRoomPixels = 1 << 18;

inline int64_t room_for(int64_t worst, int64_t pixels) { return std::min(worst, std::max(pixels / 4, kFullRoomPixels)); }

struct Plan {
    Grid grid;
    Output out;
    bool has_scores, is_geometric, has_edges, has_contacts;
    int32_t region_room, edge_room, key_slots, bit_words;
    int64_t bytes;

    Counters *counters;
    Settings *settings;
    PictureState *states;
    uint8_t *semantic, *cls;
    uint16_t *fixed_scores;
    void *boundary;  // enlarged
    int32_t *squared, *link, *map, *roots, *contacts;
    Region *regions;
    int32_t *parent, *last_merge_round, *number, *unions;
    int64_t *grid_area, *grid_score_sum;
    uint64_t *keys, *best_score, *best_pair;
    int32_t *places;
    uint32_t *bits;
    int32_t *prefix_count;
    // the following share memory: one group of phases after the other
    uint32_t *columns, *rows;
    int16_t *column;
    int32_t *work[2];
    uint64_t *best;
    Edge *edges[2];
    double *scores[2];
    uint64_t *pairs;
    uint8_t *band;
    int32_t *other, *distance[2], *band_pixels;
    int32_t *piece, *interior_area, *part_count, *largest_part;
    uint64_t *largest_key;
    uint8_t *inside;
    void *second;  // memory of the second pass's plan

    Plan(const tfiseg_problem &p, void *workspace) {
        grid = {p.batch, p.height, p.width};
        out = {p.out_height, p.out_width};
        has_scores = p.scores || p.logits;
        is_geometric = !p.displacement;
        has_edges = is_geometric || p.boundary || p.affinity;
        has_contacts = is_geometric || needs_contacts(p);
        const int64_t n = grid.pixels();
        // a piece has at most kPartShares parts, and at least kInteriorPixels pixels
        region_room = int32_t(room_for(p.part_rule ? n + n * kPartShares / kInteriorPixels + 1 : n, n));
        const int64_t touching = !p.affinity || p.evidence_rule ? is_geometric ? 1 : 4 : 0;
        const int64_t pairs_of_pixel = touching + (p.affinity ? p.affinity_channels : 0);
        edge_room = has_edges ? int32_t(room_for(n * pairs_of_pixel, n)) : 0;
        key_slots = has_edges ? EdgeSet::slots_for(edge_room) : 0;
        bit_words = int32_t(out.words() * p.batch);

        Carver carver(workspace);
        counters = carver.take<Counters>(1);
        settings = carver.take<Settings>(1);
        states = carver.take<PictureState>(p.batch);
        semantic = p.logits ? carver.take<uint8_t>(n) : nullptr;
        cls = carver.take<uint8_t>(n);
        fixed_scores = has_scores ? carver.take<uint16_t>(n) : nullptr;
        boundary = p.boundary && p.boundary_stride > 1 ? carver.take<char>(n * (p.value_type == TFISEG_FLOAT16 ? 2 : 4)) : nullptr;
        squared = is_geometric ? carver.take<int32_t>(n) : nullptr;
        link = carver.take<int32_t>(n);
        map = carver.take<int32_t>(n);
        roots = carver.take<int32_t>(n);
        contacts = has_edges ? carver.take<int32_t>(n) : nullptr;
        regions = carver.take<Region>(region_room);
        parent = carver.take<int32_t>(region_room);
        last_merge_round = carver.take<int32_t>(region_room);
        number = carver.take<int32_t>(region_room);
        unions = carver.take<int32_t>(region_room);
        grid_area = p.logits ? carver.take<int64_t>(region_room) : nullptr;
        grid_score_sum = p.logits ? carver.take<int64_t>(region_room) : nullptr;
        best_score = has_edges ? carver.take<uint64_t>(region_room) : nullptr;
        best_pair = has_edges ? carver.take<uint64_t>(region_room) : nullptr;
        keys = carver.take<uint64_t>(key_slots);
        places = carver.take<int32_t>(key_slots);
        bits = carver.take<uint32_t>(bit_words);
        prefix_count = carver.take<int32_t>(int64_t(bit_words) + 1);
        const uintptr_t shared = carver.mark();
        columns = carver.take<uint32_t>(int64_t(grid.pictures) * grid.column_words() * grid.w);
        rows = carver.take<uint32_t>(int64_t(grid.pictures) * grid.h * grid.row_words());
        column = carver.take<int16_t>(n);
        carver.back_to(shared);
        work[0] = carver.take<int32_t>(n);
        work[1] = carver.take<int32_t>(n);
        best = carver.take<uint64_t>(n);
        carver.back_to(shared);
        for (int32_t k : {0, 1}) {
            edges[k] = carver.take<Edge>(edge_room);
            scores[k] = carver.take<double>(edge_room);
        }
        pairs = carver.take<uint64_t>(edge_room);
        carver.back_to(shared);
        if (p.sharpen || p.part_rule) {
            band = carver.take<uint8_t>(n);
            other = carver.take<int32_t>(n);
            for (int32_t k : {0, 1}) distance[k] = carver.take<int32_t>(n);
            band_pixels = carver.take<int32_t>(n);
        }
        if (p.part_rule) {  // together with band_pixels
            piece = carver.take<int32_t>(n);
            interior_area = carver.take<int32_t>(region_room);
            part_count = carver.take<int32_t>(region_room);
            largest_part = carver.take<int32_t>(region_room);
            largest_key = carver.take<uint64_t>(region_room);
            inside = carver.take<uint8_t>(n);
            second = reinterpret_cast<void *>(carver.mark());
            carver.take<char>(Plan(second_pass_problem(p, inside), second).bytes);
        }
        bytes = carver.bytes();
    }

    EdgeSet edge_set(int32_t k) const {
        EdgeSet set = {};
        set.keys = keys;
        set.places = places;
        set.slots = key_slots;
        set.edges = edges[k];
        set.pairs = pairs;
        set.count = &counters->edges[k];
        set.capacity = edge_room;
        set.regions = regions;
        set.best_score = best_score;
        set.best_pair = best_pair;
        set.overflow = &counters->overflow;
        return set;
    }
};

inline Settings settings_of(const tfiseg_problem &p) {
    Settings s = {};
    for (int32_t c = 1; c < 255; ++c)
        if (p.things[c]) s.things[c >> 5] |= 1u << (c & 31);
    std::copy_n(p.split, 256, s.split);
    if (p.affinity) std::copy_n(p.affinity_offsets_yx, 2 * p.affinity_channels, s.affinity_offsets_yx);
    if (p.evidence_rule) std::copy_n(p.evidence_rule, p.evidence_hidden * (TFISEG_EVIDENCE_FEATURES + 2) + 1, s.evidence_rule);
    return s;
}

template <class Executor>
void find_basins(Executor &run, const Plan &plan, const tfiseg_problem &p, int32_t *region_count = nullptr) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const bool half = p.value_type == TFISEG_FLOAT16;
    FindClasses classes = {};
    classes.grid = grid;
    classes.settings = settings_of(p);
    classes.class_map = p.class_map;
    classes.logits = {p.logits, half};
    classes.scores = {p.scores, half};
    classes.classes = p.classes;
    classes.semantic = plan.semantic;
    classes.cls = plan.cls;
    classes.fixed_scores = plan.fixed_scores;
    classes.link = plan.link;
    classes.stored = plan.settings;
    classes.counters = plan.counters;
    classes.keys = plan.keys;
    classes.bits = plan.bits;
    classes.states = plan.states;
    classes.region_count = region_count;
    classes.key_slots = plan.key_slots;
    classes.bit_words = plan.bit_words;
    run.each(classes.items(), classes);
    if (plan.is_geometric) {
        const FindClassChanges changes = {grid, plan.cls, plan.columns, plan.rows};
        run.each(changes.items(), changes);
        run.each(n, ColumnSearch{grid, plan.cls, plan.columns, plan.column});
        run.each(n, RowSearch{grid, plan.cls, plan.rows, plan.column, plan.squared});
        run.each(n, AscentLinks{grid, {plan.cls, plan.squared, plan.link, grid.h, grid.w}});
    } else {
        const float radius = float(p.centre_radius);
        run.each(n, GivenLinks{grid, plan.cls, {p.displacement, half}, radius * radius, plan.link});
    }
    run.each(n, FollowLinks{plan.cls, plan.link, plan.roots, plan.map, plan.counters});
    if (plan.has_contacts) run.each(n, FindContacts{grid, plan.cls, plan.link, plan.contacts, plan.counters});
    if (!plan.is_geometric) return;
    NoiseRounds noise = {};
    noise.grid = grid;
    noise.cls = plan.cls;
    noise.squared = plan.squared;
    noise.link = plan.link;
    noise.roots = plan.roots;
    noise.place = plan.map;
    noise.contacts = plan.contacts;
    noise.work[0] = plan.work[0];
    noise.work[1] = plan.work[1];
    noise.best = plan.best;
    noise.counters = plan.counters;
    run.rounds(n, noise);
}

// Regions with their sums. region_count: by picture; or NULL.
template <class Executor>
void create_regions(Executor &run, const Plan &plan, int32_t *region_count) {
    CreateRegions create = {};
    create.roots = plan.roots;
    create.link = plan.link;
    create.squared = plan.squared;
    create.cls = plan.cls;
    create.map = plan.map;
    create.regions = plan.regions;
    create.parent = plan.parent;
    create.last_merge_round = plan.last_merge_round;
    create.capacity = plan.region_room;
    create.plane = plan.grid.plane();
    create.region_count = region_count;
    create.counters = plan.counters;
    run.each_counted(&plan.counters->roots, plan.grid.pixels(), create);
    SumRegions sums = {};
    sums.grid = plan.grid;
    sums.cls = plan.cls;
    sums.fixed_scores = plan.fixed_scores;
    sums.link = plan.link;
    sums.map = plan.map;
    sums.regions = plan.regions;
    run.each(int64_t(plan.grid.pictures) * plan.grid.h * sums.strips(), sums);
}

// Edges with their evidence: all pairs are entered first, then summed.
template <class Executor>
void create_edges(Executor &run, const Plan &plan, const tfiseg_problem &p, const int32_t *piece) {
    const bool half = p.value_type == TFISEG_FLOAT16;
    AffinityEdges affine = {};
    affine.grid = plan.grid;
    affine.cls = plan.cls;
    affine.map = plan.map;
    affine.affinity = {p.affinity, half};
    affine.settings = plan.settings;
    affine.channels = p.affinity_channels;
    affine.stride = p.affinity_stride;
    affine.piece = piece;
    affine.set = plan.edge_set(0);
    ContactEdges touching = {};
    touching.grid = plan.grid;
    touching.cls = plan.cls;
    touching.map = plan.map;
    touching.contacts = plan.contacts;
    touching.squared = plan.squared;
    touching.boundary = {p.boundary, half};
    touching.set = plan.edge_set(0);
    for (const bool summing : {false, true}) {
        affine.summing = touching.summing = summing;
        if (p.affinity) run.each(affine.items(), affine);  // affinities without a rule decide alone
        if (!p.affinity || p.evidence_rule) run.each_counted(&plan.counters->contacts, plan.grid.pixels(), touching);
    }
}

template <class Executor>
void merge_regions(Executor &run, const Plan &plan, const tfiseg_problem &p, const int32_t *piece = nullptr, int32_t *region_count = nullptr) {
    create_regions(run, plan, region_count);
    if (!plan.has_edges) return;
    create_edges(run, plan, p, piece);
    MergeRounds merge = {};
    merge.rule.geometric = plan.is_geometric;
    merge.rule.with_boundary = p.boundary != nullptr;
    merge.rule.with_affinity = p.affinity != nullptr;
    merge.rule.merge_affinity = p.merge_affinity;
    merge.rule.split = plan.settings->split;
    merge.rule.evidence = p.evidence_rule ? plan.settings->evidence_rule : nullptr;
    merge.rule.evidence_hidden = p.evidence_hidden;
    for (const int32_t k : {0, 1}) {
        merge.sets[k] = plan.edge_set(k);
        merge.scores[k] = plan.scores[k];
    }
    merge.regions = plan.regions;
    merge.parent = plan.parent;
    merge.last_merge_round = plan.last_merge_round;
    merge.states = plan.states;
    merge.plane = plan.grid.plane();
    merge.counters = plan.counters;
    run.rounds(plan.grid.pixels(), merge);
}

struct AppendTo {
    int32_t *list, *count;
    TFISEG_HD void operator()(int32_t i) const { append(list, count, i); }
};

// Sums of unions, as the map has them now, replace the sums of regions.
template <class Executor>
void sum_unions(Executor &run, const Plan &plan) {
    run.each_counted(&plan.counters->regions, plan.region_room, ClearSums{plan.regions});
    const SumUnions sums = {plan.grid, plan.fixed_scores, plan.map, plan.regions};
    run.each(int64_t(plan.grid.pictures) * plan.grid.h * sums.strips(), sums);
}

// Step `now` (0, 1) of labels that spread over pixels of their kind.
template <class Kind>
SpreadLabels<Values, Kind> spread_step(const Plan &plan, const tfiseg_problem &p, const Kind *kind, int32_t now) {
    int32_t *maps[2] = {plan.map, plan.other};
    SpreadLabels<Values, Kind> spread = {};
    spread.h = plan.grid.h;
    spread.w = plan.grid.w;
    spread.kind = kind;
    spread.boundary = {p.boundary, p.value_type == TFISEG_FLOAT16};
    spread.regions = plan.regions;
    spread.map = maps[now];
    spread.distance = plan.distance[now];
    spread.next_map = maps[1 - now];
    spread.next_distance = plan.distance[1 - now];
    return spread;
}

template <class Executor>
void sharpen_cuts(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    int32_t *has_core = plan.last_merge_round;  // free after the merge
    run.each_counted(&plan.counters->regions, plan.region_room, ClearCores{has_core});
    run.each(n, MarkBand{grid.h, grid.w, p.sharpen, plan.cls, plan.map, plan.band});
    run.each(n, FindCores{plan.map, plan.band, has_core});
    ReleaseBand<AppendTo> release = {};
    release.map = plan.map;
    release.band = plan.band;
    release.has_core = has_core;
    release.other = plan.other;
    release.distance[0] = plan.distance[0];
    release.distance[1] = plan.distance[1];
    release.append = {plan.band_pixels, &plan.counters->band_pixels};
    run.each(n, release);
    for (int32_t step = 0; step < 2 * p.sharpen; ++step)
        run.each_counted(&plan.counters->band_pixels, n, SpreadBand{spread_step(plan, p, plan.cls, step & 1), plan.band_pixels});
    sum_unions(run, plan);
}

// Regions for the parts of pieces that have two or more.
template <class Executor>
void create_parts(Executor &run, const Plan &plan, const Plan &second) {
    CountParts count = {};
    count.parts = second.regions;
    count.parent = second.parent;
    count.piece = plan.piece;
    count.pieces = plan.regions;
    count.part_count = plan.part_count;
    count.largest_key = plan.largest_key;
    count.second_states = second.states;
    count.states = plan.states;
    count.plane = plan.grid.plane();
    count.second_overflow = &second.counters->overflow;
    count.overflow = &plan.counters->overflow;
    run.each_counted(&second.counters->regions, second.region_room, count);
    CreateParts create = {};
    create.parts = second.regions;
    create.parent = second.parent;
    create.piece = plan.piece;
    create.part_count = plan.part_count;
    create.largest_key = plan.largest_key;
    create.capacity = plan.region_room;
    create.regions = plan.regions;
    create.part_parent = plan.parent;
    create.largest = plan.largest_part;
    create.number_of = second.number;
    create.counters = plan.counters;
    run.each_counted(&second.counters->regions, second.region_room, create);
}

// Pieces that boundaries cross are cut into parts: see parts.h.
template <class Executor>
void run_second_pass(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const Values boundary = {p.boundary, p.value_type == TFISEG_FLOAT16};
    run.each_counted(&plan.counters->regions, plan.region_room, ClearPieceCounts{plan.interior_area, plan.part_count, plan.largest_part, plan.largest_key});
    const CountInterior interior = {grid, plan.map, boundary, plan.piece, plan.interior_area};
    run.each(int64_t(grid.pictures) * grid.h * interior.strips(), interior);
    FindInterior find = {};
    find.grid = grid;
    find.cls = plan.cls;
    find.piece = plan.piece;
    find.pieces = plan.regions;
    find.interior_area = plan.interior_area;
    find.boundary = boundary;
    find.inside = plan.inside;
    run.each(n, find);

    const tfiseg_problem problem = second_pass_problem(p, plan.inside);
    const Plan second(problem, plan.second);
    find_basins(run, second, problem);
    merge_regions(run, second, problem, plan.piece);
    create_parts(run, plan, second);

    MapParts map = {};
    map.piece = plan.piece;
    map.part_count = plan.part_count;
    map.part = second.map;
    map.parent = second.parent;
    map.number_of = second.number;
    map.map = plan.map;
    map.other = plan.other;
    map.distance[0] = plan.distance[0];
    map.distance[1] = plan.distance[1];
    map.list = plan.band_pixels;
    map.count = &plan.counters->rest;
    run.each(n, map);
    run.rounds(n, GrowthRounds{{spread_step(plan, p, plan.piece, 0), spread_step(plan, p, plan.piece, 1)}, plan.band_pixels, plan.counters});
    run.each_counted(&plan.counters->rest, n, AssignRest{plan.band_pixels, plan.piece, plan.distance[0], plan.largest_part, plan.map});
    sum_unions(run, plan);
}

// Labels and classes at the output size, with logits.
template <class Executor>
void upsample(Executor &run, const Plan &plan, const tfiseg_problem &p, const LargestRounds &largest, const tfiseg_result &result) {
    run.each_counted(&plan.counters->unions, plan.region_room, KeepGridSums{largest, plan.regions, plan.grid_area, plan.grid_score_sum, plan.number});
    Upsample upsample = {};
    upsample.grid = plan.grid;
    upsample.out = plan.out;
    upsample.semantic = plan.semantic;
    upsample.unions = {plan.map, plan.parent, plan.number};
    upsample.logits = {p.logits, p.value_type == TFISEG_FLOAT16};
    upsample.classes = p.classes;
    upsample.regions = plan.regions;
    upsample.counters = plan.counters;
    upsample.label_map = result.label_map;
    upsample.semantic_map = result.semantic_map;
    upsample.semantic_map_32 = result.semantic_map_32;
    run.each(upsample.items(), upsample);
}

// Number what is kept and write the table.
template <class Executor>
void write_table(Executor &run, const Plan &plan, const tfiseg_problem &p, const LargestRounds &largest, float *table) {
    MarkFirstPixels mark = {};
    mark.from = largest;
    mark.regions = plan.regions;
    mark.number = plan.number;
    mark.grid_area = plan.grid_area;
    mark.grid_score_sum = plan.grid_score_sum;
    mark.out = plan.out;
    mark.min_area = p.min_area;
    mark.bits = plan.bits;
    run.each_counted(&plan.counters->unions, plan.region_room, mark);
    run.prefix_sum(plan.bits, plan.prefix_count, plan.bit_words);
    NumberInstances number = {};
    number.unions = plan.unions;
    number.regions = plan.regions;
    number.out = plan.out;
    number.bits = plan.bits;
    number.prefix_count = plan.prefix_count;
    number.states = plan.states;
    number.plane = plan.grid.plane();
    number.has_scores = plan.has_scores;
    number.most = p.max_instances;
    number.number = plan.number;
    number.table = table;
    run.each_counted(&plan.counters->unions, plan.region_room, number);
}

// label_map, count and table as in tfiseg_result; one of the semantic maps may be given.
template <class Executor>
void write_result(Executor &run, const Plan &plan, const tfiseg_problem &p, const tfiseg_result &result) {
    LargestRounds largest = {};
    largest.grid = plan.grid;
    largest.regions = plan.regions;
    largest.parent = plan.parent;
    largest.unions = plan.unions;
    largest.number = plan.number;
    largest.states = plan.states;
    largest.min_area = p.logits ? 0 : p.min_area;
    largest.most = p.max_instances;
    largest.counters = plan.counters;
    run.rounds(plan.grid.pixels(), largest);
    if (p.logits) upsample(run, plan, p, largest, result);
    write_table(run, plan, p, largest, result.table);
    WriteLabels labels = {};
    labels.pixels = plan.out.plane() * plan.grid.pictures;
    labels.pictures = plan.grid.pictures;
    labels.out = plan.out;
    labels.map = p.logits ? nullptr : plan.map;
    labels.parent = plan.parent;
    labels.number = plan.number;
    labels.prefix_count = plan.prefix_count;
    labels.class_map = p.class_map;
    labels.counters = plan.counters;
    labels.label_map = result.label_map;
    labels.semantic_map = result.semantic_map;
    labels.semantic_map_32 = result.semantic_map_32;
    labels.count = result.count;
    run.each(labels.pixels, labels);
}

template <class Executor>
void cluster_on(Executor &run, const tfiseg_problem &given, const tfiseg_result &result) {
    const Plan plan(given, result.workspace);
    tfiseg_problem p = given;
    if (plan.boundary) {
        run.each(plan.grid.pixels(), Enlarge{{p.boundary, p.value_type == TFISEG_FLOAT16}, p.height, p.width, p.boundary_stride, plan.boundary});
        p.boundary = plan.boundary;
        p.boundary_stride = 1;
    }
    find_basins(run, plan, p, result.regions);
    merge_regions(run, plan, p, nullptr, result.regions);
    if (p.sharpen || p.part_rule) run.each(plan.grid.pixels(), MapUnions{plan.parent, plan.map, plan.band});
    if (p.sharpen) sharpen_cuts(run, plan, p);
    if (p.part_rule) run_second_pass(run, plan, p);
    write_result(run, plan, p, result);
}

}  // namespace tfiseg
