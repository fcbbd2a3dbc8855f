// The region graph on the CPU: statistics by runs, edges by pixel pairs, merging in rounds of mutually best pairs.
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

// Merging of regions in rounds: every region names its best edge (largest score; ties: smallest pair), pairs that name each other
// merge, until no score is above 0. A round looks only at what the last one changed, so that many rounds of few merges (smooth
// evidence) cost no more than few rounds of many.
class Agglomeration {
  public:
    Agglomeration(std::vector<Region> &regions, const std::vector<Edge> &edges, const MergeRule &rule)
        : regions_(regions), rule_(rule), into_(regions.size()), best_(regions.size(), -1), mark_(regions.size(), -1), edges_of_(regions.size()) {
        for (size_t r = 0; r < into_.size(); ++r) into_[r] = int32_t(r);
        links_.reserve(edges.size());
        for (const Edge &e : edges) {
            edges_of_[size_t(e.a)].push_back(int32_t(links_.size()));
            edges_of_[size_t(e.b)].push_back(int32_t(links_.size()));
            links_.push_back({e, rule_.score(e, regions_[size_t(e.a)], regions_[size_t(e.b)])});
        }
    }

    // For each region the smallest region of its union; regions[that] then holds the sums.
    std::vector<int32_t> run() {
        std::vector<int32_t> fresh(into_);  // regions whose best edge may have changed
        while (!fresh.empty()) {
            for (const int32_t r : fresh) choose(r);
            std::vector<int32_t> merged = merge_mutual(fresh);
            fresh.clear();
            for (const int32_t r : merged) {
                for (const int32_t k : edges_of_[size_t(r)]) {
                    Link &link = links_[size_t(k)];
                    link.score = rule_.score(link.edge, regions_[size_t(link.edge.a)], regions_[size_t(link.edge.b)]);
                    fresh.push_back(link.edge.a == r ? link.edge.b : link.edge.a);
                }
                fresh.push_back(r);
            }
            std::sort(fresh.begin(), fresh.end());
            fresh.erase(std::unique(fresh.begin(), fresh.end()), fresh.end());
        }
        for (size_t r = 0; r < into_.size(); ++r) into_[r] = into_[size_t(into_[r])];  // roots are smaller: already final
        return into_;
    }

  private:
    struct Link {
        Edge edge;  // ends are regions that still stand
        double score;
    };

    bool better(int32_t k, int32_t than) const {
        const Link &x = links_[size_t(k)], &y = links_[size_t(than)];
        if (x.score != y.score) return x.score > y.score;
        return x.edge.a != y.edge.a ? x.edge.a < y.edge.a : x.edge.b < y.edge.b;
    }

    void choose(int32_t r) {
        int32_t best = -1;
        for (const int32_t k : edges_of_[size_t(r)])
            if (links_[size_t(k)].score > 0.0 && (best < 0 || better(k, best))) best = k;
        best_[size_t(r)] = best;
    }

    // A new mutual pair has an end whose choice is fresh. Returns the regions that took another in.
    std::vector<int32_t> merge_mutual(const std::vector<int32_t> &fresh) {
        std::vector<int32_t> pairs, merged;
        for (const int32_t r : fresh) {
            const int32_t k = best_[size_t(r)];
            if (k < 0) continue;
            const Edge &e = links_[size_t(k)].edge;
            if (best_[size_t(e.a)] == k && best_[size_t(e.b)] == k) pairs.push_back(k);
        }
        std::sort(pairs.begin(), pairs.end());
        pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
        for (const int32_t k : pairs) merged.push_back(merge(k));
        return merged;
    }

    // Take region b of a link into region a; links of both to one neighbour become one.
    int32_t merge(int32_t k) {
        const int32_t a = links_[size_t(k)].edge.a, b = links_[size_t(k)].edge.b;
        regions_[size_t(a)].absorb(regions_[size_t(b)]);
        into_[size_t(b)] = a;
        std::vector<int32_t> &of_a = edges_of_[size_t(a)];
        of_a.erase(std::find(of_a.begin(), of_a.end(), k));
        for (const int32_t m : of_a) mark_[size_t(other_end(m, a))] = m;
        for (const int32_t m : edges_of_[size_t(b)]) {
            if (m == k) continue;
            const int32_t o = other_end(m, b), twin = mark_[size_t(o)];
            if (twin >= 0) {
                links_[size_t(twin)].edge.absorb(links_[size_t(m)].edge);
                std::vector<int32_t> &of_o = edges_of_[size_t(o)];
                of_o.erase(std::find(of_o.begin(), of_o.end(), m));
            } else {
                links_[size_t(m)].edge.a = std::min(a, o);
                links_[size_t(m)].edge.b = std::max(a, o);
                of_a.push_back(m);
            }
        }
        for (const int32_t m : of_a) mark_[size_t(other_end(m, a))] = -1;
        edges_of_[size_t(b)].clear();
        return a;
    }

    int32_t other_end(int32_t k, int32_t r) const {
        const Edge &e = links_[size_t(k)].edge;
        return e.a == r ? e.b : e.a;
    }

    std::vector<Region> &regions_;
    const MergeRule &rule_;
    std::vector<Link> links_;
    std::vector<int32_t> into_, best_, mark_;  // mark_: scratch, -1 between merges
    std::vector<std::vector<int32_t>> edges_of_;
};

}  // namespace tfiseg
