// The operator on a GPU: the order of the phases. plan.h says where their arrays lie.
//
// An executor runs phases, with a barrier between any two:
//   each(n, phase)                    one item for each number below n
//   each_counted(count, most, phase)  as many as an earlier phase counted, at most `most`
//   rounds(phases)                    a loop whose end is decided on the device
//   tiles(n, phase)                   items in groups that share memory
//   exclusive_sum(counts, n)          prefix counts, see bit_ranks.h
//   solo(counts, most, body)          phases with few items: in one group of threads, whose barriers cost little
//   solo_sharing<T>(counts, most, body)  the same; body(memory) is given a T that the group shares, or NULL if all groups run it.
//                                     The second count is at most T::kMost, too
//   section(items, section)           phases in one launch. On a GPU, a section runs on the device and calls the functions above there.
// The CUDA executors (cluster_cuda.cu) launch kernels; the one of the tests (tests/plugins/shuffled.cpp) runs all items in random order.
#pragma once
#include "plan.h"

// nvcc: the executor decides whether a section runs on the host or on the device.
#ifdef __NVCC__
#define TFISEG_SECTION _Pragma("nv_exec_check_disable")
#else
#define TFISEG_SECTION
#endif

namespace tfiseg {

#ifndef TFISEG_SMALL_PIXELS
#define TFISEG_SMALL_PIXELS (1 << 16)  // tests take other limits, so that small grids take every way
#endif
#ifndef TFISEG_SOLO_ITEMS
#define TFISEG_SOLO_ITEMS (1 << 12)
#endif
constexpr int64_t kSmallPixels = TFISEG_SMALL_PIXELS;  // up to here, everything between class map and output is one section
constexpr int32_t kSoloItems = TFISEG_SOLO_ITEMS;      // up to here, one group of threads is faster than all with their barriers
constexpr int64_t kSoloWords = 4 * kSoloItems;         // of the output's bit map

// Counts on the device that decide whether phases are few items' work; unused ones are NULL.
struct DeviceCounts {
    const int32_t *first, *second;
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

inline FindClasses find_classes(const Plan &plan, const tfiseg_problem &p, int32_t *region_count) {
    const Grid &grid = plan.grid;
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
    return classes;
}

TFISEG_SECTION template <class Executor>
TFISEG_HD void find_distances(Executor &run, const Plan &plan) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const FindClassChanges changes = {grid, plan.cls, plan.columns, plan.rows};
    run.each(changes.items(), changes);
    const ColumnSearch columns = {grid, plan.columns, plan.column};
    run.each(columns.items(), columns);
    const RowSearch search = {grid, plan.cls, plan.rows, plan.column, plan.squared};
    if (n <= kSmallPixels) {
        run.each(n, search);
    } else {
        const RowSamples samples = {search, plan.sites};
        run.each(samples.cells().items(), samples);
        const RowBetween between = {samples};
        run.each(between.cells().items(), between);
    }
}

TFISEG_SECTION template <class Executor>
TFISEG_HD void create_regions(Executor &run, const Plan &plan, const int32_t *basin_parent, int32_t *region_count) {
    CreateRegions create = {};
    create.basin_parent = basin_parent;
    create.squared = plan.squared;
    create.cls = plan.cls;
    create.roots = plan.roots;
    create.map = plan.map;
    create.regions = plan.regions;
    create.parent = plan.parent;
    create.last_merge_round = plan.last_merge_round;
    create.capacity = plan.region_room;
    create.plane = plan.grid.plane();
    create.region_count = region_count;
    create.counters = plan.counters;
    run.each_counted(&plan.counters->roots, plan.grid.pixels(), create);
    if (basin_parent) run.each_counted(&plan.counters->roots, plan.grid.pixels(), SpreadRegions{basin_parent, plan.roots, plan.map});
}

// Merges basins that are noise, and makes regions of the others. Few basins are kept in shared memory.
TFISEG_SECTION template <class Executor>
TFISEG_HD void merge_noise(Executor &run, const Plan &plan, int32_t *region_count) {
    const auto merge = [&](const BasinArrays &basins) {
        run.each_counted(&plan.counters->roots, plan.grid.pixels(), BeginBasins{plan.roots, plan.squared, plan.basins.best[0], basins});
        run.rounds(NoiseRounds{plan.edges[1], plan.edge_room, {plan.work[0], plan.work[1]}, basins, plan.counters});
        create_regions(run, plan, basins.parent, region_count);
    };
    run.template solo_sharing<SharedBasins>({&plan.counters->edges[1], &plan.counters->roots}, kSoloItems,
                                            [&](SharedBasins *shared) { merge(shared ? shared->arrays() : plan.basins); });
}

// Basins, the edges between them, and regions. region_count: by picture; or NULL.
TFISEG_SECTION template <class Executor>
TFISEG_HD void find_basins(Executor &run, const Plan &plan, const tfiseg_problem &p, int32_t *region_count) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const bool half = p.value_type == TFISEG_FLOAT16;
    if (plan.is_geometric) {
        const AscentLinks links = {grid, plan.cls, plan.squared, plan.link};
        run.tiles(links.tiles(), links);
    } else {
        const float radius = float(p.centre_radius);
        run.each(n, GivenLinks{grid, plan.cls, {p.displacement, half}, radius * radius, plan.link});
    }
    const FollowLinks follow = {grid, plan.cls, plan.link, plan.roots, plan.map, plan.basins.best[0], plan.counters};
    run.each(follow.items(), follow);
    if (plan.has_contacts) {
        const ListContacts list = {grid, plan.cls, plan.link, plan.contacts, plan.counters};
        run.each(list.items(), list);
        run.each_counted(&plan.counters->contacts, n, EnterContacts{grid, plan.cls, plan.link, plan.map, plan.contacts, plan.edge_set(1)});
        const SumContacts sum = {grid, plan.cls, plan.link, plan.map, plan.contacts, plan.squared, {p.boundary, half}, plan.edge_set(1), plan.basins.best[0]};
        run.each_counted(&plan.counters->contacts, n, sum);
    }
    if (plan.is_geometric) {
        merge_noise(run, plan, region_count);
    } else {
        create_regions(run, plan, nullptr, region_count);
    }
}

TFISEG_SECTION template <class Executor>
TFISEG_HD void sum_regions(Executor &run, const Plan &plan) {
    SumRegions sums = {};
    sums.grid = plan.grid;
    sums.cls = plan.cls;
    sums.fixed_scores = plan.fixed_scores;
    sums.link = plan.link;
    sums.map = plan.map;
    sums.regions = plan.regions;
    run.each(sums.items(), sums);
}

// Edges with their evidence: all pairs are entered first, then summed.
TFISEG_SECTION template <class Executor>
TFISEG_HD void create_edges(Executor &run, const Plan &plan, const tfiseg_problem &p, const int32_t *piece) {
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
    RegionEdges touching = {plan.edges[1], plan.roots, plan.edge_set(0), false};
    for (int32_t pass = 0; pass < 2; ++pass) {
        affine.summing = touching.summing = pass == 1;
        if (p.affinity) run.each(affine.items(), affine);  // affinities without a rule decide alone
        if (!p.affinity || p.evidence_rule) run.each_counted(&plan.counters->edges[1], plan.edge_room, touching);
    }
}

TFISEG_HD MergeRounds merge_rounds(const Plan &plan, const tfiseg_problem &p) {
    MergeRounds merge = {};
    merge.rule.geometric = plan.is_geometric;
    merge.rule.with_boundary = p.boundary != nullptr;
    merge.rule.with_affinity = p.affinity != nullptr;
    merge.rule.merge_affinity = p.merge_affinity;
    merge.rule.split = plan.settings->split;
    merge.rule.evidence = p.evidence_rule ? plan.settings->evidence_rule : nullptr;
    merge.rule.evidence_hidden = p.evidence_hidden;
    for (int32_t k = 0; k < 2; ++k) {
        merge.sets[k] = plan.edge_set(k);
        merge.scores[k] = plan.scores[k];
    }
    merge.regions = plan.regions;
    merge.parent = plan.parent;
    merge.last_merge_round = plan.last_merge_round;
    merge.states = plan.states;
    merge.plane = plan.grid.plane();
    merge.counters = plan.counters;
    return merge;
}

// piece: see AffinityEdges.
TFISEG_SECTION template <class Executor>
TFISEG_HD void merge_regions(Executor &run, const Plan &plan, const tfiseg_problem &p, const int32_t *piece) {
    if (!plan.has_edges) return;
    const MergeRounds merge = merge_rounds(plan, p);
    const auto merge_them = [&] {
        create_edges(run, plan, p, piece);
        run.solo({&plan.counters->edges[0], nullptr}, kSoloItems, [&] { run.rounds(merge); });
    };
    run.solo({&plan.counters->edges[1], nullptr}, p.affinity ? -1 : kSoloItems, merge_them);  // with affinities, every pixel has pairs
}

struct AppendTo {
    int32_t *list, *count;
    TFISEG_HD void operator()(int32_t i) const { append(list, count, i); }
};

// Sums of unions, as the map has them now, replace the sums of regions.
TFISEG_SECTION template <class Executor>
TFISEG_HD void sum_unions(Executor &run, const Plan &plan) {
    run.each_counted(&plan.counters->regions, plan.region_room, ClearSums{plan.regions});
    const SumUnions sums = {plan.grid, plan.fixed_scores, plan.map, plan.regions};
    run.each(sums.items(), sums);
}

// Step `now` (0, 1) of labels that spread over pixels of their kind.
template <class Kind>
TFISEG_HD SpreadLabels<Values, Kind> spread_step(const Plan &plan, const tfiseg_problem &p, const Kind *kind, int32_t now) {
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

TFISEG_SECTION template <class Executor>
TFISEG_HD void sharpen_cuts(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    run.each(n, MapUnions{plan.parent, plan.map, plan.band});
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
TFISEG_SECTION template <class Executor>
TFISEG_HD void create_parts(Executor &run, const Plan &plan, const Plan &second) {
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

// The interiors of pieces that boundaries cross, which the second pass clusters: see parts.h.
TFISEG_SECTION template <class Executor>
TFISEG_HD void find_interiors(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    if (!p.sharpen) run.each(n, MapUnions{plan.parent, plan.map, plan.band});
    const Values boundary = {p.boundary, p.value_type == TFISEG_FLOAT16};
    run.each_counted(&plan.counters->regions, plan.region_room, ClearPieceCounts{plan.interior_area, plan.part_count, plan.largest_part, plan.largest_key});
    const CountInterior interior = {grid, plan.map, boundary, plan.piece, plan.interior_area};
    run.each(interior.items(), interior);
    FindInterior find = {};
    find.grid = grid;
    find.cls = plan.cls;
    find.piece = plan.piece;
    find.pieces = plan.regions;
    find.interior_area = plan.interior_area;
    find.boundary = boundary;
    find.inside = plan.inside;
    run.each(n, find);
}

// Pieces are cut into the parts that the second pass found.
TFISEG_SECTION template <class Executor>
TFISEG_HD void cut_pieces(Executor &run, const Plan &plan, const Plan &second, const tfiseg_problem &p) {
    const int64_t n = plan.grid.pixels();
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
    const GrowthRounds growth = {{spread_step(plan, p, plan.piece, 0), spread_step(plan, p, plan.piece, 1)}, plan.band_pixels, plan.counters};
    run.solo({&plan.counters->rest, nullptr}, kSoloItems, [&] { run.rounds(growth); });
    run.each_counted(&plan.counters->rest, n, AssignRest{plan.band_pixels, plan.piece, plan.distance[0], plan.largest_part, plan.map});
    sum_unions(run, plan);
}

TFISEG_HD LargestRounds largest_rounds(const Plan &plan, const tfiseg_problem &p) {
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
    return largest;
}

// Lists the unions, and marks those that are kept.
TFISEG_SECTION template <class Executor>
TFISEG_HD void list_unions(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const LargestRounds largest = largest_rounds(plan, p);
    run.solo({&plan.counters->regions, nullptr}, kSoloItems, [&] {
        run.rounds(largest);
        const KeepGridSums keep = {largest, plan.regions, plan.grid_area, plan.grid_score_sum, plan.number};
        if (p.logits) run.each_counted(&plan.counters->unions, plan.region_room, keep);
    });
}

// Labels and classes at the output size, with logits.
TFISEG_SECTION template <class Executor>
TFISEG_HD void upsample(Executor &run, const Plan &plan, const tfiseg_problem &p, const tfiseg_result &result) {
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

// Numbers the kept unions by their first pixels and writes the table.
TFISEG_SECTION template <class Executor>
TFISEG_HD void write_table(Executor &run, const Plan &plan, const tfiseg_problem &p, float *table) {
    MarkFirstPixels mark = {};
    mark.from = largest_rounds(plan, p);
    mark.regions = plan.regions;
    mark.number = plan.number;
    mark.grid_area = plan.grid_area;
    mark.grid_score_sum = plan.grid_score_sum;
    mark.out = plan.out;
    mark.min_area = p.min_area;
    mark.bits = plan.bits;
    run.each_counted(&plan.counters->unions, plan.region_room, mark);
    const int64_t counts = counts_of(plan.bit_words);
    run.each(counts, CountBits{plan.bits, plan.bit_words, plan.prefix_count});
    run.exclusive_sum(plan.prefix_count, counts);
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
TFISEG_SECTION template <class Executor>
TFISEG_HD void write_result(Executor &run, const Plan &plan, const tfiseg_problem &p, const tfiseg_result &result) {
    if (p.logits) upsample(run, plan, p, result);
    if (plan.bit_words <= kSoloWords) {
        run.solo({&plan.counters->unions, nullptr}, kSoloItems, [&] { write_table(run, plan, p, result.table); });
    } else {
        write_table(run, plan, p, result.table);
    }
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
    run.each(labels.items(), labels);
}

// Sections: what one launch runs. kGroups: groups of threads that a processor must be able to hold, which limits a thread's registers.

struct DistanceSection {
    static constexpr int32_t kGroups = 2;
    Plan plan;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        find_distances(run, plan);
    }
};

struct BasinSection {
    static constexpr int32_t kGroups = 2;
    Plan plan;
    tfiseg_problem problem;
    int32_t *region_count;  // or NULL

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        find_basins(run, plan, problem, region_count);
    }
};

struct MergeSection {
    static constexpr int32_t kGroups = 1;
    Plan plan;
    tfiseg_problem problem;
    const int32_t *piece;  // or NULL
    bool lists_unions;     // no pass follows

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        sum_regions(run, plan);
        merge_regions(run, plan, problem, piece);
        if (lists_unions) list_unions(run, plan, problem);
    }
};

// Everything from the class map to unions, for small grids.
struct GridSection {
    static constexpr int32_t kGroups = 1;
    BasinSection basins;
    MergeSection merge;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        if (basins.plan.is_geometric) find_distances(run, basins.plan);
        basins(run);
        merge(run);
    }
};

struct SharpenSection {
    static constexpr int32_t kGroups = 1;
    Plan plan;
    tfiseg_problem problem;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        sharpen_cuts(run, plan, problem);
        if (problem.part_rule) {
            find_interiors(run, plan, problem);
        } else {
            list_unions(run, plan, problem);
        }
    }
};

struct InteriorSection {
    static constexpr int32_t kGroups = 2;
    Plan plan;
    tfiseg_problem problem;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        find_interiors(run, plan, problem);
    }
};

struct PartSection {
    static constexpr int32_t kGroups = 1;
    Plan plan, second;
    tfiseg_problem problem;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        cut_pieces(run, plan, second, problem);
        list_unions(run, plan, problem);
    }
};

struct OutputSection {
    static constexpr int32_t kGroups = 1;
    Plan plan;
    tfiseg_problem problem;
    tfiseg_result result;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        write_result(run, plan, problem, result);
    }
};

// From the inputs to unions. piece: of the second pass; or NULL.
template <class Executor>
void find_unions(Executor &run, const Plan &plan, const tfiseg_problem &p, const int32_t *piece, int32_t *region_count, bool lists_unions) {
    const int64_t n = plan.grid.pixels();
    const FindClasses classes = find_classes(plan, p, region_count);
    run.each(classes.items(), classes);
    const BasinSection basins = {plan, p, region_count};
    const MergeSection merge = {plan, p, piece, lists_unions};
    if (n <= kSmallPixels) {
        run.section(n, GridSection{basins, merge});
        return;
    }
    if (plan.is_geometric) run.section(n, DistanceSection{plan});
    run.section(n, basins);
    run.section(n, merge);
}

template <class Executor>
void cluster_on(Executor &run, const tfiseg_problem &given, const tfiseg_result &result) {
    const Plan plan(given, result.workspace);
    tfiseg_problem p = given;
    const int64_t n = plan.grid.pixels();
    if (plan.boundary) {
        run.each(n, Enlarge{{p.boundary, p.value_type == TFISEG_FLOAT16}, p.height, p.width, p.boundary_stride, plan.boundary});
        p.boundary = plan.boundary;
        p.boundary_stride = 1;
    }
    find_unions(run, plan, p, nullptr, result.regions, !p.sharpen && !p.part_rule);
    if (p.sharpen) run.section(n, SharpenSection{plan, p});
    if (p.part_rule) {
        if (!p.sharpen) run.section(n, InteriorSection{plan, p});
        const tfiseg_problem problem = second_pass_problem(p, plan.inside);
        const Plan second(problem, plan.second);
        find_unions(run, second, problem, plan.piece, nullptr, false);
        run.section(n, PartSection{plan, second, p});
    }
    run.section(plan.out.plane() * plan.grid.pictures, OutputSection{plan, p, result});
}

}  // namespace tfiseg
