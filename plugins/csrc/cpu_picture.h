// One picture of a batch on the CPU: what the caller gave, and the arrays that the phases share.
#pragma once
#include <vector>

#include "arena.h"
#include "field.h"
#include "launch.h"
#include "tfiseg.h"
#include "values.h"

namespace tfiseg {

struct Picture {
    const tfiseg_problem &problem;
    Team &team;
    Arena arena;
    const int32_t h, w;
    const int64_t n;       // pixels
    const int32_t *piece;  // regions of different pieces do not merge, (h, w); NULL: all may

    // the caller's maps; NULL: not given
    const uint8_t *class_map = nullptr;
    const float *logits = nullptr, *displacement = nullptr, *boundary = nullptr, *scores = nullptr, *affinity = nullptr;
    int32_t cells_h = 0, cells_w = 0;  // of the affinity

    // what the phases make
    uint8_t *semantic = nullptr;       // argmax, with logits
    uint8_t *cls = nullptr;            // countable class, 0 = none
    uint16_t *fixed_scores = nullptr;  // NULL: all scores are 1
    int32_t *squared = nullptr;        // squared distance to another class; NULL with a displacement
    int32_t *link = nullptr;           // to another pixel of the basin, or to itself
    int32_t *map = nullptr;            // region, union or label of each pixel, from 1; 0 = none
    std::vector<int32_t> roots;        // pixels that are or were the root of a basin

    Picture(const tfiseg_problem &p, int32_t index, Team &threads, Arena memory, const int32_t *pieces = nullptr)
        : problem(p), team(threads), arena(memory), h(p.height), w(p.width), n(int64_t(h) * w), piece(pieces) {
        const int64_t start = n * index;
        if (p.class_map) class_map = p.class_map + start;
        logits = floats(p.logits, start * p.classes);
        displacement = floats(p.displacement, start * 2);
        scores = floats(p.scores, start);
        boundary = p.boundary && p.boundary_stride > 1 ? enlarged_boundary(index) : floats(p.boundary, start);
        if (p.affinity) {
            cells_h = (h + p.affinity_stride - 1) / p.affinity_stride;
            cells_w = (w + p.affinity_stride - 1) / p.affinity_stride;
            affinity = floats(p.affinity, int64_t(index) * p.affinity_channels * cells_h * cells_w);
        }
    }

    bool has_scores() const { return scores || logits; }

    // Calls f(x0, x1) for each run of countable pixels in a row.
    template <class F>
    void for_runs(int32_t y, const F &f) const {
        const uint8_t *row = cls + int64_t(y) * w;
        for (int64_t x0 = 0, x1 = 0; next_run(row, w, x0, x1); x0 = x1) f(int32_t(x0), int32_t(x1));
    }

    // What f(y, x0, x1, out) appends to `out` for each run of countable pixels, in raster order, on all threads.
    template <class T = int32_t, class F>
    std::vector<T> select(const F &f) const {
        std::vector<std::vector<T>> found(static_cast<size_t>(team.blocks_of(h, 16)));
        team.run(h, 16, [&](int64_t begin, int64_t end, int32_t block) {
            for (int32_t y = int32_t(begin); y < end; ++y) for_runs(y, [&](int32_t x0, int32_t x1) { f(y, x0, x1, found[size_t(block)]); });
        });
        std::vector<T> all = std::move(found[0]);
        for (size_t b = 1; b < found.size(); ++b) all.insert(all.end(), found[b].begin(), found[b].end());
        return all;
    }

    // Calls f(pixel) for each of a list, on all threads.
    template <class F>
    void each_of(const std::vector<int32_t> &pixels, const F &f) const {
        team.run(int64_t(pixels.size()), 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t k = begin; k < end; ++k) f(pixels[size_t(k)]);
        });
    }

  private:
    static const float *floats(const void *values, int64_t start) { return values ? static_cast<const float *>(values) + start : nullptr; }

    const float *enlarged_boundary(int32_t index) {
        const int32_t stride = problem.boundary_stride;
        const int64_t cells = int64_t((h + stride - 1) / stride) * ((w + stride - 1) / stride);
        float *enlarged = arena.take<float>(n);
        Enlarge enlarge;
        enlarge.cells = {floats(problem.boundary, cells * index), false};
        enlarge.h = h;
        enlarge.w = w;
        enlarge.stride = stride;
        enlarge.out = enlarged;
        for (int32_t i = 0; i < int32_t(n); ++i) enlarge(i);
        return enlarged;
    }
};


}  // namespace tfiseg
