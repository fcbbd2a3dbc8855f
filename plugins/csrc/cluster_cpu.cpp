// DisplacementFieldClustering on the CPU: the launcher of the functors in field.h, merge.h and upsample.h.
//
// Phases: classes -> distances (columns, rows) -> links -> basins and their contacts -> noise merged -> region graph -> merged by
// evidence -> cuts on the boundary -> what it crosses, once more -> numbered -> full resolution. Every phase but the merges runs on all
// threads. Memory: the workspace (11 bytes per grid pixel with a class map, 18 with logits; 24 more with a second look), 8 bytes twice per
// pixel pair that touches across basins, and about 100 per region.
#include <chrono>
#include <cmath>
#include <limits>
#include <new>

#include "agglomeration.h"
#include "check.h"
#include "field.h"
#include "graph.h"
#include "launch.h"
#include "parts_cpu.h"
#include "sharpen.h"
#include "tfiseg.h"
#include "upsample.h"

namespace tfiseg {
namespace {

double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A pixel and one of its later neighbours that lie in different basins: pixel * 4 + direction.
struct Contact {
    int32_t saddle;
    uint32_t pair;
};

// Pixels [x0, x1) of a row that belong to one region.
struct Run {
    int32_t x0, x1, region;
};

constexpr int32_t kContactDy[4] = {0, 1, 1, 1};  // E, SW, S, SE: every pair once
constexpr int32_t kContactDx[4] = {1, -1, 0, 1};

// Arrays carved out of the caller's workspace; nothing is zeroed, every phase writes before it reads.
class Room {
  public:
    Room(void *memory, int64_t bytes) : at_(static_cast<char *>(memory)), left_(bytes) {
        const int64_t skip = (kAlign - int64_t(reinterpret_cast<uintptr_t>(memory) % kAlign)) % kAlign;
        at_ += skip;
        left_ -= skip;
    }

    template <class T>
    T *take(int64_t n) {
        const int64_t bytes = (n * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
        if (bytes > left_) throw std::bad_alloc();  // workspace_bytes() counted wrong
        T *taken = reinterpret_cast<T *>(at_);
        at_ += bytes;
        left_ -= bytes;
        return taken;
    }

    static constexpr int64_t kAlign = 64;

  private:
    char *at_;
    int64_t left_;
};

// One picture of the batch.
class Picture {
  public:
    // piece: regions of different ones don't merge, though they be near; NULL: all may.
    Picture(const tfiseg_problem &p, int32_t index, Team &team, Room room, const int32_t *piece = nullptr)
        : p_(p), team_(team), room_(room), h_(p.height), w_(p.width), n_(int64_t(h_) * w_), piece_(piece) {
        all_things_ = std::all_of(p.things + 1, p.things + 255, [](uint8_t flag) { return flag != 0; });
        const int64_t maps = n_ * index;
        if (p.class_map) class_map_ = p.class_map + maps;
        const auto floats = [](const void *map, int64_t from) { return map ? static_cast<const float *>(map) + from : nullptr; };
        logits_ = floats(p.logits, maps * p.classes);
        displacement_ = floats(p.displacement, maps * 2);
        if (p.boundary && p.boundary_stride > 1) {
            const int64_t cells = ((h_ + p.boundary_stride - 1) / p.boundary_stride) * ((w_ + p.boundary_stride - 1) / p.boundary_stride);
            float *enlarged = room_.take<float>(n_);
            const Enlarge enlarge = {{floats(p.boundary, cells * index), false}, h_, w_, p.boundary_stride, enlarged};
            for (int32_t i = 0; i < int32_t(n_); ++i) enlarge(i);
            boundary_ = enlarged;
        } else {
            boundary_ = floats(p.boundary, maps);
        }
        scores_ = floats(p.scores, maps);
        if (p.affinity) {
            cells_h_ = (h_ + p.affinity_stride - 1) / p.affinity_stride;
            cells_w_ = (w_ + p.affinity_stride - 1) / p.affinity_stride;
            affinity_ = floats(p.affinity, int64_t(index) * p.affinity_channels * cells_h_ * cells_w_);
        }
    }

    // Region map (1..n, 0 = none), regions and edges, before any decision.
    void build(int32_t *region_map) {
        map_ = region_map;
        classes();
        if (displacement_) {
            follow_given();
        } else {
            distances();
            ascend();
            merge_noise();
        }
        number_regions();
        connect();
    }

    // Decide every neck; leaves grid labels in the region map and the instances, in raster order.
    void decide() {
        const std::vector<int32_t> into = merge();
        std::vector<int32_t> roots = roots_of(into);
        const bool sharp = p_.sharpen && roots.size() > 1, united = sharp || p_.part_rule;
        if (united) map_unions(into);
        if (sharp) sharpen(roots);
        if (p_.part_rule) look_again(roots);
        if (!logits_) roots.erase(std::remove_if(roots.begin(), roots.end(), [this](int32_t r) { return regions[size_t(r)].area < p_.min_area; }), roots.end());
        if (roots.size() > size_t(p_.max_instances)) {
            const auto larger = [&](int32_t a, int32_t b) {
                const int64_t area_a = regions[size_t(a)].area, area_b = regions[size_t(b)].area;
                return area_a != area_b ? area_a > area_b : regions[size_t(a)].first < regions[size_t(b)].first;
            };
            std::nth_element(roots.begin(), roots.begin() + p_.max_instances, roots.end(), larger);
            roots.resize(size_t(p_.max_instances));
            std::sort(roots.begin(), roots.end(), [this](int32_t a, int32_t b) { return regions[size_t(a)].first < regions[size_t(b)].first; });
        }
        std::vector<int32_t> of_region(regions.size(), 0), number(regions.size() + 1, 0);
        for (size_t k = 0; k < roots.size(); ++k) {
            of_region[size_t(roots[k])] = int32_t(k) + 1;
            instances.push_back(regions[size_t(roots[k])]);
        }
        for (size_t i = 0; i < regions.size(); ++i) number[i + 1] = of_region[united ? i : size_t(into[size_t(rank_[i])])];
        renumber(map_, h_, w_, number);
    }

    // For each region the smallest of its union, whose sums then lie there.
    std::vector<int32_t> merge() {
        const MergeRule rule = {displacement_ == nullptr, boundary_ != nullptr, affinity_ != nullptr, p_.merge_affinity, p_.split,
                                affinity_ ? p_.evidence_rule : nullptr, p_.evidence_hidden};
        Agglomeration agglomeration(regions, table_.edges, rule, n_);
        std::vector<int32_t> into = agglomeration.run();
        is_stopped_ = is_stopped_ || agglomeration.is_stopped();
        return into;
    }

    // Regions are in raster order of their first pixels, and a union keeps its smallest: so are the roots.
    static std::vector<int32_t> roots_of(const std::vector<int32_t> &into) {
        std::vector<int32_t> roots;
        for (size_t i = 0; i < into.size(); ++i)
            if (into[i] == int32_t(i)) roots.push_back(int32_t(i));
        return roots;
    }

    // Unions + 1 in the map.
    void map_unions(const std::vector<int32_t> &into) {
        std::vector<int32_t> united(rank_.size() + 1, 0);
        for (size_t i = 0; i < rank_.size(); ++i) united[i + 1] = into[size_t(rank_[i])] + 1;
        renumber(map_, h_, w_, united);
    }

    // Move the cuts between unions, which the map holds; leaves their sums in the regions, and the roots in raster order.
    void sharpen(std::vector<int32_t> &roots) {
        const size_t pixels = static_cast<size_t>(n_);
        std::vector<uint8_t> band(pixels, uint8_t(0));
        std::vector<int32_t> held(regions.size(), 0), other(pixels), near(pixels), next_near(pixels), free;
        const auto each = [this](const auto &phase) {
            for (int32_t i = 0; i < int32_t(n_); ++i) phase(i);
        };
        each(MarkBand{h_, w_, p_.sharpen, cls_, map_, band.data()});
        each(HoldFast{map_, band.data(), held.data()});
        const auto append = [&free](int32_t i) { free.push_back(i); };
        each(Release<decltype(append)>{map_, band.data(), held.data(), other.data(), {near.data(), next_near.data()}, append});
        if (free.empty()) return;
        int32_t *maps[2] = {map_, other.data()}, *distance[2] = {near.data(), next_near.data()};
        for (int32_t step = 0; step < 2 * p_.sharpen; ++step) {
            const int32_t now = step & 1, next = 1 - now;
            const Spread<const float *> spread = {h_, w_, cls_, boundary_, regions.data(), maps[now], distance[now], maps[next], distance[next]};
            for (const int32_t i : free) spread(i);
        }
        sum_anew(roots);
    }

    // Sums of the unions that the map holds now; roots: those that have a pixel, in raster order.
    void sum_anew(std::vector<int32_t> &roots) {
        std::vector<Region> sums(regions.size(), kEmptyRegion);
        add_runs(map_, cls_, fixed_scores_, w_, 0, h_, sums.data());
        regions = std::move(sums);
        roots.erase(std::remove_if(roots.begin(), roots.end(), [this](int32_t r) { return !regions[size_t(r)].area; }), roots.end());
        std::sort(roots.begin(), roots.end(), [this](int32_t a, int32_t b) { return regions[size_t(a)].first < regions[size_t(b)].first; });
    }

    // Parts in place of the pieces (unions, which the map holds) that boundaries cross: see parts.h.
    void look_again(std::vector<int32_t> &roots) {
        const std::vector<int32_t> left = left_of_pieces();
        if (std::none_of(roots.begin(), roots.end(), [&](int32_t r) { return is_crossed(regions[size_t(r)].area, left[size_t(r)]); })) return;
        int32_t *piece = room_.take<int32_t>(n_), *part = room_.take<int32_t>(n_);
        uint8_t *inside = room_.take<uint8_t>(n_);
        std::copy_n(map_, n_, piece);
        const Inside look = {{1, h_, w_}, cls_, piece, regions.data(), left.data(), {boundary_, false}, inside};
        team_.run(n_, 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            for (int32_t i = int32_t(begin); i < end; ++i) look(i);
        });

        tfiseg_problem problem = second_look(p_, inside);
        problem.boundary = boundary_;
        problem.boundary_stride = 1;
        problem.affinity = affinity_;
        Picture again(problem, 0, team_, room_, piece);
        again.build(part);
        const std::vector<int32_t> into = again.merge();
        is_stopped_ = is_stopped_ || again.is_stopped_;
        again.map_unions(into);

        const size_t pieces = regions.size();
        std::vector<int32_t> kept(pieces, 0), largest(pieces, 0), number(again.regions.size() + 1, 0);
        std::vector<uint64_t> largest_key(pieces, 0);
        const std::vector<int32_t> parts = roots_of(into);
        const auto piece_of = [&](const Region &r) { return size_t(piece[r.first] - 1); };
        for (const int32_t k : parts) {
            const Region &r = again.regions[size_t(k)];
            if (is_part(r.area, regions[piece_of(r)].area)) ++kept[piece_of(r)];
        }
        for (const int32_t k : parts) {
            const Region r = again.regions[size_t(k)];
            const size_t its = piece_of(r);
            if (kept[its] < 2 || !is_part(r.area, regions[its].area)) continue;
            roots.push_back(int32_t(regions.size()));
            regions.push_back(r);
            number[size_t(k) + 1] = int32_t(regions.size());
            if (size_key(r) < largest_key[its]) continue;
            largest_key[its] = size_key(r);
            largest[its] = int32_t(regions.size());
        }
        if (regions.size() == pieces) return;
        std::vector<int32_t> rest;
        for (int32_t i = 0; i < int32_t(n_); ++i) {
            if (!piece[i] || kept[size_t(piece[i] - 1)] < 2) continue;
            map_[i] = number[size_t(part[i])];
            if (!map_[i]) rest.push_back(i);
        }
        grow(h_, w_, piece, boundary_, regions.data(), rest, map_, room_.take<int32_t>(n_));
        for (const int32_t i : rest)
            if (!map_[i]) map_[i] = largest[size_t(piece[i] - 1)];
        sum_anew(roots);
    }

    // Pixels of each piece that are on no boundary, by region.
    std::vector<int32_t> left_of_pieces() const {
        std::vector<int32_t> left(regions.size(), 0);
        for (int32_t y = 0; y < h_; ++y) {
            const int32_t *row = map_ + y * w_;
            const float *boundary = boundary_ + int64_t(y) * w_;
            for (int32_t x0 = 0, x1 = 0; x0 < w_; x0 = x1) {
                x1 = run_end(row, x0, w_);
                if (row[x0]) left[size_t(row[x0] - 1)] += int32_t(std::count_if(boundary + x0, boundary + x1, [](float b) { return b <= kCalm; }));
            }
        }
        return left;
    }

    // Run by run: most runs are background or keep their number, and are only read.
    void renumber(int32_t *map, int32_t h, int32_t w, const std::vector<int32_t> &number) const {
        team_.run(h, 16, [&](int64_t begin, int64_t end, int32_t) {
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

    // For the region graph: the map with the regions' final numbers.
    void number_map() const {
        std::vector<int32_t> number(rank_.size() + 1, 0);
        for (size_t i = 0; i < rank_.size(); ++i) number[i + 1] = rank_[i] + 1;
        renumber(map_, h_, w_, number);
    }

    // Labels and classes at the output size; instances are numbered and measured anew there. Returns the classes.
    const uint8_t *upsample(int32_t *label_map, uint8_t *semantic_map) {
        const int32_t out_h = p_.out_height, out_w = p_.out_width;
        const FullResolution<> full = {semantic_, map_, logits_, p_.classes, h_, w_};
        std::vector<GridPosition> columns;
        for (int32_t x = 0; x < out_w; ++x) columns.push_back(grid_position(x, out_w, w_));
        if (!semantic_map) semantic_map = room_.take<uint8_t>(int64_t(out_h) * out_w);
        team_.run(out_h, 16, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t y = begin; y < end; ++y) {
                const GridPosition row = grid_position(int32_t(y), out_h, h_);
                for (int32_t x = 0; x < out_w; ++x) {
                    const int64_t i = y * out_w + x;
                    full(row, columns[size_t(x)], semantic_map[i], label_map[i]);
                }
            }
        });
        const std::vector<Region> grid = std::move(instances);
        std::vector<Region> full_size(grid.size(), kEmptyRegion);
        add_runs(label_map, nullptr, nullptr, out_w, 0, out_h, full_size.data());
        std::vector<int32_t> order;
        for (size_t k = 0; k < grid.size(); ++k)
            if (full_size[k].area >= std::max(1, p_.min_area)) order.push_back(int32_t(k));  // shrinking can leave one without a pixel
        std::sort(order.begin(), order.end(),
                  [&](int32_t a, int32_t b) { return full_size[size_t(a)].first < full_size[size_t(b)].first; });
        std::vector<int32_t> number(grid.size() + 1, 0);
        instances.clear();
        for (size_t k = 0; k < order.size(); ++k) {
            Region r = full_size[size_t(order[k])];
            const Region &g = grid[size_t(order[k])];
            r.class_id = g.class_id;
            r.score_sum = carried_score(g.score_sum, g.area, r.area);
            number[size_t(order[k]) + 1] = int32_t(k) + 1;
            instances.push_back(r);
        }
        renumber(label_map, out_h, out_w, number);
        return semantic_map;
    }

    const uint8_t *copy_semantic(uint8_t *semantic_map) const {
        if (semantic_map) std::copy_n(class_map_, n_, semantic_map);
        return class_map_;
    }

    void write_table(float *table) const {
        for (const Region &r : instances) {
            write_row(r, has_scores(), is_stopped_, p_.out_height, p_.out_width, table);
            table += TFISEG_TABLE_COLUMNS;
        }
    }

    std::vector<Region> regions, instances;
    const std::vector<Edge> &edges() const { return table_.edges; }

  private:
    bool has_scores() const { return scores_ || logits_; }

    void classes() {
        cls_ = room_.take<uint8_t>(n_);
        if (logits_) semantic_ = room_.take<uint8_t>(n_);
        if (has_scores()) fixed_scores_ = room_.take<uint16_t>(n_);
        team_.run(n_, 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            if (logits_) argmax(begin, end);
            countable(begin, end);
            if (scores_) {
                for (int64_t i = begin; i < end; ++i) fixed_scores_[i] = uint16_t(to_fixed(scores_[i]));
            } else if (logits_) {
                softmax(begin, end);
            }
        });
    }

    void countable(int64_t begin, int64_t end) {
        const uint8_t *from = logits_ ? semantic_ : class_map_;
        uint8_t *to = cls_;
        if (all_things_) {  // the default, and a loop that vectorises
            for (int64_t i = begin; i < end; ++i) to[i] = from[i] == 255 ? uint8_t(0) : from[i];
        } else {
            for (int64_t i = begin; i < end; ++i) to[i] = from[i] != 255 && p_.things[from[i]] ? from[i] : uint8_t(0);
        }
    }

    void argmax(int64_t begin, int64_t end) {
        std::vector<float> best(logits_ + begin, logits_ + end);
        uint8_t *winner = semantic_ + begin;
        std::fill_n(winner, end - begin, uint8_t(0));
        for (int32_t k = 1; k < p_.classes; ++k) {
            const float *plane = logits_ + k * n_ + begin;
            for (int64_t i = 0; i < end - begin; ++i) {
                const bool higher = plane[i] > best[size_t(i)];
                best[size_t(i)] = higher ? plane[i] : best[size_t(i)];
                winner[i] = higher ? uint8_t(k) : winner[i];
            }
        }
    }

    // Probability of the winning class; scores may differ between builds in the last bit, decisions never read them.
    void softmax(int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (!cls_[i]) {
                fixed_scores_[i] = 0;
                continue;
            }
            const float top = logits_[semantic_[i] * n_ + i];
            float sum = 0.0f;
            for (int32_t k = 0; k < p_.classes; ++k) sum += std::exp(logits_[k * n_ + i] - top);
            fixed_scores_[i] = uint16_t(to_fixed(1.0f / sum));
        }
    }

    void distances() {
        squared_ = room_.take<int32_t>(n_);
        int16_t *column = room_.take<int16_t>(n_);
        const ColumnDistance columns = {cls_, column, h_, w_};
        team_.run(w_, 64, [&](int64_t begin, int64_t end, int32_t) { column_run(columns, int32_t(begin), int32_t(end)); });
        const RowDistance rows = {cls_, column, squared_, h_, w_};
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            std::vector<int32_t> scratch(3 * (size_t(w_) + 2));
            for (int64_t y = begin; y < end; ++y) rows(int32_t(y), scratch.data());
        });
    }

    TFISEG_CLONES static void column_run(const ColumnDistance columns, int32_t begin, int32_t end) { columns(begin, end); }

    void ascend() {
        link_ = room_.take<int32_t>(n_);
        const Ascent ascent = {cls_, squared_, link_, h_, w_};
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            for (int32_t y = int32_t(begin); y < end; ++y) {
                const bool framed = y > 0 && y < h_ - 1;
                for_runs(y, [&](int32_t x0, int32_t x1) {
                    const int32_t a = std::max(x0, 1), b = std::min(x1, w_ - 1), row = y * w_;
                    if (framed) ascend_run(ascent, row + a, row + b);
                    for (int32_t x = x0; x < x1; ++x)
                        if (!framed || x < a || x >= b || !Ascent::is_inside(squared_[row + x])) ascent.outline(row + x, y, x);
                });
            }
        });
        // every countable pixel then links straight to its summit
        roots_ = select([&](int32_t y, int32_t x0, int32_t x1, std::vector<int32_t> &out) {
            for (int32_t i = y * w_ + x0; i < y * w_ + x1; ++i)
                if (find_and_compress(link_, i) == i) out.push_back(i);
        });
    }

    TFISEG_CLONES static void ascend_run(const Ascent ascent, int32_t begin, int32_t end) {
        for (int32_t i = begin; i < end; ++i) ascent.inside(i);
    }

    // Calls f(y, x0, x1, block) for each run of countable pixels, on all threads.
    template <class F>
    void each_run(const F &f) const {
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t block) {
            for (int32_t y = int32_t(begin); y < end; ++y) for_runs(y, [&](int32_t x0, int32_t x1) { f(y, x0, x1, block); });
        });
    }

    // Calls f(x0, x1) for each run of countable pixels in a row.
    template <class F>
    void for_runs(int32_t y, const F &f) const {
        const uint8_t *row = cls_ + int64_t(y) * w_;
        for (int64_t x0 = 0, x1 = 0; next_run(row, w_, x0, x1); x0 = x1) f(int32_t(x0), int32_t(x1));
    }

    // Components of the graph that joins every pixel with its target and touching centres. Most targets are centres, and there are
    // few of those: centres are united first, then most other pixels take the root of theirs, and only the rest is united, too.
    void follow_given() {
        link_ = room_.take<int32_t>(n_);
        uint8_t *centre = room_.take<uint8_t>(n_);  // class of a centre, 0 elsewhere
        std::fill_n(centre, n_, uint8_t(0));
        const GivenTarget<> target = {cls_, displacement_, displacement_ + n_, h_, w_};
        const float radius = float(p_.centre_radius), radius_squared = radius * radius;
        int32_t *link = link_;
        const std::vector<int32_t> centres = select([&](int32_t y, int32_t x0, int32_t x1, std::vector<int32_t> &out) {
            aim_run(target, radius_squared, centre, link, y, x0, x1);
            const uint8_t *row = centre + int64_t(y) * w_;
            for (int64_t a = x0, b = x0; next_run(row, x1, a, b); a = b)
                for (int32_t i = y * w_ + int32_t(a); i < y * w_ + b; ++i) {
                    link[i] = i;
                    out.push_back(i);
                }
        });
        each_of(centres, [&](int32_t i) {
            const int32_t y = i / w_, x = i % w_, t = target(y, x);
            if (centre[t]) unite(link, i, t);
            for (int32_t d = 0; d < 4; ++d) {
                const int32_t ny = y + kContactDy[d], nx = x + kContactDx[d];
                if (ny >= h_ || nx < 0 || nx >= w_) continue;
                const int32_t j = ny * w_ + nx;
                if (cls_[j] == cls_[i] && centre[j]) unite(link, i, j);
            }
        });
        each_of(centres, [&](int32_t i) { find_and_compress(link, i); });
        // a centre's link is its root, which is a centre, too: this leaves it as it is
        const std::vector<int32_t> rest = select([&](int32_t y, int32_t x0, int32_t x1, std::vector<int32_t> &out) {
            for (int32_t i = y * w_ + x0; i < y * w_ + x1; ++i) {
                const int32_t t = link[i];
                if (centre[t] == cls_[i]) {
                    put(link + i, peek(link + t));
                } else {
                    link[i] = i;
                    out.push_back(i);
                }
            }
        });
        each_of(rest, [&](int32_t i) { unite(link, i, target(i / w_, i % w_)); });
        each_of(centres, [&](int32_t i) {
            const int32_t t = target(i / w_, i % w_);
            if (!centre[t]) unite(link, i, t);
        });
        each_of(rest, [&](int32_t i) { find_and_compress(link, i); });
        // whatever was a root at some time: number_regions() looks for the last ones from here
        roots_ = centres;
        roots_.insert(roots_.end(), rest.begin(), rest.end());
    }

    // What f(y, x0, x1, out) appends to `out` for each run of countable pixels, in raster order.
    template <class T = int32_t, class F>
    std::vector<T> select(const F &f) const {
        std::vector<std::vector<T>> found(static_cast<size_t>(team_.blocks_of(h_, 16)));
        each_run([&](int32_t y, int32_t x0, int32_t x1, int32_t block) { f(y, x0, x1, found[size_t(block)]); });
        std::vector<T> all = std::move(found[0]);
        for (size_t b = 1; b < found.size(); ++b) all.insert(all.end(), found[b].begin(), found[b].end());
        return all;
    }

    template <class F>
    void each_of(const std::vector<int32_t> &pixels, const F &f) const {
        team_.run(int64_t(pixels.size()), 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t k = begin; k < end; ++k) f(pixels[size_t(k)]);
        });
    }

    // Centres and first targets (as links) of a run.
    TFISEG_CLONES static void aim_run(const GivenTarget<> target, float radius_squared, uint8_t *centre, int32_t *link, int32_t y,
                                      int32_t x0, int32_t x1) {
        const int32_t row = y * target.w;
        for (int32_t x = x0; x < x1; ++x) centre[row + x] = target.is_centre(row + x, radius_squared) ? target.cls[row + x] : uint8_t(0);
        for (int32_t x = x0; x < x1; ++x) link[row + x] = target.first(y, x);
    }

    // All contacts between basins, highest saddle first, ties by pixel and direction.
    std::vector<Contact> contacts() const {
        const uint8_t *cls = cls_;
        const int32_t *link = link_, *squared = squared_;
        std::vector<Contact> all = select<Contact>([&](int32_t y, int32_t x0, int32_t x1, std::vector<Contact> &out) {
            for (int32_t x = x0; x < x1; ++x) {
                const int32_t i = y * w_ + x;
                if (y + 1 < h_ && x > x0 && x + 1 < x1 && link[i] == link[i + w_] && link[i] == link[i + w_ - 1] &&
                    link[i] == link[i + w_ + 1] && link[i] == link[i + 1])
                    continue;  // deep in a basin, as most are
                for (int32_t d = 0; d < 4; ++d) {
                    const int32_t ny = y + kContactDy[d], nx = x + kContactDx[d];
                    if (ny >= h_ || nx < 0 || nx >= w_) continue;
                    const int32_t j = ny * w_ + nx;
                    if (cls[i] == cls[j] && link[i] != link[j])
                        out.push_back({std::min(squared[i], squared[j]), uint32_t(i) * 4u + uint32_t(d)});
                }
            }
        });
        sort_by_saddle(all);
        return all;
    }

    // Stable radix sort: the contacts come in raster order, so equal saddles keep it.
    static void sort_by_saddle(std::vector<Contact> &contacts) {
        constexpr int32_t kBits = 9, kBuckets = 1 << kBits;
        int32_t highest = 0;
        for (const Contact &c : contacts) highest = std::max(highest, c.saddle);
        std::vector<Contact> other(contacts.size());
        for (int32_t shift = 0; shift < 31 && (highest >> shift) > 0; shift += kBits) {
            std::vector<size_t> start(kBuckets + 1, 0);
            for (const Contact &c : contacts) ++start[size_t(kBuckets - ((c.saddle >> shift) & (kBuckets - 1)))];
            for (int32_t b = 1; b <= kBuckets; ++b) start[size_t(b)] += start[size_t(b) - 1];
            for (const Contact &c : contacts) other[start[size_t(kBuckets - 1 - ((c.saddle >> shift) & (kBuckets - 1)))]++] = c;
            contacts.swap(other);
        }
    }

    std::pair<int32_t, int32_t> ends(const Contact &c) const {
        const int32_t i = int32_t(c.pair >> 2), d = int32_t(c.pair & 3);
        return {i, i + kContactDy[d] * w_ + kContactDx[d]};
    }

    // Persistence with the raster's own height as threshold: highest saddles first, the lower summit goes under if it is noise.
    void merge_noise() {
        std::vector<Contact> all = contacts();
        int32_t *link = link_;
        size_t kept = 0;
        for (const Contact &c : all) {
            const auto [i, j] = ends(c);
            int32_t a = find_and_compress(link, i), b = find_and_compress(link, j);
            if (a == b) continue;
            if (squared_[a] < squared_[b] || (squared_[a] == squared_[b] && a > b)) std::swap(a, b);
            if (is_noise(c.saddle, squared_[b])) {
                link[b] = a;
            } else {
                all[kept++] = c;
            }
        }
        all.resize(kept);
        contacts_ = std::move(all);
    }

    // Region map, and the regions' sums; numbered by first pixel in raster order, whatever pixel their roots are.
    void number_regions() {
        int32_t *link = link_;
        int32_t count = 0;
        for (const int32_t r : roots_)
            if (link[r] == r) {
                map_[r] = ++count;
                regions.push_back(kEmptyRegion);
                if (squared_) regions.back().peak = squared_[r];
            }
        for (const int32_t r : roots_)
            if (link[r] != r) map_[r] = map_[find_root(link, r)];
        // every block needs sums of its own for all regions: no more blocks than keeps that below the pixels' number
        const int64_t most = std::max<int64_t>(1, n_ / 8 / std::max<int64_t>(1, count)), grain = std::max<int64_t>(16, h_ / most);
        std::vector<std::vector<Region>> part(static_cast<size_t>(team_.blocks_of(h_, grain)));
        team_.run(h_, grain, [&](int64_t begin, int64_t end, int32_t block) {
            std::vector<Region> &mine = block ? part[size_t(block)] : regions;
            if (block) mine.assign(regions.size(), kEmptyRegion);
            for (int32_t y = int32_t(begin); y < end; ++y) {
                int32_t done = 0;
                for_runs(y, [&](int32_t x0, int32_t x1) {
                    std::fill(map_ + y * w_ + done, map_ + y * w_ + x0, 0);
                    // roots hold their number already; what links to them is one step away
                    for (int32_t i = y * w_ + x0; i < y * w_ + x1; ++i) put(map_ + i, peek(map_ + link[i]));
                    done = x1;
                });
                std::fill(map_ + y * w_ + done, map_ + (y + 1) * w_, 0);
                add_runs(map_, cls_, fixed_scores_, w_, y, y + 1, mine.data());
            }
        });
        for (size_t b = 1; b < part.size(); ++b) {
            for (size_t k = 0; k < part[b].size(); ++k) {
                if (!part[b][k].area) continue;
                regions[k].absorb(part[b][k]);
                regions[k].class_id = part[b][k].class_id;
            }
        }
        rank_by_first();
    }

    // Regions in raster order of their first pixels; rank_[k] is the place of the region that the map calls k + 1.
    void rank_by_first() {
        std::vector<int32_t> order(regions.size());
        for (size_t k = 0; k < order.size(); ++k) order[k] = int32_t(k);
        std::sort(order.begin(), order.end(),
                  [this](int32_t a, int32_t b) { return regions[size_t(a)].first < regions[size_t(b)].first; });
        std::vector<Region> sorted;
        sorted.reserve(regions.size());
        rank_.resize(regions.size());
        for (size_t k = 0; k < order.size(); ++k) {
            sorted.push_back(regions[size_t(order[k])]);
            rank_[size_t(order[k])] = int32_t(k);
        }
        regions = std::move(sorted);
    }

    // The region of a countable pixel.
    int32_t region_at(int32_t i) const { return rank_[size_t(map_[i] - 1)]; }

    void connect() {
        if (!displacement_) {
            for (const Contact &c : contacts_) {
                const auto [i, j] = ends(c);
                if (map_[i] != map_[j]) touch(i, j, c.saddle);
            }
        } else if (needs_contacts(p_)) {
            for (int32_t y = 0; y < h_; ++y)
                for (int32_t x = 0; x < w_; ++x)
                    for (int32_t d = 0; d < 4; ++d) pair(y, x, kContactDy[d], kContactDx[d], [this](int32_t i, int32_t j) { touch(i, j, 0); });
        }
        if (affinity_ && regions.size() > 1) add_affinities();
    }

    void touch(int32_t i, int32_t j, int32_t saddle) {
        Edge &e = table_.at(region_at(i), region_at(j));
        e.saddle = std::max<int64_t>(e.saddle, saddle);
        ++e.contact;
        if (boundary_) e.boundary_sum += std::max(to_fixed(boundary_[i]), to_fixed(boundary_[j]));
    }

    template <class F>
    void pair(int32_t y, int32_t x, int32_t dy, int32_t dx, const F &f) {
        const int32_t ny = y + dy, nx = x + dx;
        if (ny < 0 || ny >= h_ || nx < 0 || nx >= w_) return;
        const int32_t i = y * w_ + x, j = ny * w_ + nx;
        if (map_[i] && map_[j] && map_[i] != map_[j] && cls_[i] == cls_[j]) f(i, j);
    }

    // Over runs, not pixels: two rows of the region map are constant between the ends of their runs, and the sum of a row of cells over
    // [x0, x1) is a difference of two of its prefix sums. All integers, so it is the sum over pixels.
    void add_affinities() {
        std::vector<size_t> first;  // of each row's runs
        const std::vector<Run> runs = runs_by_row(first);
        const int32_t stride = p_.affinity_stride;
        std::vector<int64_t> until(static_cast<size_t>(w_) + 1, 0);  // sum of the row's cells over [0, x)
        for (int32_t k = 0; k < p_.affinity_channels; ++k) {
            const int32_t dy = p_.affinity_offsets_yx[2 * k] * stride, dx = p_.affinity_offsets_yx[2 * k + 1] * stride;
            const float *plane = affinity_ + int64_t(k) * cells_h_ * cells_w_;
            int32_t summed = -1;  // the row of cells that `until` holds
            for (int32_t y = std::max(0, -dy); y < std::min(h_, h_ - dy); ++y) {
                const Run *a = runs.data() + first[size_t(y)], *a_end = runs.data() + first[size_t(y) + 1];
                const Run *b = runs.data() + first[size_t(y + dy)], *b_end = runs.data() + first[size_t(y + dy) + 1];
                while (a < a_end && b < b_end) {
                    const int32_t x0 = std::max(a->x0, b->x0 - dx), x1 = std::min(a->x1, b->x1 - dx);
                    if (x0 < x1 && a->region != b->region && may_merge(a->region, b->region)) {
                        if (summed != y / stride) {
                            summed = y / stride;
                            sum_cells(plane + summed * cells_w_, stride, until);
                        }
                        Edge &e = table_.at(a->region, b->region);
                        e.affinity_sum += until[size_t(x1)] - until[size_t(x0)];
                        e.affinity_count += x1 - x0;
                    }
                    (a->x1 < b->x1 - dx ? a : b)++;
                }
            }
        }
    }

    // Runs of regions, row by row. first: where each row's begin, and the end.
    std::vector<Run> runs_by_row(std::vector<size_t> &first) const {
        std::vector<Run> runs;
        for (int32_t y = 0; y < h_; ++y) {
            first.push_back(runs.size());
            const int32_t *row = map_ + y * w_;
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
        return one.class_id == two.class_id && (!piece_ || piece_[one.first] == piece_[two.first]);
    }

    void sum_cells(const float *cells, int32_t stride, std::vector<int64_t> &until) const {
        int64_t sum = 0;
        for (int32_t cell = 0, x = 0; x < w_; ++cell) {
            const int32_t value = to_fixed(cells[cell]);
            for (int32_t part = 0; part < stride && x < w_; ++part) until[size_t(++x)] = sum += value;
        }
    }

    const tfiseg_problem &p_;
    Team &team_;
    Room room_;
    const int32_t h_, w_;
    const int64_t n_;
    const int32_t *piece_;
    const uint8_t *class_map_ = nullptr;
    const float *logits_ = nullptr, *displacement_ = nullptr, *boundary_ = nullptr, *scores_ = nullptr, *affinity_ = nullptr;
    bool all_things_ = false, is_stopped_ = false;
    int32_t cells_h_ = 0, cells_w_ = 0;
    int32_t *map_ = nullptr;
    uint8_t *cls_ = nullptr, *semantic_ = nullptr;
    uint16_t *fixed_scores_ = nullptr;
    int32_t *squared_ = nullptr, *link_ = nullptr;
    std::vector<int32_t> roots_, rank_;
    std::vector<Contact> contacts_;
    EdgeTable table_;
};

// No phase splits into more blocks than this: further threads would only be started and joined.
int32_t useful_threads(const tfiseg_problem &p) {
    const int32_t pixels = int32_t(int64_t(p.height) * p.width >> 12);
    return std::max(1, std::min(p.threads, std::max({p.height / 16, p.width / 64, p.out_height / 16, pixels})));
}

}  // namespace

int64_t cpu_workspace_bytes(const tfiseg_problem &p) {
    const int64_t grid = int64_t(p.height) * p.width, out = int64_t(p.out_height) * p.out_width;
    int64_t bytes = grid * (1 + 4);                         // classes, links
    bytes += p.displacement ? grid : grid * (2 + 4);        // centres; or column and squared distances
    if (p.scores || p.logits) bytes += grid * 2;            // scores
    if (p.boundary && p.boundary_stride > 1) bytes += grid * 4;  // boundary
    if (p.logits) bytes += grid * (1 + 4) + out;            // grid classes, grid labels, classes at the output size
    if (p.part_rule) bytes += grid * (3 * 4 + 1) + cpu_workspace_bytes(second_look(p, p.things));  // pieces, parts, distances, classes
    return bytes + 16 * Room::kAlign;
}

}  // namespace tfiseg

extern "C" {

int32_t tfiseg_cluster_cpu(const tfiseg_problem *problem, tfiseg_result *result) {
    using namespace tfiseg;
    if (const int32_t status = check(problem, result, TFISEG_ON_CPU)) return status;
    try {
        const tfiseg_problem &p = *problem;
        Team team(useful_threads(p));
        void *workspace = result->workspace;
        result->cluster_ms = result->upsample_ms = 0.0;
        const int64_t out_n = int64_t(p.out_height) * p.out_width;
        for (int32_t k = 0; k < p.batch; ++k) {
            const double began = now_ms();
            Room room(workspace, result->workspace_bytes);
            int32_t *grid = p.logits ? room.take<int32_t>(int64_t(p.height) * p.width) : nullptr;
            Picture picture(p, k, team, room);
            int32_t *label_map = result->label_map + k * out_n;
            uint8_t *semantic_map = result->semantic_map ? result->semantic_map + k * out_n : nullptr;
            const uint8_t *semantic;
            int32_t region_count;
            double clustered;
            if (p.logits) {
                picture.build(grid);
                region_count = int32_t(picture.regions.size());
                picture.decide();
                clustered = now_ms();
                semantic = picture.upsample(label_map, semantic_map);
            } else {
                picture.build(label_map);
                region_count = int32_t(picture.regions.size());
                picture.decide();
                clustered = now_ms();
                semantic = picture.copy_semantic(semantic_map);
            }
            if (result->semantic_map_32) std::copy_n(semantic, out_n, result->semantic_map_32 + k * out_n);
            result->count[k] = int32_t(picture.instances.size());
            if (result->regions) result->regions[k] = region_count;
            picture.write_table(result->table + int64_t(k) * p.max_instances * TFISEG_TABLE_COLUMNS);
            result->cluster_ms += clustered - began;
            result->upsample_ms += now_ms() - clustered;
        }
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    } catch (...) {
        return TFISEG_INTERNAL_ERROR;
    }
    return TFISEG_OK;
}

int32_t tfiseg_region_graph(const tfiseg_problem *problem, int32_t *region_map, int64_t *regions, int64_t capacity_regions,
                            int64_t *edges, int64_t capacity_edges, int64_t *counts) {
    using namespace tfiseg;
    if (const int32_t status = check(problem, TFISEG_ON_CPU)) return status;
    if (const int32_t status = check_offsets(*problem)) return status;
    if (!region_map || !regions || !edges || !counts) return TFISEG_MISSING_POINTER;
    try {
        Team team(useful_threads(*problem));
        std::vector<char> workspace(size_t(tfiseg_workspace_size(problem, TFISEG_ON_CPU)));
        Picture picture(*problem, 0, team, Room(workspace.data(), int64_t(workspace.size())));
        picture.build(region_map);
        picture.number_map();
        counts[0] = int64_t(picture.regions.size());
        counts[1] = int64_t(picture.edges().size());
        for (int64_t k = 0; k < std::min(counts[0], capacity_regions); ++k) {
            const Region &r = picture.regions[size_t(k)];
            const int64_t row[8] = {r.area, r.sum_x, r.sum_y, r.sum_xx, r.sum_xy, r.sum_yy, r.peak, r.class_id};
            std::copy_n(row, 8, regions + k * 8);
        }
        for (int64_t k = 0; k < std::min(counts[1], capacity_edges); ++k) {
            const Edge &e = picture.edges()[size_t(k)];
            const int64_t row[7] = {e.a, e.b, e.saddle, e.contact, e.boundary_sum, e.affinity_sum, e.affinity_count};
            std::copy_n(row, 7, edges + k * 7);
        }
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    } catch (...) {
        return TFISEG_INTERNAL_ERROR;
    }
    return TFISEG_OK;
}

}  // extern "C"
