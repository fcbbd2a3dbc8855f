// Fourth phase on the CPU: regions merge to unions; their cuts move onto the boundary; a second pass cuts those that a boundary crosses.
#pragma once
#include <algorithm>
#include <iterator>
#include <vector>

#include "agglomeration.h"
#include "cpu_classes.h"
#include "cpu_region_graph.h"
#include "parts_cpu.h"
#include "sharpen.h"

namespace tfiseg {

// Regions and edges, before any decision.
inline RegionGraph build_region_graph(Picture &picture, int32_t *map) {
    picture.map = map;
    ClassPhase(picture).run();
    std::vector<Contact> contacts;
    if (picture.displacement) {
        GivenBasins(picture).run();
    } else {
        contacts = GeometricBasins(picture).run();
    }
    return RegionGraph(picture, contacts);
}

class Unions {
  public:
    // Leaves numbers of unions, from 1, in the picture's map, or those of the graph where no later step reads them.
    Unions(Picture &picture, RegionGraph &graph) : regions(std::move(graph.regions)), picture_(picture), rank_(graph.rank()) { merge(graph.take_edges()); }

    // Decide everything; leaves labels in the map and returns the instances in raster order of their first pixels.
    LargeVector<Region> run() {
        const tfiseg_problem &problem = picture_.problem;
        std::vector<int32_t> roots = this->roots();
        const bool is_sharpened = problem.sharpen && roots.size() > 1, is_mapped = is_sharpened || problem.part_rule;
        if (is_mapped) map_unions();
        if (is_sharpened) sharpen(roots);
        if (problem.part_rule) run_second_pass(roots);
        if (!picture_.logits) erase(roots, [&](const Region &r) { return r.area < problem.min_area; });
        keep_largest(roots, size_t(problem.max_instances));
        std::vector<int32_t> label(regions.size(), 0), number(regions.size() + 1, 0);
        LargeVector<Region> instances;
        for (size_t k = 0; k < roots.size(); ++k) {
            label[size_t(roots[k])] = int32_t(k) + 1;
            instances.push_back(regions[size_t(roots[k])]);
        }
        for (size_t i = 0; i < regions.size(); ++i) number[i + 1] = label[is_mapped ? i : size_t(parent_[size_t(rank_[i])])];
        renumber(picture_.team, picture_.map, picture_.h, picture_.w, number);
        return instances;
    }

    // Regions are in raster order of their first pixels, and a union keeps its smallest: so are the roots.
    std::vector<int32_t> roots() const {
        std::vector<int32_t> roots;
        for (size_t i = 0; i < parent_.size(); ++i)
            if (parent_[i] == int32_t(i)) roots.push_back(int32_t(i));
        return roots;
    }

    // Leaves unions + 1 in the map.
    void map_unions() {
        std::vector<int32_t> number(rank_.size() + 1, 0);
        for (size_t i = 0; i < rank_.size(); ++i) number[i + 1] = parent_[size_t(rank_[i])] + 1;
        renumber(picture_.team, picture_.map, picture_.h, picture_.w, number);
    }

    bool is_stopped() const { return is_stopped_; }  // merging stopped at its budget

    LargeVector<Region> regions;  // a union's sums lie at its root

  private:
    void merge(LargeVector<Edge> edges) {
        const tfiseg_problem &problem = picture_.problem;
        MergeRule rule = {};
        rule.geometric = picture_.displacement == nullptr;
        rule.with_boundary = picture_.boundary != nullptr;
        rule.with_affinity = picture_.affinity != nullptr;
        rule.merge_affinity = problem.merge_affinity;
        rule.split = problem.split;
        rule.evidence = picture_.affinity ? problem.evidence_rule : nullptr;
        rule.evidence_hidden = problem.evidence_hidden;
        const int64_t pairs = picture_.n * (picture_.affinity ? problem.affinity_channels : int64_t(std::size(kLaterDy)));
        Agglomeration agglomeration(regions, edges, rule, picture_.n, pairs);
        parent_ = agglomeration.run();
        is_stopped_ = agglomeration.is_stopped();
    }

    bool is_before(int32_t a, int32_t b) const { return regions[size_t(a)].first < regions[size_t(b)].first; }

    template <class Condition>
    void erase(std::vector<int32_t> &roots, const Condition &is_unwanted) const {
        roots.erase(std::remove_if(roots.begin(), roots.end(), [&](int32_t r) { return is_unwanted(regions[size_t(r)]); }), roots.end());
    }

    void keep_largest(std::vector<int32_t> &roots, size_t most) const {
        if (roots.size() <= most) return;
        const auto is_larger = [&](int32_t a, int32_t b) {
            const int64_t area_a = regions[size_t(a)].area, area_b = regions[size_t(b)].area;
            return area_a != area_b ? area_a > area_b : is_before(a, b);
        };
        std::nth_element(roots.begin(), roots.begin() + std::ptrdiff_t(most), roots.end(), is_larger);
        roots.resize(most);
        std::sort(roots.begin(), roots.end(), [this](int32_t a, int32_t b) { return is_before(a, b); });
    }

    // Move the cuts between unions, which the map holds; leaves their sums in the regions, and the roots in raster order.
    void sharpen(std::vector<int32_t> &roots) {
        const Picture &p = picture_;
        const int32_t width = p.problem.sharpen;
        const size_t pixels = static_cast<size_t>(p.n);
        std::vector<uint8_t> band(pixels, uint8_t(0));
        std::vector<int32_t> has_core(regions.size(), 0), other(pixels), distance(pixels), next_distance(pixels), free;
        const auto each = [&](const auto &phase) {
            for (int32_t i = 0; i < int32_t(p.n); ++i) phase(i);
        };
        each(MarkBand{p.h, p.w, width, p.cls, p.map, band.data()});
        each(FindCores{p.map, band.data(), has_core.data()});
        const auto append = [&free](int32_t i) { free.push_back(i); };
        each(ReleaseBand<decltype(append)>{p.map, band.data(), has_core.data(), other.data(), {distance.data(), next_distance.data()}, append});
        if (free.empty()) return;
        int32_t *maps[2] = {p.map, other.data()}, *distances[2] = {distance.data(), next_distance.data()};
        for (int32_t step = 0; step < 2 * width; ++step) {
            const int32_t now = step & 1, next = 1 - now;
            SpreadLabels<const float *> spread = {};
            spread.h = p.h;
            spread.w = p.w;
            spread.kind = p.cls;
            spread.boundary = p.boundary;
            spread.regions = regions.data();
            spread.map = maps[now];
            spread.distance = distances[now];
            spread.next_map = maps[next];
            spread.next_distance = distances[next];
            for (const int32_t i : free) spread(i);
        }
        sum_unions(roots);
    }

    // Sum the unions that the map holds now; roots: those that have a pixel, in raster order.
    void sum_unions(std::vector<int32_t> &roots) {
        LargeVector<Region> sums(regions.size(), kEmptyRegion);
        add_runs(picture_.map, picture_.cls, picture_.fixed_scores, picture_.w, 0, picture_.h, sums.data());
        regions = std::move(sums);
        erase(roots, [](const Region &r) { return r.area == 0; });
        std::sort(roots.begin(), roots.end(), [this](int32_t a, int32_t b) { return is_before(a, b); });
    }

    // Cut the pieces (unions, which the map holds) that boundaries cross into parts: see parts.h.
    void run_second_pass(std::vector<int32_t> &roots) {
        Picture &p = picture_;
        const std::vector<int32_t> interior = interior_areas();
        if (std::none_of(roots.begin(), roots.end(), [&](int32_t r) { return is_crossed(regions[size_t(r)].area, interior[size_t(r)]); })) return;
        int32_t *piece = p.arena.take<int32_t>(p.n), *part = p.arena.take<int32_t>(p.n);
        uint8_t *inside = p.arena.take<uint8_t>(p.n);
        std::copy_n(p.map, p.n, piece);
        find_interior(piece, interior, inside);

        tfiseg_problem problem = second_pass_problem(p.problem, inside);
        problem.boundary = p.boundary;
        problem.affinity = p.affinity;
        Picture second(problem, 0, p.team, p.arena, piece);
        RegionGraph graph = build_region_graph(second, part);
        Unions parts(second, graph);
        parts.map_unions();
        is_stopped_ = is_stopped_ || parts.is_stopped();

        std::vector<int32_t> part_count(regions.size(), 0), largest;
        const std::vector<int32_t> number = create_parts(parts, piece, roots, part_count, largest);
        if (largest.empty()) return;
        std::vector<int32_t> rest;
        for (int32_t i = 0; i < int32_t(p.n); ++i) {
            if (!piece[i] || part_count[size_t(piece[i] - 1)] < 2) continue;
            p.map[i] = number[size_t(part[i])];
            if (!p.map[i]) rest.push_back(i);
        }
        grow_parts(p.h, p.w, piece, p.boundary, regions.data(), rest, p.map, second.arena.take<int32_t>(p.n));
        for (const int32_t i : rest)
            if (!p.map[i]) p.map[i] = largest[size_t(piece[i] - 1)];
        sum_unions(roots);
    }

    // Pixels of each piece that are on no boundary, by region.
    std::vector<int32_t> interior_areas() const {
        const Picture &p = picture_;
        std::vector<int32_t> areas(regions.size(), 0);
        for (int32_t y = 0; y < p.h; ++y) {
            const int32_t *row = p.map + y * p.w;
            const float *boundary = p.boundary + int64_t(y) * p.w;
            for (int32_t x0 = 0, x1 = 0; x0 < p.w; x0 = x1) {
                x1 = run_end(row, x0, p.w);
                if (row[x0]) areas[size_t(row[x0] - 1)] += int32_t(std::count_if(boundary + x0, boundary + x1, [](float b) { return b <= kBoundaryThreshold; }));
            }
        }
        return areas;
    }

    void find_interior(const int32_t *piece, const std::vector<int32_t> &interior, uint8_t *inside) const {
        const Picture &p = picture_;
        FindInterior phase = {};
        phase.grid = {1, p.h, p.w};
        phase.cls = p.cls;
        phase.piece = piece;
        phase.pieces = regions.data();
        phase.interior_area = interior.data();
        phase.boundary = {p.boundary, false};
        phase.inside = inside;
        p.team.run(p.n, 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            for (int32_t i = int32_t(begin); i < end; ++i) phase(i);
        });
    }

    // Append the parts of pieces that have two or more to the regions and roots. part_count: out, of each piece; largest: out, by piece its
    // largest part's number, or empty if no piece is cut. Returns the number, from 1, by union + 1 of the second pass; 0 = none.
    std::vector<int32_t> create_parts(const Unions &parts, const int32_t *piece, std::vector<int32_t> &roots, std::vector<int32_t> &part_count,
                                      std::vector<int32_t> &largest) {
        const size_t pieces = regions.size();
        std::vector<int32_t> number(parts.regions.size() + 1, 0);
        std::vector<uint64_t> largest_key(pieces, 0);
        const std::vector<int32_t> all = parts.roots();
        const auto piece_of = [&](const Region &r) { return size_t(piece[r.first] - 1); };
        for (const int32_t k : all) {
            const Region &r = parts.regions[size_t(k)];
            if (is_part(r.area, regions[piece_of(r)].area)) ++part_count[piece_of(r)];
        }
        for (const int32_t k : all) {
            const Region r = parts.regions[size_t(k)];
            const size_t its = piece_of(r);
            if (part_count[its] < 2 || !is_part(r.area, regions[its].area)) continue;
            roots.push_back(int32_t(regions.size()));
            regions.push_back(r);
            number[size_t(k) + 1] = int32_t(regions.size());
            largest.resize(pieces, 0);
            if (size_key(r) < largest_key[its]) continue;
            largest_key[its] = size_key(r);
            largest[its] = int32_t(regions.size());
        }
        return number;
    }

    Picture &picture_;
    const std::vector<int32_t> &rank_;
    std::vector<int32_t> parent_;
    bool is_stopped_ = false;
};

}  // namespace tfiseg
