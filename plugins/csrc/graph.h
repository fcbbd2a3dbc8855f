// The region graph on the CPU: statistics by runs, edges by pixel pairs, merging in rounds of mutually best pairs.
#pragma once
#include <algorithm>
#include <vector>

#include "merge.h"

namespace tfiseg {

constexpr Region kEmptyRegion = {0, 0, 0, 0, 0, 0, 0, 0, 0, INT64_MAX, INT32_MAX, INT32_MAX, 0, 0};

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
                regions[number - 1].absorb({n, sum_x, n * y, sum_xx, sum_x * y, n * y * y, 0, 0, score_sum, y * w + a, x0, int32_t(y),
                                            x1, int32_t(y) + 1});
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
            edges.push_back({a, b, 0, 0, 0, 0, 0});
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

// Merge regions in rounds: every region names its best edge (largest score; ties: smallest pair), pairs that name each other
// merge, until no score is above 0. Returns for each region the smallest region of its union; regions[that] then holds the sums.
inline std::vector<int32_t> agglomerate(std::vector<Region> &regions, std::vector<Edge> edges, const MergeRule &rule) {
    struct Scored {
        Edge edge;
        double score;
        bool stale;
    };
    std::vector<int32_t> into(regions.size());
    for (size_t i = 0; i < into.size(); ++i) into[i] = int32_t(i);
    std::vector<Scored> live;
    live.reserve(edges.size());
    for (const Edge &e : edges) live.push_back({e, 0.0, true});
    const auto by_pair = [](const Scored &x, const Scored &y) {
        return x.edge.a != y.edge.a ? x.edge.a < y.edge.a : x.edge.b < y.edge.b;
    };
    std::sort(live.begin(), live.end(), by_pair);
    std::vector<int32_t> best(regions.size(), -1);
    std::vector<char> changed(regions.size(), 0);
    for (;;) {
        for (size_t i = 0; i < live.size(); ++i) {
            Scored &s = live[i];
            if (s.stale) {
                s.score = rule.score(s.edge, regions[size_t(s.edge.a)], regions[size_t(s.edge.b)]);
                s.stale = false;
            }
            if (s.score <= 0.0) continue;
            for (int32_t end : {s.edge.a, s.edge.b})  // sorted by pair, so the first of equals is the smallest
                if (best[size_t(end)] < 0 || s.score > live[size_t(best[size_t(end)])].score) best[size_t(end)] = int32_t(i);
        }
        bool merged = false;
        for (size_t i = 0; i < live.size(); ++i) {
            const Edge &e = live[i].edge;
            if (best[size_t(e.a)] != int32_t(i) || best[size_t(e.b)] != int32_t(i)) continue;
            regions[size_t(e.a)].absorb(regions[size_t(e.b)]);
            into[size_t(e.b)] = e.a;
            changed[size_t(e.a)] = 1;
            merged = true;
        }
        if (!merged) break;
        // mutual pairs are disjoint, so `into` of a merged region is a root: one step leads there
        bool out_of_order = false;
        size_t kept = 0;
        for (size_t i = 0; i < live.size(); ++i) {
            Scored s = live[i];
            best[size_t(s.edge.a)] = best[size_t(s.edge.b)] = -1;
            int32_t a = into[size_t(s.edge.a)], b = into[size_t(s.edge.b)];
            if (a == b) continue;
            if (a > b) std::swap(a, b);
            s.stale = changed[size_t(a)] || changed[size_t(b)];
            out_of_order |= a != s.edge.a || b != s.edge.b;
            s.edge.a = a;
            s.edge.b = b;
            live[kept++] = s;
        }
        live.resize(kept);
        std::fill(changed.begin(), changed.end(), 0);
        if (!out_of_order) continue;
        std::sort(live.begin(), live.end(), by_pair);
        kept = 0;
        for (size_t i = 0; i < live.size(); ++i) {
            if (kept && live[kept - 1].edge.a == live[i].edge.a && live[kept - 1].edge.b == live[i].edge.b) {
                live[kept - 1].edge.absorb(live[i].edge);
            } else {
                live[kept++] = live[i];
            }
        }
        live.resize(kept);
    }
    for (size_t i = 0; i < into.size(); ++i) into[i] = into[size_t(into[i])];  // roots are smaller: already final
    return into;
}

}  // namespace tfiseg
