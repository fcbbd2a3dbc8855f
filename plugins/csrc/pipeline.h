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

// Arrays carved out of the caller's workspace. Without memory it only counts.
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

// Grids up to this many pixels have room for every region and edge that can be; larger ones for one per four pixels, many times
// what any photograph needs. Where that is not enough, the count says so (TFISEG_COUNT_OVERFLOW).
constexpr int64_t kFullRoom = 1 << 18;

inline int64_t room_for(int64_t worst, int64_t pixels) { return std::min(worst, std::max(pixels / 4, kFullRoom)); }

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
    int32_t *into, *changed, *number, *unions;
    int64_t *grid_area, *grid_score_sum;
    uint64_t *keys, *best_score, *best_pair;
    int32_t *places;
    uint32_t *bits;
    int32_t *before;
    // one after the other in the same memory
    uint32_t *columns, *rows;
    int16_t *column;
    int32_t *work[2];
    uint64_t *best;
    Edge *edges[2];
    double *scores[2];
    uint64_t *pairs;
    uint8_t *band;
    int32_t *other, *distance[2], *released;
    int32_t *piece, *left, *kept, *largest_part;
    uint64_t *largest_key;
    uint8_t *inside;
    void *again;  // memory of the second look's plan

    Plan(const tfiseg_problem &p, void *workspace) {
        grid = {p.batch, p.height, p.width};
        out = {p.out_height, p.out_width};
        has_scores = p.scores || p.logits;
        is_geometric = !p.displacement;
        has_edges = is_geometric || p.boundary || p.affinity;
        has_contacts = is_geometric || needs_contacts(p);
        const int64_t n = grid.pixels();
        // a piece has at most kPartShares parts, and kLeftPixels pixels
        region_room = int32_t(room_for(p.part_rule ? n + n * kPartShares / kLeftPixels + 1 : n, n));
        const int64_t touching = !p.affinity || p.evidence_rule ? is_geometric ? 1 : 4 : 0;
        const int64_t pairs_of_pixel = touching + (p.affinity ? p.affinity_channels : 0);
        edge_room = has_edges ? int32_t(room_for(n * pairs_of_pixel, n)) : 0;
        key_slots = has_edges ? EdgeSet::slots_for(edge_room) : 0;
        bit_words = int32_t(out.words() * p.batch);

        Carver room(workspace);
        counters = room.take<Counters>(1);
        settings = room.take<Settings>(1);
        states = room.take<PictureState>(p.batch);
        semantic = p.logits ? room.take<uint8_t>(n) : nullptr;
        cls = room.take<uint8_t>(n);
        fixed_scores = has_scores ? room.take<uint16_t>(n) : nullptr;
        boundary = p.boundary && p.boundary_stride > 1 ? room.take<char>(n * (p.value_type == TFISEG_FLOAT16 ? 2 : 4)) : nullptr;
        squared = is_geometric ? room.take<int32_t>(n) : nullptr;
        link = room.take<int32_t>(n);
        map = room.take<int32_t>(n);
        roots = room.take<int32_t>(n);
        contacts = has_edges ? room.take<int32_t>(n) : nullptr;
        regions = room.take<Region>(region_room);
        into = room.take<int32_t>(region_room);
        changed = room.take<int32_t>(region_room);
        number = room.take<int32_t>(region_room);
        unions = room.take<int32_t>(region_room);
        grid_area = p.logits ? room.take<int64_t>(region_room) : nullptr;
        grid_score_sum = p.logits ? room.take<int64_t>(region_room) : nullptr;
        best_score = has_edges ? room.take<uint64_t>(region_room) : nullptr;
        best_pair = has_edges ? room.take<uint64_t>(region_room) : nullptr;
        keys = room.take<uint64_t>(key_slots);
        places = room.take<int32_t>(key_slots);
        bits = room.take<uint32_t>(bit_words);
        before = room.take<int32_t>(int64_t(bit_words) + 1);
        const uintptr_t shared = room.mark();
        columns = room.take<uint32_t>(int64_t(grid.pictures) * grid.column_words() * grid.w);
        rows = room.take<uint32_t>(int64_t(grid.pictures) * grid.h * grid.row_words());
        column = room.take<int16_t>(n);
        room.back_to(shared);
        work[0] = room.take<int32_t>(n);
        work[1] = room.take<int32_t>(n);
        best = room.take<uint64_t>(n);
        room.back_to(shared);
        for (int32_t k : {0, 1}) {
            edges[k] = room.take<Edge>(edge_room);
            scores[k] = room.take<double>(edge_room);
        }
        pairs = room.take<uint64_t>(edge_room);
        room.back_to(shared);
        if (p.sharpen || p.part_rule) {
            band = room.take<uint8_t>(n);
            other = room.take<int32_t>(n);
            for (int32_t k : {0, 1}) distance[k] = room.take<int32_t>(n);
            released = room.take<int32_t>(n);
        }
        if (p.part_rule) {  // beside what is released
            piece = room.take<int32_t>(n);
            left = room.take<int32_t>(region_room);
            kept = room.take<int32_t>(region_room);
            largest_part = room.take<int32_t>(region_room);
            largest_key = room.take<uint64_t>(region_room);
            inside = room.take<uint8_t>(n);
            again = reinterpret_cast<void *>(room.mark());
            room.take<char>(Plan(second_look(p, inside), again).bytes);
        }
        bytes = room.bytes();
    }

    EdgeSet edge_set(int32_t k) const {
        return {keys, places, key_slots, edges[k], pairs, &counters->edges[k], edge_room, regions, best_score, best_pair, &counters->overflow};
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
    const Classes classes = {grid,          settings_of(p), p.class_map, {p.logits, half}, {p.scores, half}, p.classes,
                             plan.semantic, plan.cls,       plan.fixed_scores, plan.link,  plan.settings,    plan.counters,
                             plan.keys,     plan.bits,      plan.states,   region_count,   plan.key_slots,   plan.bit_words};
    run.each(classes.items(), classes);
    if (plan.is_geometric) {
        const Changes changes = {grid, plan.cls, plan.columns, plan.rows};
        run.each(changes.items(), changes);
        run.each(n, ColumnSearch{grid, plan.cls, plan.columns, plan.column});
        run.each(n, RowSearch{grid, plan.cls, plan.rows, plan.column, plan.squared});
        run.each(n, AscentLinks{grid, {plan.cls, plan.squared, plan.link, grid.h, grid.w}});
    } else {
        const float radius = float(p.centre_radius);
        run.each(n, GivenLinks{grid, plan.cls, {p.displacement, half}, radius * radius, plan.link});
    }
    run.each(n, Follow{plan.cls, plan.link, plan.roots, plan.map, plan.counters});
    if (plan.has_contacts) run.each(n, Contacts{grid, plan.cls, plan.link, plan.contacts, plan.counters});
    if (plan.is_geometric)
        run.rounds(n, NoiseRounds{grid, plan.cls, plan.squared, plan.link, plan.roots, plan.map, plan.contacts,
                                  {plan.work[0], plan.work[1]}, plan.best, plan.counters});
}

template <class Executor>
void merge_regions(Executor &run, const Plan &plan, const tfiseg_problem &p, const int32_t *piece = nullptr, int32_t *region_count = nullptr) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const bool half = p.value_type == TFISEG_FLOAT16;
    run.each_counted(&plan.counters->roots, n, Slots{plan.roots, plan.link, plan.squared, plan.cls, plan.map, plan.regions, plan.into,
                                                     plan.changed, plan.region_room, grid.plane(), region_count, plan.counters});
    const Statistics statistics = {grid, plan.cls, plan.fixed_scores, plan.link, plan.map, plan.regions};
    run.each(int64_t(grid.pictures) * grid.h * statistics.strips(), statistics);
    if (!plan.has_edges) return;
    for (const bool summing : {false, true}) {
        if (p.affinity) {  // where given without a rule, they alone decide
            const Affinities pairs = {grid, plan.cls, plan.map, {p.affinity, half}, plan.settings, p.affinity_channels, p.affinity_stride,
                                      piece, plan.edge_set(0), summing};
            run.each(pairs.items(), pairs);
        }
        if (!p.affinity || p.evidence_rule) {
            run.each_counted(&plan.counters->contacts, n,
                             Touches{grid, plan.cls, plan.map, plan.contacts, plan.squared, {p.boundary, half}, plan.edge_set(0), summing});
        }
    }
    const MergeRule rule = {plan.is_geometric, p.boundary != nullptr, p.affinity != nullptr, p.merge_affinity, plan.settings->split,
                            p.evidence_rule ? plan.settings->evidence_rule : nullptr, p.evidence_hidden};
    run.rounds(n, MergeRounds{rule, {plan.edge_set(0), plan.edge_set(1)}, {plan.scores[0], plan.scores[1]}, plan.regions, plan.into,
                              plan.changed, plan.states, grid.plane(), plan.counters});
}

struct AppendTo {
    int32_t *list, *count;
    TFISEG_HD void operator()(int32_t i) const { append(list, count, i); }
};

// What was summed of regions is summed of unions, as the map has them now.
template <class Executor>
void sum_anew(Executor &run, const Plan &plan) {
    run.each_counted(&plan.counters->regions, plan.region_room, ForgetSums{plan.regions});
    const UnionSums sums = {plan.grid, plan.fixed_scores, plan.map, plan.regions};
    run.each(int64_t(plan.grid.pictures) * plan.grid.h * sums.strips(), sums);
}

template <class Executor>
void sharpen_cuts(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const Values boundary = {p.boundary, p.value_type == TFISEG_FLOAT16};
    run.each_counted(&plan.counters->regions, plan.region_room, NoneHeld{plan.changed});
    run.each(n, MarkBand{grid.h, grid.w, p.sharpen, plan.cls, plan.map, plan.band});
    run.each(n, HoldFast{plan.map, plan.band, plan.changed});
    run.each(n, Release<AppendTo>{plan.map, plan.band, plan.changed, plan.other, {plan.distance[0], plan.distance[1]},
                                  {plan.released, &plan.counters->released}});
    int32_t *maps[2] = {plan.map, plan.other};
    for (int32_t step = 0; step < 2 * p.sharpen; ++step) {
        const int32_t now = step & 1, next = 1 - now;
        run.each_counted(&plan.counters->released, n,
                         SpreadReleased{{grid.h, grid.w, plan.cls, boundary, plan.regions, maps[now], plan.distance[now], maps[next], plan.distance[next]},
                                        plan.released});
    }
    sum_anew(run, plan);
}

// Parts in place of the pieces that boundaries cross.
template <class Executor>
void look_again(Executor &run, const Plan &plan, const tfiseg_problem &p) {
    const Grid &grid = plan.grid;
    const int64_t n = grid.pixels();
    const Values boundary = {p.boundary, p.value_type == TFISEG_FLOAT16};
    const int32_t *pieces = &plan.counters->regions;
    run.each_counted(pieces, plan.region_room, PieceCounts{plan.left, plan.kept, plan.largest_part, plan.largest_key});
    const CountLeft left = {grid, plan.map, boundary, plan.piece, plan.left};
    run.each(int64_t(grid.pictures) * grid.h * left.strips(), left);
    run.each(n, Inside{grid, plan.cls, plan.piece, plan.regions, plan.left, boundary, plan.inside});

    const tfiseg_problem problem = second_look(p, plan.inside);
    const Plan again(problem, plan.again);
    find_basins(run, again, problem);
    merge_regions(run, again, problem, plan.piece);

    const int32_t *parts = &again.counters->regions;
    run.each_counted(parts, again.region_room, CountParts{again.regions, again.into, plan.piece, plan.regions, plan.kept, plan.largest_key,
                                                          again.states, plan.states, grid.plane(), &again.counters->overflow, &plan.counters->overflow});
    run.each_counted(parts, again.region_room, TakeParts{again.regions, again.into, plan.piece, plan.kept, plan.largest_key, plan.region_room,
                                                         plan.regions, plan.into, plan.largest_part, again.number, plan.counters});
    int32_t *rest = &plan.counters->rest, *maps[2] = {plan.map, plan.other};
    run.each(n, PlaceParts{plan.piece, plan.kept, again.map, again.into, again.number, plan.map, plan.other,
                           {plan.distance[0], plan.distance[1]}, plan.released, rest});
    const auto step = [&](int32_t now) {
        const int32_t next = 1 - now;
        return Spread<Values, int32_t>{grid.h, grid.w, plan.piece, boundary, plan.regions, maps[now], plan.distance[now], maps[next], plan.distance[next]};
    };
    run.rounds(n, GrowthRounds{{step(0), step(1)}, plan.released, plan.counters});
    run.each_counted(rest, n, LeaveToLargest{plan.released, plan.piece, plan.distance[0], plan.largest_part, plan.map});
    sum_anew(run, plan);
}

// label_map, count and table as in tfiseg_result; one of the semantic maps may be given.
template <class Executor>
void write_result(Executor &run, const Plan &plan, const tfiseg_problem &p, const tfiseg_result &result) {
    const Grid &grid = plan.grid;
    const bool half = p.value_type == TFISEG_FLOAT16;
    const int32_t *union_count = &plan.counters->unions;
    const LargestRounds largest = {grid, plan.regions, plan.into, plan.unions, plan.number, plan.states, p.logits ? 0 : p.min_area,
                                   p.max_instances, plan.counters};
    run.rounds(grid.pixels(), largest);
    if (p.logits) {
        run.each_counted(union_count, plan.region_room, GridSums{largest, plan.regions, plan.grid_area, plan.grid_score_sum, plan.number});
        const Upsample upsample = {grid, plan.out, plan.semantic, {plan.map, plan.into, plan.number}, {p.logits, half}, p.classes, plan.regions,
                                   plan.counters, result.label_map, result.semantic_map, result.semantic_map_32};
        run.each(upsample.items(), upsample);
    }
    run.each_counted(union_count, plan.region_room, FirstPixels{largest, plan.regions, plan.number, plan.grid_area, plan.grid_score_sum,
                                                                plan.out, p.min_area, plan.bits});
    run.prefix_sum(plan.bits, plan.before, plan.bit_words);
    run.each_counted(union_count, plan.region_room, Numbers{plan.unions, plan.regions, plan.out, plan.bits, plan.before, plan.states, grid.plane(), plan.has_scores,
                                                            p.max_instances, plan.number, result.table});
    const int64_t pixels = plan.out.plane() * grid.pictures;
    run.each(pixels, Labels{pixels, grid.pictures, plan.out, p.logits ? nullptr : plan.map, plan.into, plan.number, plan.before, p.class_map,
                            plan.counters, result.label_map, result.semantic_map, result.semantic_map_32, result.count});
}

template <class Executor>
void cluster_on(Executor &run, const tfiseg_problem &asked, const tfiseg_result &result) {
    const Plan plan(asked, result.workspace);
    tfiseg_problem p = asked;
    if (plan.boundary) {
        run.each(plan.grid.pixels(), Enlarge{{p.boundary, p.value_type == TFISEG_FLOAT16}, p.height, p.width, p.boundary_stride, plan.boundary});
        p.boundary = plan.boundary;
        p.boundary_stride = 1;
    }
    find_basins(run, plan, p, result.regions);
    merge_regions(run, plan, p, nullptr, result.regions);
    if (p.sharpen || p.part_rule) run.each(plan.grid.pixels(), Unite{plan.into, plan.map, plan.band});
    if (p.sharpen) sharpen_cuts(run, plan, p);
    if (p.part_rule) look_again(run, plan, p);
    write_result(run, plan, p, result);
}

}  // namespace tfiseg
