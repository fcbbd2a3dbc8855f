// DisplacementFieldClustering on the CPU: the launcher of the functors in field.h, merge.h and upsample.h.
//
// Phases: classes -> distances (columns, rows) -> links -> basins and their contacts -> noise merged -> region graph -> merged by
// evidence -> numbered -> full resolution. Every phase but the two merges runs on all threads.
// Memory per grid pixel: 10 bytes of fixed buffers, and 16 per pixel that touches another basin.
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <new>

#include "field.h"
#include "graph.h"
#include "launch.h"
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

constexpr int32_t kContactDy[4] = {0, 1, 1, 1};
constexpr int32_t kContactDx[4] = {1, -1, 0, 1};

template <class T>
std::unique_ptr<T[]> buffer(int64_t n) {
    return std::unique_ptr<T[]>(new T[size_t(n)]);  // not zeroed: every phase writes before it reads
}

// One picture of the batch.
class Picture {
  public:
    Picture(const tfiseg_problem &p, int32_t index, Team &team) : p_(p), team_(team), h_(p.height), w_(p.width), n_(int64_t(h_) * w_) {
        const int64_t maps = n_ * index;
        if (p.class_map) class_map_ = p.class_map + maps;
        if (p.logits) logits_ = p.logits + maps * p.classes;
        if (p.displacement) displacement_ = p.displacement + maps * 2;
        if (p.boundary) boundary_ = p.boundary + maps;
        if (p.scores) scores_ = p.scores + maps;
        if (p.affinity) {
            cells_h_ = (h_ + p.affinity_stride - 1) / p.affinity_stride;
            cells_w_ = (w_ + p.affinity_stride - 1) / p.affinity_stride;
            affinity_ = p.affinity + int64_t(index) * p.affinity_channels * cells_h_ * cells_w_;
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
        const MergeRule rule = {displacement_ == nullptr, boundary_ != nullptr, affinity_ != nullptr, p_.merge_affinity, p_.split};
        const std::vector<int32_t> into = agglomerate(regions, std::move(table_.edges), rule);
        std::vector<int32_t> roots;
        for (size_t i = 0; i < into.size(); ++i)
            if (into[i] == int32_t(i) && regions[i].area >= p_.min_area) roots.push_back(int32_t(i));
        const auto by_first = [this](int32_t a, int32_t b) { return regions[size_t(a)].first < regions[size_t(b)].first; };
        if (roots.size() > size_t(p_.max_instances)) {
            const auto larger = [&](int32_t a, int32_t b) {
                const int64_t area_a = regions[size_t(a)].area, area_b = regions[size_t(b)].area;
                return area_a != area_b ? area_a > area_b : by_first(a, b);
            };
            std::nth_element(roots.begin(), roots.begin() + p_.max_instances, roots.end(), larger);
            roots.resize(size_t(p_.max_instances));
        }
        std::sort(roots.begin(), roots.end(), by_first);
        std::vector<int32_t> number(regions.size() + 1, 0);
        for (size_t k = 0; k < roots.size(); ++k) {
            number[size_t(roots[k]) + 1] = int32_t(k) + 1;
            instances.push_back(regions[size_t(roots[k])]);
        }
        for (size_t i = 0; i < into.size(); ++i) number[i + 1] = number[size_t(into[i]) + 1];
        team_.run(n_, 1 << 14, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i) map_[i] = number[size_t(map_[i])];
        });
    }

    // Labels and classes at the output size; instances are numbered and measured anew there.
    void upsample(int32_t *label_map, uint8_t *semantic_map) {
        const int32_t out_h = p_.out_height, out_w = p_.out_width;
        const FullResolution full = {semantic_.get(), map_, logits_, p_.classes, h_, w_};
        std::vector<GridPosition> columns;
        for (int32_t x = 0; x < out_w; ++x) columns.push_back(grid_position(x, out_w, w_));
        std::unique_ptr<uint8_t[]> own;
        if (!semantic_map) {
            own = buffer<uint8_t>(int64_t(out_h) * out_w);
            semantic_map = own.get();
        }
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
            if (full_size[k].area) order.push_back(int32_t(k));  // shrinking can leave an instance without a pixel
        std::sort(order.begin(), order.end(),
                  [&](int32_t a, int32_t b) { return full_size[size_t(a)].first < full_size[size_t(b)].first; });
        std::vector<int32_t> number(grid.size() + 1, 0);
        instances.clear();
        for (size_t k = 0; k < order.size(); ++k) {
            Region r = full_size[size_t(order[k])];
            const Region &g = grid[size_t(order[k])];
            r.class_id = g.class_id;
            r.score_sum = g.score_sum * r.area / g.area;  // the mean over the grid's pixels, carried over
            number[size_t(order[k]) + 1] = int32_t(k) + 1;
            instances.push_back(r);
        }
        team_.run(int64_t(out_h) * out_w, 1 << 14, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i) label_map[i] = number[size_t(label_map[i])];
        });
    }

    void copy_semantic(uint8_t *semantic_map) const {
        if (semantic_map) std::copy_n(class_map_ ? class_map_ : semantic_.get(), n_, semantic_map);
    }

    void write_table(float *table) const {
        const int32_t width = p_.out_width, height = p_.out_height;
        for (const Region &r : instances) {
            const double n = double(r.area);
            const bool edge = r.x0 == 0 || r.y0 == 0 || r.x1 == width || r.y1 == height;
            const double row[TFISEG_TABLE_COLUMNS] = {
                double(r.class_id), has_scores() ? double(r.score_sum) / (n * kFixedPoint) : 1.0,
                double(r.x0), double(r.y0), double(r.x1), double(r.y1), n,
                double(r.sum_x) / n, double(r.sum_y) / n, edge ? double(TFISEG_FLAG_TOUCHES_EDGE) : 0.0};
            for (double v : row) *table++ = float(v);
        }
    }

    std::vector<Region> regions, instances;
    const std::vector<Edge> &edges() const { return table_.edges; }

  private:
    bool has_scores() const { return scores_ || logits_; }

    void classes() {
        cls_ = buffer<uint8_t>(n_);
        if (logits_) semantic_ = buffer<uint8_t>(n_);
        if (has_scores()) fixed_scores_ = buffer<uint16_t>(n_);
        team_.run(n_, 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            if (logits_) argmax(begin, end);
            const uint8_t *from = logits_ ? semantic_.get() : class_map_;
            for (int64_t i = begin; i < end; ++i) cls_[size_t(i)] = p_.things[from[i]] ? from[i] : uint8_t(0);
            if (scores_) {
                for (int64_t i = begin; i < end; ++i) fixed_scores_[size_t(i)] = uint16_t(to_fixed(scores_[i]));
            } else if (logits_) {
                softmax(begin, end);
            }
        });
    }

    void argmax(int64_t begin, int64_t end) {
        std::vector<float> best(logits_ + begin, logits_ + end);
        uint8_t *winner = semantic_.get() + begin;
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
            if (!cls_[size_t(i)]) {
                fixed_scores_[size_t(i)] = 0;
                continue;
            }
            const float top = logits_[semantic_[size_t(i)] * n_ + i];
            float sum = 0.0f;
            for (int32_t k = 0; k < p_.classes; ++k) sum += std::exp(logits_[k * n_ + i] - top);
            fixed_scores_[size_t(i)] = uint16_t(to_fixed(1.0f / sum));
        }
    }

    void distances() {
        squared_ = buffer<int32_t>(n_);
        const auto column = buffer<uint16_t>(n_);
        const ColumnDistance columns = {cls_.get(), column.get(), h_, w_};
        team_.run(w_, 64, [&](int64_t begin, int64_t end, int32_t) { columns(int32_t(begin), int32_t(end)); });
        const RowDistance rows = {cls_.get(), column.get(), squared_.get(), h_, w_};
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            std::vector<int32_t> site(size_t(w_) + 2), from(size_t(w_) + 2);
            for (int64_t y = begin; y < end; ++y) rows(int32_t(y), site.data(), from.data());
        });
    }

    void ascend() {
        link_ = buffer<int32_t>(n_);
        const Ascent ascent = {cls_.get(), squared_.get(), link_.get(), h_, w_};
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            for (int32_t y = int32_t(begin); y < end; ++y) {
                const bool inner = y > 0 && y < h_ - 1;
                ascent.border(y, 0);
                if (inner) {
                    for (int32_t x = 1; x < w_ - 1; ++x) ascent.interior(y * w_ + x);
                } else {
                    for (int32_t x = 1; x < w_ - 1; ++x) ascent.border(y, x);
                }
                if (w_ > 1) ascent.border(y, w_ - 1);
            }
        });
        compress();
    }

    void compress() {
        team_.run(n_, 1 << 14, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i)
                if (cls_[size_t(i)]) find_and_compress(link_.get(), int32_t(i));
        });
    }

    void follow_given() {
        link_ = buffer<int32_t>(n_);
        const GivenTarget target = {cls_.get(), displacement_, displacement_ + n_, h_, w_};
        const float radius = float(p_.centre_radius), radius_squared = radius * radius;
        team_.run(n_, 1 << 14, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i) link_[size_t(i)] = int32_t(i);
        });
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            for (int32_t y = int32_t(begin); y < end; ++y)
                for (int32_t x = 0; x < w_; ++x) {
                    const int32_t i = y * w_ + x;
                    if (!cls_[size_t(i)]) continue;
                    unite(link_.get(), i, target(y, x));
                    if (!target.is_centre(i, radius_squared)) continue;
                    for (int32_t d = 0; d < 4; ++d) {
                        const int32_t ny = y + kContactDy[d], nx = x + kContactDx[d];
                        if (ny >= h_ || nx < 0 || nx >= w_) continue;
                        const int32_t j = ny * w_ + nx;
                        if (cls_[size_t(j)] == cls_[size_t(i)] && target.is_centre(j, radius_squared)) unite(link_.get(), i, j);
                    }
                }
        });
        compress();
    }

    // All contacts between basins, highest saddle first, ties by pixel and direction.
    std::vector<Contact> contacts() {
        const int32_t blocks = team_.blocks_of(h_, 16);
        std::vector<std::vector<Contact>> found(static_cast<size_t>(blocks));
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t block) {
            std::vector<Contact> &out = found[size_t(block)];
            for (int32_t y = int32_t(begin); y < end; ++y) add_contacts(y, out);
        });
        std::vector<Contact> all = std::move(found[0]);
        for (size_t b = 1; b < found.size(); ++b) all.insert(all.end(), found[b].begin(), found[b].end());
        sort_by_saddle(all);
        return all;
    }

    void add_contacts(int32_t y, std::vector<Contact> &out) const {
        const uint8_t *cls = cls_.get();
        const int32_t *link = link_.get(), *squared = squared_.get();
        for (int32_t x = 0; x < w_; ++x) {
            const int32_t i = y * w_ + x;
            if (!cls[i]) continue;
            for (int32_t d = 0; d < 4; ++d) {
                const int32_t ny = y + kContactDy[d], nx = x + kContactDx[d];
                if (ny >= h_ || nx < 0 || nx >= w_) continue;
                const int32_t j = ny * w_ + nx;
                if (link[i] != link[j] && cls[i] == cls[j])
                    out.push_back({std::min(squared[i], squared[j]), uint32_t(i) * 4u + uint32_t(d)});
            }
        }
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
        int32_t *link = link_.get();
        size_t kept = 0;
        for (const Contact &c : all) {
            const auto [i, j] = ends(c);
            int32_t a = find_and_compress(link, i), b = find_and_compress(link, j);
            if (a == b) continue;
            if (squared_[size_t(a)] < squared_[size_t(b)] || (squared_[size_t(a)] == squared_[size_t(b)] && a > b)) std::swap(a, b);
            if (is_noise(c.saddle, squared_[size_t(b)])) {
                link[b] = a;
            } else {
                all[kept++] = c;
            }
        }
        all.resize(kept);
        contacts_ = std::move(all);
    }

    // Region map, numbered by summit index, and the regions' sums.
    void number_regions() {
        int32_t *link = link_.get();
        int32_t count = 0;
        for (int64_t i = 0; i < n_; ++i) {
            if (cls_[size_t(i)] && link[i] == i) {
                map_[i] = ++count;
                regions.push_back(kEmptyRegion);
                if (squared_) regions.back().peak = squared_[size_t(i)];
            }
        }
        team_.run(n_, 1 << 14, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i) {
                if (!cls_[size_t(i)]) {
                    map_[i] = 0;
                } else {
                    const int32_t root = find_root(link, int32_t(i));
                    if (root != i) map_[i] = map_[root];
                }
            }
        });
        const int32_t blocks = team_.blocks_of(h_, 16);
        std::vector<std::vector<Region>> part(static_cast<size_t>(blocks));
        team_.run(h_, 16, [&](int64_t begin, int64_t end, int32_t block) {
            std::vector<Region> &mine = block ? part[size_t(block)] : regions;
            if (block) mine.assign(regions.size(), kEmptyRegion);
            add_runs(map_, cls_.get(), fixed_scores_.get(), w_, begin, end, mine.data());
        });
        for (size_t b = 1; b < part.size(); ++b) {
            for (size_t k = 0; k < part[b].size(); ++k) {
                if (!part[b][k].area) continue;
                regions[k].absorb(part[b][k]);
                regions[k].class_id = part[b][k].class_id;
            }
        }
    }

    void connect() {
        if (!displacement_) {
            for (const Contact &c : contacts_) {
                const auto [i, j] = ends(c);
                if (map_[i] != map_[j]) touch(i, j, c.saddle);
            }
        } else if (boundary_) {
            for (int32_t y = 0; y < h_; ++y)
                for (int32_t x = 0; x < w_; ++x)
                    for (int32_t d = 0; d < 4; ++d) pair(y, x, kContactDy[d], kContactDx[d], [this](int32_t i, int32_t j) { touch(i, j, 0); });
        }
        if (affinity_) add_affinities();
    }

    void touch(int32_t i, int32_t j, int32_t saddle) {
        Edge &e = table_.at(map_[i] - 1, map_[j] - 1);
        e.saddle = std::max<int64_t>(e.saddle, saddle);
        ++e.contact;
        if (boundary_) e.boundary_sum += to_fixed(std::max(boundary_[i], boundary_[j]));
    }

    template <class F>
    void pair(int32_t y, int32_t x, int32_t dy, int32_t dx, const F &f) {
        const int32_t ny = y + dy, nx = x + dx;
        if (ny < 0 || ny >= h_ || nx < 0 || nx >= w_) return;
        const int32_t i = y * w_ + x, j = ny * w_ + nx;
        if (map_[i] && map_[j] && map_[i] != map_[j] && cls_[size_t(i)] == cls_[size_t(j)]) f(i, j);
    }

    void add_affinities() {
        const int32_t stride = p_.affinity_stride;
        for (int32_t k = 0; k < p_.affinity_channels; ++k) {
            const int32_t dy = p_.affinity_offsets_yx[2 * k] * stride, dx = p_.affinity_offsets_yx[2 * k + 1] * stride;
            const float *plane = affinity_ + int64_t(k) * cells_h_ * cells_w_;
            for (int32_t y = 0; y < h_; ++y)
                for (int32_t x = 0; x < w_; ++x)
                    pair(y, x, dy, dx, [&](int32_t i, int32_t j) {
                        Edge &e = table_.at(map_[i] - 1, map_[j] - 1);
                        e.affinity_sum += to_fixed(plane[(y / stride) * cells_w_ + x / stride]);
                        ++e.affinity_count;
                    });
        }
    }

    const tfiseg_problem &p_;
    Team &team_;
    const int32_t h_, w_;
    const int64_t n_;
    const uint8_t *class_map_ = nullptr;
    const float *logits_ = nullptr, *displacement_ = nullptr, *boundary_ = nullptr, *scores_ = nullptr, *affinity_ = nullptr;
    int32_t cells_h_ = 0, cells_w_ = 0;
    int32_t *map_ = nullptr;
    std::unique_ptr<uint8_t[]> cls_, semantic_;
    std::unique_ptr<uint16_t[]> fixed_scores_;
    std::unique_ptr<int32_t[]> squared_, link_;
    std::vector<Contact> contacts_;
    EdgeTable table_;
};

int32_t check(const tfiseg_problem *p) {
    if (!p || p->struct_size != sizeof(tfiseg_problem)) return TFISEG_BAD_STRUCT_SIZE;
    const auto side = [](int32_t s) { return s >= 1 && s <= TFISEG_MAX_SIDE; };
    if (p->batch < 1 || !side(p->height) || !side(p->width) || !side(p->out_height) || !side(p->out_width)) return TFISEG_BAD_SHAPE;
    if (!p->class_map == !p->logits || !p->things || !p->split) return TFISEG_MISSING_POINTER;
    if (p->class_map && (p->out_height != p->height || p->out_width != p->width)) return TFISEG_BAD_SHAPE;
    if (p->logits && (p->classes < 2 || p->classes > 255)) return TFISEG_BAD_SHAPE;
    if (p->affinity && (!p->affinity_offsets_yx || p->affinity_channels < 1 || p->affinity_stride < 1)) return TFISEG_BAD_PARAMETER;
    if (p->max_instances < 1 || p->max_instances > TFISEG_MAX_INSTANCES || p->threads < 1) return TFISEG_BAD_PARAMETER;
    return TFISEG_OK;
}

}  // namespace
}  // namespace tfiseg

extern "C" {

int32_t tfiseg_api_version(void) { return TFISEG_API_VERSION; }

const char *tfiseg_status_string(int32_t status) {
    switch (status) {
        case TFISEG_OK: return "ok";
        case TFISEG_BAD_STRUCT_SIZE: return "struct_size differs: caller and library were built from different versions of tfiseg.h";
        case TFISEG_BAD_SHAPE: return "a shape is out of range: sides 1..4096, classes 2..255, and with a class map the output has its size";
        case TFISEG_MISSING_POINTER: return "give things, split, and exactly one of class_map and logits";
        case TFISEG_OUT_OF_MEMORY: return "out of memory";
        case TFISEG_BAD_PARAMETER: return "a parameter is out of range: max_instances 1..65535, threads >= 1, affinity with offsets and stride";
        default: return "unknown status";
    }
}

int32_t tfiseg_cluster_cpu(const tfiseg_problem *problem, tfiseg_result *result) {
    using namespace tfiseg;
    if (const int32_t status = check(problem)) return status;
    if (!result || result->struct_size != sizeof(tfiseg_result)) return TFISEG_BAD_STRUCT_SIZE;
    if (!result->label_map || !result->count || !result->table) return TFISEG_MISSING_POINTER;
    try {
        const tfiseg_problem &p = *problem;
        Team team(p.threads);
        result->cluster_ms = result->upsample_ms = 0.0;
        const int64_t out_n = int64_t(p.out_height) * p.out_width;
        for (int32_t k = 0; k < p.batch; ++k) {
            const double began = now_ms();
            Picture picture(p, k, team);
            int32_t *label_map = result->label_map + k * out_n;
            uint8_t *semantic_map = result->semantic_map ? result->semantic_map + k * out_n : nullptr;
            double clustered;
            if (p.logits) {
                const auto grid = buffer<int32_t>(int64_t(p.height) * p.width);
                picture.build(grid.get());
                picture.decide();
                clustered = now_ms();
                picture.upsample(label_map, semantic_map);
            } else {
                picture.build(label_map);
                picture.decide();
                clustered = now_ms();
                picture.copy_semantic(semantic_map);
            }
            result->count[k] = int32_t(picture.instances.size());
            picture.write_table(result->table + int64_t(k) * p.max_instances * TFISEG_TABLE_COLUMNS);
            result->cluster_ms += clustered - began;
            result->upsample_ms += now_ms() - clustered;
        }
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    }
    return TFISEG_OK;
}

int32_t tfiseg_region_graph(const tfiseg_problem *problem, int32_t *region_map, int64_t *regions, int64_t capacity_regions,
                            int64_t *edges, int64_t capacity_edges, int64_t *counts) {
    using namespace tfiseg;
    if (const int32_t status = check(problem)) return status;
    if (!region_map || !regions || !edges || !counts) return TFISEG_MISSING_POINTER;
    try {
        Team team(problem->threads);
        Picture picture(*problem, 0, team);
        picture.build(region_map);
        counts[0] = int64_t(picture.regions.size());
        counts[1] = int64_t(picture.edges().size());
        for (int64_t k = 0; k < std::min(counts[0], capacity_regions); ++k) {
            const Region &r = picture.regions[size_t(k)];
            const int64_t row[8] = {r.area, r.sum_x, r.sum_y, r.sum_xx, r.sum_xy, r.sum_yy, r.peak, r.class_id};
            std::copy_n(row, 8, regions + k * 8);
        }
        for (int64_t k = 0; k < std::min(counts[1], capacity_edges); ++k) {
            const Edge &e = picture.edges()[size_t(k)];
            const int64_t row[4] = {e.a, e.b, e.saddle, e.contact};
            std::copy_n(row, 4, edges + k * 4);
        }
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    }
    return TFISEG_OK;
}

}  // extern "C"
