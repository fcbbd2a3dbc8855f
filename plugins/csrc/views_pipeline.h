// The order of the phases in views.h, and their arrays in the caller's workspace. Executors as in pipeline.h.
#pragma once
#include "pipeline.h"
#include "views.h"

namespace tfiseg {

constexpr int32_t kCandidatesPerView = 16;  // the shape of so many components is measured for each view there is room for

// The scene of tfiseg_views or tfiseg_mask_views. side: of the views, in pixels. is_selected: whether a class is refined.
template <class Views, class Selected>
Scene scene_of(const Views &v, int32_t side, const Selected &is_selected) {
    Scene s = {};
    s.h = v.height;
    s.w = v.width;
    s.size = side;
    s.most = v.max_components;
    s.frame = v.frame;
    s.label_map = v.label_map;
    s.count = v.count;
    s.table = v.table;
    for (int32_t c = 1; c < 255; ++c)
        if (is_selected(c)) s.class_bits[c >> 5] |= 1u << (c & 31);
    return s;
}

inline Scene scene_of(const tfiseg_views &v) {
    return scene_of(v, v.view_side, [&](int32_t c) { return v.wanted[c] != 0; });
}

struct ViewPlan {
    int32_t room, words;
    int64_t bytes;
    ViewCounters *counters;
    View *views;
    Outline *outlines;
    int32_t *source, *prefix_count, *memory;
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
        prefix_count = carver.take<int32_t>(counts_of(words) + 1);
        of_cells = carver.take<Column>(columns);
        of_pixels = carver.take<Column>(columns);
        memory = carver.take<int32_t>(4 * 2 * (columns + room));
        own = carver.take<uint8_t>(columns * v.view_side);
        bytes = carver.bytes();
    }
};

// Memory to number regions by their first pixels and to measure them.
struct NumberingPlan {
    int32_t most, bit_words;  // most: regions
    Counters *counters;
    PictureState *state;
    Region *regions;
    int32_t *parent, *unions, *number, *prefix_count;
    uint32_t *bits;

    NumberingPlan() = default;
    NumberingPlan(Carver &carver, int32_t height, int32_t width, int32_t most_regions) {
        most = most_regions;
        bit_words = int32_t(Output{height, width}.words());
        counters = carver.take<Counters>(1);
        state = carver.take<PictureState>(1);
        regions = carver.take<Region>(most);
        parent = carver.take<int32_t>(most);
        unions = carver.take<int32_t>(most);
        number = carver.take<int32_t>(most);
        bits = carver.take<uint32_t>(bit_words);
        prefix_count = carver.take<int32_t>(counts_of(bit_words) + 1);
    }
};

struct PiecePlan {
    NumberingPlan numbering;
    int64_t bytes;
    Partition *partitions;
    int32_t *view_of, *component;

    PiecePlan(const tfiseg_views &v, int32_t max_parts) {
        Carver carver(v.workspace);
        numbering = NumberingPlan(carver, v.height, v.width, v.max_components + v.view_count * (max_parts - 1));
        partitions = carver.take<Partition>(v.view_count);
        view_of = carver.take<int32_t>(v.max_components);
        component = carver.take<int32_t>(numbering.most);
        bytes = carver.bytes();
    }
};

// Candidates measured, and the views listed.
struct ListSection {
    static constexpr int32_t kGroups = 1;
    ViewPlan plan;
    Scene scene;
    int32_t view_count;
    View *views;  // out

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        const int32_t room = plan.room, size = scene.size;
        uint32_t *class_bits = plan.bits + plan.words - 8;
        run.each(plan.words, ClearViews{plan.counters, plan.bits});
        run.each(scene.most, FindCandidates{scene, room, plan.views, plan.outlines, plan.counters});
        run.each(1, CountWork{room, size, plan.counters});
        run.each_counted(&plan.counters->cells, int64_t(room) * scene.cells(), FindOwnCells{scene, plan.views, plan.own});
        const MeasureColumns columns = {scene, plan.views, plan.own, plan.of_cells, plan.of_pixels};
        run.each_counted(&plan.counters->columns, int64_t(room) * size, columns);
        const HullHalves halves = {plan.views, plan.of_cells, plan.of_pixels, size, plan.memory, plan.outlines};
        run.each_counted(&plan.counters->halves, 4 * int64_t(room), halves);
        run.each_counted(&plan.counters->measured, room, SelectInformativeViews{plan.views, plan.outlines, size, plan.bits});
        run.each(256, ClassViews{scene, plan.views + room, class_bits});
        run.each(counts_of(plan.words), CountBits{plan.bits, plan.words, plan.prefix_count});
        run.exclusive_sum(plan.prefix_count, counts_of(plan.words));
        ListViews list = {};
        list.views = plan.views;
        list.room = room;
        list.count = view_count;
        list.size = size;
        list.bits = plan.bits;
        list.prefix_count = plan.prefix_count;
        list.list = views;
        list.source = plan.source;
        run.each(list.items(), list);
    }
};

template <class Executor>
void cut_views_on(Executor &run, const tfiseg_views &v) {
    const ViewPlan plan(v);
    const Scene scene = scene_of(v);
    View *views = reinterpret_cast<View *>(v.views);
    run.section(int64_t(plan.room) * v.view_side, ListSection{plan, scene, v.view_count, views});
    RenderViews render = {};
    render.scene = scene;
    render.views = views;
    render.source = plan.source;
    render.own_of = plan.own;
    render.images = v.images;
    render.masks = v.masks;
    render.own = v.own;
    run.each(int64_t(v.view_count) * scene.cells(), render);
}

// Sums the regions of a map, which has their numbers, and numbers them by their first pixels. rows: a phase for each region, which completes
// the table.
TFISEG_SECTION template <class Executor, class Rows>
TFISEG_HD void number_regions(Executor &run, const NumberingPlan &plan, const Grid &grid, int32_t *label_map, int32_t *count, float *table,
                              const Rows &rows) {
    const SumUnions sums = {grid, nullptr, label_map, plan.regions};
    run.each(sums.items(), sums);
    const Output out = {grid.h, grid.w};
    LargestRounds all = {};
    all.grid = grid;
    all.regions = plan.regions;
    all.parent = plan.parent;
    all.unions = plan.unions;
    all.number = plan.number;
    all.states = plan.state;
    all.min_area = 1;
    all.most = plan.most;
    all.counters = plan.counters;
    MarkFirstPixels mark = {};
    mark.from = all;
    mark.regions = plan.regions;
    mark.number = plan.number;
    mark.out = out;
    mark.min_area = 1;
    mark.bits = plan.bits;
    run.solo({&plan.counters->regions, nullptr}, kSoloItems, [&] {
        run.rounds(all);
        run.each_counted(&plan.counters->unions, plan.most, mark);
    });
    const int64_t counts = counts_of(plan.bit_words);
    run.each(counts, CountBits{plan.bits, plan.bit_words, plan.prefix_count});
    NumberInstances number = {};
    number.unions = plan.unions;
    number.regions = plan.regions;
    number.out = out;
    number.bits = plan.bits;
    number.prefix_count = plan.prefix_count;
    number.states = plan.state;
    number.plane = grid.plane();
    number.most = plan.most;
    number.number = plan.number;
    number.table = table;
    run.solo({&plan.counters->unions, nullptr}, kSoloItems, [&] {
        run.exclusive_sum(plan.prefix_count, counts);
        run.each_counted(&plan.counters->unions, plan.most, number);
        run.each_counted(&plan.counters->unions, plan.most, rows);
    });
    WriteLabels labels = {};
    labels.pixels = grid.pixels();
    labels.pictures = 1;
    labels.out = out;
    labels.map = label_map;
    labels.parent = plan.parent;
    labels.number = plan.number;
    labels.prefix_count = plan.prefix_count;
    labels.counters = plan.counters;
    labels.label_map = label_map;
    labels.count = count;
    run.each(labels.items(), labels);
}

struct PieceSection {
    static constexpr int32_t kGroups = 1;
    PiecePlan plan;
    Scene scene;
    tfiseg_pieces pieces;
    const View *views;
    int32_t view_count;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        const Grid grid = {1, scene.h, scene.w};
        const NumberingPlan &numbering = plan.numbering;
        PartResults results = {};
        results.labels = pieces.labels;
        results.counts = pieces.counts;
        results.regions = pieces.regions;
        results.tables = pieces.tables;
        results.most = pieces.max_parts;
        results.least_regions = pieces.least_regions;
        const int32_t cleared = scene.most > numbering.bit_words ? scene.most : numbering.bit_words;
        run.each(cleared, ClearPieces{plan.view_of, numbering.counters, numbering.state, numbering.bits, scene.most, numbering.bit_words});
        PartitionViews partition = {};
        partition.scene = scene;
        partition.views = views;
        partition.results = results;
        partition.count = view_count;
        partition.partitions = plan.partitions;
        partition.view_of = plan.view_of;
        partition.counters = numbering.counters;
        run.each(view_count, partition);
        CreatePieces create = {};
        create.scene = scene;
        create.views = views;
        create.partitions = plan.partitions;
        create.count = view_count;
        create.regions = numbering.regions;
        create.parent = numbering.parent;
        create.component = plan.component;
        run.each_counted(&numbering.counters->regions, numbering.most, create);
        run.each(grid.pixels(), PlacePieces{scene, views, plan.partitions, plan.view_of, pieces.labels, pieces.label_map});
        const PieceRows rows = {scene, numbering.unions, numbering.number, plan.component, pieces.table, pieces.component_of};
        number_regions(run, numbering, grid, pieces.label_map, pieces.count, pieces.table, rows);
    }
};

template <class Executor>
void place_pieces_on(Executor &run, const tfiseg_views &v, const tfiseg_pieces &p) {
    const PieceSection section = {PiecePlan(v, p.max_parts), scene_of(v), p, reinterpret_cast<const View *>(v.views), v.view_count};
    run.section(int64_t(v.height) * v.width, section);
}

}  // namespace tfiseg
