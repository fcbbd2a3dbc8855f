// The region graph on the CPU: sums of regions by runs, edges by pixel pairs.
#pragma once
#include <algorithm>
#include <vector>

#include "merge.h"

namespace tfiseg {

// End of the run of equal numbers that starts at x0; eight at a time.
inline int32_t run_end(const int32_t *row, int32_t x0, int32_t w) {
    const int32_t number = row[x0];
    int32_t x1 = x0 + 1;
    for (; x1 + 8 <= w; x1 += 8) {
        int32_t other = 0;
        for (int32_t k = 0; k < 8; ++k) other |= row[x1 + k] ^ number;
        if (other) break;
    }
    while (x1 < w && row[x1] == number) ++x1;
    return x1;
}

// Add rows [y_begin, y_end) of a map of numbers 1..n (0 = none) to regions[number - 1]; runs, not pixels, are summed.
inline void add_runs(const int32_t *map, const uint8_t *cls, const uint16_t *scores, int32_t w, int64_t y_begin, int64_t y_end,
                     Region *regions) {
    for (int64_t y = y_begin; y < y_end; ++y) {
        const int32_t *row = map + y * w;
        for (int32_t x0 = 0; x0 < w;) {
            const int32_t number = row[x0], x1 = run_end(row, x0, w);
            if (number) {
                const int64_t n = x1 - x0, a = x0, b = x1;
                const int64_t sum_x = n * (a + b - 1) / 2;
                const int64_t sum_xx = ((b - 1) * b * (2 * b - 1) - (a - 1) * a * (2 * a - 1)) / 6;
                int64_t score_sum = 0;
                if (scores)
                    for (int32_t x = x0; x < x1; ++x) score_sum += scores[y * w + x];
                Region run = {};
                run.area = n;
                run.sum_x = sum_x;
                run.sum_y = n * y;
                run.sum_xx = sum_xx;
                run.sum_xy = sum_x * y;
                run.sum_yy = n * y * y;
                run.score_sum = score_sum;
                run.first = y * w + a;
                run.x0 = x0;
                run.y0 = int32_t(y);
                run.x1 = x1;
                run.y1 = int32_t(y) + 1;
                regions[number - 1].absorb(run);
                if (cls) regions[number - 1].class_id = cls[y * w + a];
            }
            x0 = x1;
        }
    }
}

// Edges by their two regions: an open-addressing table, so that adding a pixel pair costs one probe.
class EdgeTable {
  public:
    EdgeTable() : slots_(1024, -1) {}

    Edge &at(int32_t a, int32_t b) {
        if (a > b) std::swap(a, b);
        if (a == last_a_ && b == last_b_) return edges[size_t(last_)];
        if (edges.size() * 2 >= slots_.size()) grow();
        size_t slot = hash(a, b);
        while (slots_[slot] >= 0) {
            const Edge &e = edges[size_t(slots_[slot])];
            if (e.a == a && e.b == b) break;
            slot = (slot + 1) & (slots_.size() - 1);
        }
        if (slots_[slot] < 0) {
            slots_[slot] = int32_t(edges.size());
            edges.emplace_back();
            edges.back().a = a;
            edges.back().b = b;
        }
        last_a_ = a;
        last_b_ = b;
        last_ = slots_[slot];
        return edges[size_t(last_)];
    }

    std::vector<Edge> edges;

  private:
    size_t hash(int32_t a, int32_t b) const {
        const uint64_t key = (uint64_t(uint32_t(a)) << 32 | uint32_t(b)) * 0x9E3779B97F4A7C15ull;
        return size_t(key >> 32) & (slots_.size() - 1);
    }

    void grow() {
        slots_.assign(slots_.size() * 2, -1);
        for (size_t i = 0; i < edges.size(); ++i) {
            size_t slot = hash(edges[i].a, edges[i].b);
            while (slots_[slot] >= 0) slot = (slot + 1) & (slots_.size() - 1);
            slots_[slot] = int32_t(i);
        }
    }

    std::vector<int32_t> slots_;
    int32_t last_a_ = -1, last_b_ = -1, last_ = 0;
};

}  // namespace tfiseg
