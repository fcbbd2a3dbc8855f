// Third phase on the CPU: basins -> regions with their sums, and edges with their evidence.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu_basins.h"
#include "cpu_picture.h"
#include "graph.h"

namespace tfiseg {

// Give the numbers of a map new ones. Run by run: most runs are background or keep their number, and are only read.
inline void renumber(Team &team, int32_t *map, int32_t h, int32_t w, const std::vector<int32_t> &number) {
    team.run(h, 16, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t y = begin; y < end; ++y) {
            int32_t *row = map + y * w;
            for (int32_t x0 = 0, x1 = 0; x0 < w; x0 = x1) {
                x1 = run_end(row, x0, w);
                const int32_t now = number[size_t(row[x0])];
                if (now != row[x0]) std::fill(row + x0, row + x1, now);
            }
        }
    });
}

class RegionGraph {
  public:
    // Leaves a number of each pixel's region in the picture's map; rank() orders them.
    RegionGraph(Picture &picture, const std::vector<Contact> &contacts) : picture_(picture), h_(picture.h), w_(picture.w) {
        number_roots();
        sum_regions();
        rank_by_first_pixel();
        table_ = EdgeTable(regions.size(), expected_edges(contacts));
        add_contacts(contacts);
        if (picture.affinity && regions.size() > 1) add_affinities();
    }

    // In raster order of their first pixels.
    LargeVector<Region> regions;
    const LargeVector<Edge> &edges() const { return table_.edges; }
    LargeVector<Edge> take_edges() { return std::move(table_.edges); }

    // By a number in the map, from 1, less 1: the place of its region in `regions`.
    const std::vector<int32_t> &rank() const { return rank_; }

    // Leaves ranks + 1 in the map.
    void map_ranks() const {
        std::vector<int32_t> number(rank_.size() + 1, 0);
        for (size_t i = 0; i < rank_.size(); ++i) number[i + 1] = rank_[i] + 1;
        renumber(picture_.team, picture_.map, h_, w_, number);
    }

  private:
    // Pixels [x0, x1) of a row that belong to one region.
    struct Run {
        int32_t x0, x1, region;
    };

    void number_roots() {
        const Picture &p = picture_;
        int32_t count = 0;
        regions.reserve(p.roots.size());
        for (const int32_t r : p.roots)
            if (p.link[r] == r) {
                p.map[r] = ++count;
                regions.push_back(kEmptyRegion);
                if (p.squared) regions.back().peak = p.squared[r];
            }
        for (const int32_t r : p.roots)
            if (p.link[r] != r) p.map[r] = p.map[find_root(p.link, r)];
    }

    // Every block needs sums of its own for all regions: no more blocks than keeps these below the number of pixels.
    void sum_regions() {
        const Picture &p = picture_;
        const int64_t most = std::max<int64_t>(1, p.n / 8 / std::max<int64_t>(1, int64_t(regions.size()))), grain = std::max<int64_t>(16, h_ / most);
        std::vector<LargeVector<Region>> sums(static_cast<size_t>(p.team.blocks_of(h_, grain)));
        p.team.run(h_, grain, [&](int64_t begin, int64_t end, int32_t block) {
            LargeVector<Region> &mine = block ? sums[size_t(block)] : regions;
            if (block) mine.assign(regions.size(), kEmptyRegion);
            for (int32_t y = int32_t(begin); y < end; ++y) {
                map_row(y);
                add_runs(p.map, p.cls, p.fixed_scores, w_, y, y + 1, mine.data());
            }
        });
        for (size_t b = 1; b < sums.size(); ++b) {
            for (size_t k = 0; k < sums[b].size(); ++k) {
                if (!sums[b][k].area) continue;
                regions[k].absorb(sums[b][k]);
                regions[k].class_id = sums[b][k].class_id;
            }
        }
    }

    // Roots hold their number already; what links to them is one step away.
    void map_row(int32_t y) const {
        int32_t *map = picture_.map;
        const int32_t *link = picture_.link;
        int32_t done = 0;
        picture_.for_runs(y, [&](int32_t x0, int32_t x1) {
            std::fill(map + y * w_ + done, map + y * w_ + x0, 0);
            for (int32_t i = y * w_ + x0; i < y * w_ + x1; ++i) put(map + i, peek(map + link[i]));
            done = x1;
        });
        std::fill(map + y * w_ + done, map + (y + 1) * w_, 0);
    }

    // A bit for each pixel puts the first pixels in order, in time that grows with the pixels alone.
    void rank_by_first_pixel() {
        rank_.resize(regions.size());
        std::vector<uint64_t> bits(size_t(picture_.n) / 64 + 1, 0);
        std::vector<int32_t> before(bits.size());
        for (const Region &r : regions) bits[size_t(r.first) >> 6] |= uint64_t(1) << (r.first & 63);
        int32_t count = 0;
        for (size_t k = 0; k < bits.size(); ++k) {
            before[k] = count;
            count += __builtin_popcountll(bits[k]);
        }
        for (size_t k = 0; k < rank_.size(); ++k) {
            const size_t first = size_t(regions[k].first);
            rank_[k] = before[first >> 6] + __builtin_popcountll(bits[first >> 6] & ((uint64_t(1) << (first & 63)) - 1));
        }
        std::vector<int32_t> place(rank_);
        for (size_t k = 0; k < place.size(); ++k)
            while (place[k] != int32_t(k)) {
                const size_t to = size_t(place[k]);
                std::swap(regions[k], regions[to]);
                std::swap(place[k], place[to]);
            }
    }

    // Of pixels that are regions, four have a later neighbor; the reserved memory is not used until an edge needs it.
    size_t expected_edges(const std::vector<Contact> &contacts) const {
        const bool has_pairs = picture_.affinity || needs_contacts(picture_.problem);
        const int32_t channels = picture_.affinity ? std::min(4, picture_.problem.affinity_channels) : 0;  // without a map, any number
        const size_t per_region = has_pairs ? size_t(4 + channels) : 0;
        return std::min(contacts.size(), 4 * regions.size()) + per_region * regions.size();
    }

    // The region of a countable pixel.
    int32_t region_at(int32_t i) const { return rank_[size_t(picture_.map[i] - 1)]; }

    void add_contacts(const std::vector<Contact> &contacts) {
        const Picture &p = picture_;
        if (!p.displacement) {
            for (const Contact &c : contacts) {
                const int32_t i = c.pixel(), j = c.neighbor(w_);
                if (p.map[i] != p.map[j]) add_contact(i, j, c.saddle);
            }
        } else if (needs_contacts(p.problem)) {
            for (int32_t y = 0; y < h_; ++y)
                for (int32_t x = 0; x < w_; ++x)
                    for (int32_t d = 0; d < 4; ++d) add_neighbor(y, x, d);
        }
    }

    void add_neighbor(int32_t y, int32_t x, int32_t direction) {
        const int32_t ny = y + kLaterDy[direction], nx = x + kLaterDx[direction];
        if (ny >= h_ || nx < 0 || nx >= w_) return;
        const int32_t i = y * w_ + x, j = ny * w_ + nx, *map = picture_.map;
        if (map[i] && map[j] && map[i] != map[j] && picture_.cls[i] == picture_.cls[j]) add_contact(i, j, 0);
    }

    void add_contact(int32_t i, int32_t j, int32_t saddle) {
        Edge &e = table_.at(region_at(i), region_at(j));
        e.saddle = std::max<int64_t>(e.saddle, saddle);
        ++e.contact;
        if (picture_.boundary) e.boundary_sum += std::max(to_fixed(picture_.boundary[i]), to_fixed(picture_.boundary[j]));
    }

    // Over runs, not pixels: two rows of the region map are constant between the ends of their runs, and the sum of a row of cells over
    // [x0, x1) is a difference of two of its prefix sums. All integers, so it is the sum over pixels.
    void add_affinities() {
        std::vector<size_t> first;  // of each row's runs
        const std::vector<Run> runs = runs_by_row(first);
        const int32_t stride = picture_.problem.affinity_stride;
        std::vector<int64_t> prefix_sum(static_cast<size_t>(w_) + 1, 0);  // of a row's cells over [0, x)
        for (int32_t k = 0; k < picture_.problem.affinity_channels; ++k) {
            const int32_t dy = picture_.problem.affinity_offsets_yx[2 * k] * stride, dx = picture_.problem.affinity_offsets_yx[2 * k + 1] * stride;
            const float *plane = picture_.affinity + int64_t(k) * picture_.cells_h * picture_.cells_w;
            int32_t summed = -1;  // the row of cells that prefix_sum holds
            for (int32_t y = std::max(0, -dy); y < std::min(h_, h_ - dy); ++y) {
                const Run *a = runs.data() + first[size_t(y)], *a_end = runs.data() + first[size_t(y) + 1];
                const Run *b = runs.data() + first[size_t(y + dy)], *b_end = runs.data() + first[size_t(y + dy) + 1];
                while (a < a_end && b < b_end) {
                    const int32_t x0 = std::max(a->x0, b->x0 - dx), x1 = std::min(a->x1, b->x1 - dx);
                    if (x0 < x1 && a->region != b->region && may_merge(a->region, b->region)) {
                        if (summed != y / stride) {
                            summed = y / stride;
                            sum_cells(plane + summed * picture_.cells_w, stride, prefix_sum);
                        }
                        Edge &e = table_.at(a->region, b->region);
                        e.affinity_sum += prefix_sum[size_t(x1)] - prefix_sum[size_t(x0)];
                        e.affinity_count += x1 - x0;
                    }
                    (a->x1 < b->x1 - dx ? a : b)++;
                }
            }
        }
    }

    // Runs of regions, row by row. first: where each row's runs begin, and the end.
    std::vector<Run> runs_by_row(std::vector<size_t> &first) const {
        std::vector<Run> runs;
        for (int32_t y = 0; y < h_; ++y) {
            first.push_back(runs.size());
            const int32_t *row = picture_.map + y * w_;
            for (int32_t x0 = 0, x1 = 0; x0 < w_; x0 = x1) {
                x1 = run_end(row, x0, w_);
                if (row[x0]) runs.push_back({x0, x1, rank_[size_t(row[x0] - 1)]});
            }
        }
        first.push_back(runs.size());
        return runs;
    }

    bool may_merge(int32_t a, int32_t b) const {
        const Region &one = regions[size_t(a)], &two = regions[size_t(b)];
        return one.class_id == two.class_id && (!picture_.piece || picture_.piece[one.first] == picture_.piece[two.first]);
    }

    void sum_cells(const float *cells, int32_t stride, std::vector<int64_t> &prefix_sum) const {
        int64_t sum = 0;
        for (int32_t cell = 0, x = 0; x < w_; ++cell) {
            const int32_t value = to_fixed(cells[cell]);
            for (int32_t part = 0; part < stride && x < w_; ++part) prefix_sum[size_t(++x)] = sum += value;
        }
    }

    Picture &picture_;
    const int32_t h_, w_;
    std::vector<int32_t> rank_;
    EdgeTable table_{0, 0};
};

}  // namespace tfiseg
