// The region graph on the CPU: sums of regions by runs, edges by pixel pairs.
#pragma once
#include <algorithm>
#include <vector>

#include "large_vector.h"
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

// Edges by their two regions. The edges from a region to later ones form a list; those of a region with many are in an open-addressing
// table. Most pairs come along the rows of the picture, and so do their lists in memory, even if every pixel is a region.
class EdgeTable {
  public:
    // expected: number of edges; more or fewer are possible.
    EdgeTable(size_t regions, size_t expected) : lists_(regions) {
        edges.reserve(expected);
        entries_.reserve(expected);
    }

    Edge &at(int32_t a, int32_t b) {
        if (a > b) std::swap(a, b);
        if (a != last_a_ || b != last_b_) {
            last_ = find_or_create(a, b);
            last_a_ = a;
            last_b_ = b;
        }
        return edges[size_t(last_)];
    }

    LargeVector<Edge> edges;

  private:
    static constexpr int32_t kLongest = 16;

    struct List {
        int32_t first = -1, size = 0;  // entry; of more than kLongest, in the table
    };

    // Of the edge with the same number.
    struct Entry {
        int32_t b, next;
    };

    int32_t find_or_create(int32_t a, int32_t b) {
        List &list = lists_[size_t(a)];
        if (list.size > kLongest) return find_or_create_in_table(a, b);
        for (int32_t k = list.first; k >= 0; k = entries_[size_t(k)].next)
            if (entries_[size_t(k)].b == b) return k;
        if (++list.size > kLongest) {
            for (int32_t k = list.first; k >= 0; k = entries_[size_t(k)].next) enter(k);
            return find_or_create_in_table(a, b);
        }
        entries_.push_back({b, list.first});
        return list.first = create(a, b);
    }

    int32_t create(int32_t a, int32_t b) {
        edges.emplace_back();
        edges.back().a = a;
        edges.back().b = b;
        return int32_t(edges.size()) - 1;
    }

    int32_t find_or_create_in_table(int32_t a, int32_t b) {
        if (!slots_.empty()) {
            const int32_t k = slots_[slot_of(a, b)];
            if (k >= 0) return k;
        }
        entries_.push_back({b, -1});
        const int32_t k = create(a, b);
        enter(k);
        return k;
    }

    void enter(int32_t k) {
        if (2 * (entered_ + 1) > slots_.size()) grow();
        slots_[slot_of(edges[size_t(k)].a, edges[size_t(k)].b)] = k;
        ++entered_;
    }

    // Where a pair is, or the free slot where it may go. Eight neighboring regions have neighboring slots, which share a cache line.
    size_t slot_of(int32_t a, int32_t b) const {
        const uint64_t key = (uint64_t(uint32_t(a)) << 32 | uint32_t(b >> 3)) * 0x9E3779B97F4A7C15ull;
        size_t slot = (size_t(key >> 32) << 3 | size_t(b & 7)) & (slots_.size() - 1);
        while (slots_[slot] >= 0 && (edges[size_t(slots_[slot])].a != a || edges[size_t(slots_[slot])].b != b)) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    void grow() {
        LargeVector<int32_t> old(slots_.empty() ? 1024 : slots_.size() * 2, -1);
        old.swap(slots_);
        for (const int32_t k : old)
            if (k >= 0) slots_[slot_of(edges[size_t(k)].a, edges[size_t(k)].b)] = k;
    }

    LargeVector<List> lists_;
    LargeVector<Entry> entries_;
    LargeVector<int32_t> slots_;  // edges, -1: free
    size_t entered_ = 0;
    int32_t last_a_ = -1, last_b_ = -1, last_ = 0;
};

}  // namespace tfiseg
