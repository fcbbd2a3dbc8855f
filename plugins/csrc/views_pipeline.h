// The order of views.h's phases, and which arrays lie where in the caller's workspace. Executors as in pipeline.h.
#pragma once
#include "pipeline.h"
#include "views.h"

namespace tfiseg {

constexpr int32_t kCandidatesPerView = 16;  // so many components are looked at by their shape, for each that may get a view

inline Scene scene_of(const tfiseg_views &v) {
    Scene s = {v.height, v.width, v.view_side, v.max_components, v.frame, v.label_map, v.count, v.table, {}};
    for (int32_t c = 1; c < 255; ++c)
        if (v.wanted[c]) s.wanted[c >> 5] |= 1u << (c & 31);
    return s;
}

struct ViewPlan {
    int32_t room, words;
    int64_t bytes;
    ViewCounters *counters;
    View *views;
    Outline *outlines;
    int32_t *source, *before, *memory;
    uint32_t *bits;
    Column *of_cells, *of_pixels;
    uint8_t *own;

    explicit ViewPlan(const tfiseg_views &v) {
        room = kCandidatesPerView * v.view_count;
        words = ((room + 31) >> 5) + 8;
        const int64_t columns = int64_t(room) * v.view_side;
        Carver carver(v.workspace);
        counters = carver.take<ViewCounters>(1);
        views = carver.take<View>(room + 256);
        outlines = carver.take<Outline>(room);
        source = carver.take<int32_t>(v.view_count);
        bits = carver.take<uint32_t>(words);
        before = carver.take<int32_t>(words + 1);
        of_cells = carver.take<Column>(columns);
        of_pixels = carver.take<Column>(columns);
        memory = carver.take<int32_t>(4 * 2 * (columns + room));
        own = carver.take<uint8_t>(columns * v.view_side);
        bytes = carver.bytes();
    }
};

struct PiecePlan {
    int32_t most, bit_words;
    int64_t bytes;
    Counters *counters;
    PictureState *state;
    Parting *partings;
    Region *regions;
    int32_t *view_of, *into, *component, *unions, *number, *before;
    uint32_t *bits;

    PiecePlan(const tfiseg_views &v, int32_t max_parts) {
        most = v.max_components + v.view_count * (max_parts - 1);
        bit_words = int32_t(Output{v.height, v.width}.words());
        Carver carver(v.workspace);
        counters = carver.take<Counters>(1);
        state = carver.take<PictureState>(1);
        partings = carver.take<Parting>(v.view_count);
        view_of = carver.take<int32_t>(v.max_components);
        regions = carver.take<Region>(most);
        into = carver.take<int32_t>(most);
        component = carver.take<int32_t>(most);
        unions = carver.take<int32_t>(most);
        number = carver.take<int32_t>(most);
        bits = carver.take<uint32_t>(bit_words);
        before = carver.take<int32_t>(int64_t(bit_words) + 1);
        bytes = carver.bytes();
    }
};

template <class Executor>
void cut_views_on(Executor &run, const tfiseg_views &v) {
    const ViewPlan plan(v);
    const Scene scene = scene_of(v);
    uint32_t *class_bits = plan.bits + plan.words - 8;
    View *shown = reinterpret_cast<View *>(v.views);
    run.each(plan.words, StartViews{plan.counters, plan.bits});
    run.each(v.max_components, Candidates{scene, plan.room, plan.views, plan.outlines, plan.counters});
    run.each(1, CountKept{plan.room, v.view_side, plan.counters});
    run.each_counted(&plan.counters->kept_cells, int64_t(plan.room) * scene.cells(), OwnCells{scene, plan.views, plan.own});
    run.each_counted(&plan.counters->kept_columns, int64_t(plan.room) * v.view_side,
                     Columns{scene, plan.views, plan.own, plan.of_cells, plan.of_pixels});
    run.each_counted(&plan.counters->kept_halves, 4 * int64_t(plan.room),
                     HullHalves{plan.views, plan.of_cells, plan.of_pixels, v.view_side, plan.memory, plan.outlines});
    run.each_counted(&plan.counters->kept, plan.room, Doubtful{plan.views, plan.outlines, v.view_side, plan.bits});
    run.each(256, ClassViews{scene, plan.views + plan.room, class_bits});
    run.prefix_sum(plan.bits, plan.before, plan.words);
    const ShownViews views = {plan.views, plan.room, v.view_count, v.view_side, plan.bits, plan.before, shown, plan.source};
    run.each(views.items(), views);
    run.each(int64_t(v.view_count) * scene.cells(), Show{scene, shown, plan.source, plan.own, v.images, v.masks, v.own});
}

template <class Executor>
void place_pieces_on(Executor &run, const tfiseg_views &v, const tfiseg_pieces &p) {
    const PiecePlan plan(v, p.max_parts);
    const Scene scene = scene_of(v);
    const View *shown = reinterpret_cast<const View *>(v.views);
    const Grid grid = {1, v.height, v.width};
    const Output out = {v.height, v.width};
    const Found found = {p.labels, p.counts, p.regions, p.tables, p.max_parts, p.least_regions};
    run.each(std::max(v.max_components, plan.bit_words),
             StartPieces{plan.view_of, plan.counters, plan.state, plan.bits, v.max_components, plan.bit_words});
    run.each(v.view_count, Partings{scene, shown, found, v.view_count, plan.partings, plan.view_of, plan.counters});
    const int32_t *pieces = &plan.counters->regions;
    run.each_counted(pieces, plan.most, Pieces{scene, shown, plan.partings, v.view_count, plan.regions, plan.into, plan.component});
    run.each(grid.pixels(), PlacePieces{scene, shown, plan.partings, plan.view_of, p.labels, p.label_map});
    const UnionSums sums = {grid, nullptr, p.label_map, plan.regions};
    run.each(int64_t(v.height) * sums.strips(), sums);
    const LargestRounds all = {grid, plan.regions, plan.into, plan.unions, plan.number, plan.state, 1, plan.most, plan.counters};
    run.rounds(plan.most, all);
    const int32_t *unions = &plan.counters->unions;
    run.each_counted(unions, plan.most, FirstPixels{all, plan.regions, plan.number, nullptr, nullptr, out, 1, plan.bits});
    run.prefix_sum(plan.bits, plan.before, plan.bit_words);
    run.each_counted(unions, plan.most,
                     Numbers{plan.unions, plan.regions, out, plan.bits, plan.before, plan.state, grid.plane(), false, plan.most, plan.number, p.table});
    run.each_counted(unions, plan.most, PieceRows{scene, plan.unions, plan.number, plan.component, p.table, p.component_of});
    run.each(grid.pixels(), Labels{grid.pixels(), 1, out, p.label_map, plan.into, plan.number, plan.before, nullptr, plan.counters, p.label_map,
                                   nullptr, nullptr, p.count});
}

}  // namespace tfiseg
