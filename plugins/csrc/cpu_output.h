// Last phase on the CPU: labels and classes at the output size, and the table.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu_region_graph.h"
#include "upsample.h"

namespace tfiseg {

// Writes labels and classes at the output size; instances are numbered and measured again there. semantic_map may be NULL. Returns the classes.
inline const uint8_t *upsample(Picture &p, LargeVector<Region> &instances, int32_t *label_map, uint8_t *semantic_map) {
    const int32_t out_h = p.problem.out_height, out_w = p.problem.out_width;
    FullResolution<> full = {};
    full.grid_class = p.semantic;
    full.grid_label = {p.map};
    full.logits = p.logits;
    full.classes = p.problem.classes;
    full.h = p.h;
    full.w = p.w;
    std::vector<GridPosition> columns;
    for (int32_t x = 0; x < out_w; ++x) columns.push_back(grid_position(x, out_w, p.w));
    if (!semantic_map) semantic_map = p.arena.take<uint8_t>(int64_t(out_h) * out_w);
    p.team.run(out_h, 16, [&](int64_t begin, int64_t end, int32_t) {
        const FullResolution<> at = full;  // a copy, which stores of bytes cannot change
        for (int64_t y = begin; y < end; ++y) {
            const GridPosition row = grid_position(int32_t(y), out_h, p.h);
            for (int32_t x = 0; x < out_w; ++x) {
                const int64_t i = y * out_w + x;
                at(row, columns[size_t(x)], semantic_map[i], label_map[i]);
            }
        }
    });
    const LargeVector<Region> grid = std::move(instances);
    LargeVector<Region> measured(grid.size(), kEmptyRegion);
    add_runs(label_map, nullptr, nullptr, out_w, 0, out_h, measured.data());
    std::vector<int32_t> order, number(grid.size() + 1, 0);
    for (size_t k = 0; k < grid.size(); ++k)
        if (measured[k].area >= std::max(1, p.problem.min_area)) order.push_back(int32_t(k));  // shrinking can leave one without a pixel
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return measured[size_t(a)].first < measured[size_t(b)].first; });
    instances.clear();
    for (size_t k = 0; k < order.size(); ++k) {
        Region r = measured[size_t(order[k])];
        const Region &g = grid[size_t(order[k])];
        r.class_id = g.class_id;
        r.score_sum = carried_score(g.score_sum, g.area, r.area);
        number[size_t(order[k]) + 1] = int32_t(k) + 1;
        instances.push_back(r);
    }
    renumber(p.team, label_map, out_h, out_w, number);
    return semantic_map;
}

inline void write_table(const Picture &p, const LargeVector<Region> &instances, bool is_stopped, float *table) {
    for (const Region &r : instances) {
        write_row(r, p.has_scores(), is_stopped, p.problem.out_height, p.problem.out_width, table);
        table += TFISEG_TABLE_COLUMNS;
    }
}

}  // namespace tfiseg
