// Second phase on the CPU: classes -> basins. GeometricBasins finds them from shape, GivenBasins from a displacement field.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu_picture.h"

namespace tfiseg {

constexpr int32_t kLaterDy[4] = {0, 1, 1, 1};  // neighbors E, SW, S, SE: every pair once
constexpr int32_t kLaterDx[4] = {1, -1, 0, 1};

// A pixel and one of its later neighbors that lie in different basins.
struct Contact {
    int32_t saddle;
    uint32_t pair;  // pixel * 4 + direction

    int32_t pixel() const { return int32_t(pair >> 2); }
    int32_t neighbor(int32_t w) const { return pixel() + kLaterDy[pair & 3] * w + kLaterDx[pair & 3]; }
};

// Squared distances -> steepest ascent -> noise merged.
class GeometricBasins {
  public:
    explicit GeometricBasins(Picture &picture) : picture_(picture), h_(picture.h), w_(picture.w) {}

    // Leaves basins as links and their roots in the picture. Returns the contacts between basins.
    std::vector<Contact> run() {
        measure_distances();
        ascend();
        return merge_noise();
    }

  private:
    void measure_distances() {
        Picture &p = picture_;
        p.squared = p.arena.take<int32_t>(p.n);
        int16_t *column = p.arena.take<int16_t>(p.n);
        const ColumnDistance columns = {p.cls, column, h_, w_};
        p.team.run(w_, 64, [&](int64_t begin, int64_t end, int32_t) { measure_columns(columns, int32_t(begin), int32_t(end)); });
        const RowDistance rows = {p.cls, column, p.squared, h_, w_};
        p.team.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            std::vector<int32_t> scratch(3 * (size_t(w_) + 2));
            for (int64_t y = begin; y < end; ++y) rows(int32_t(y), scratch.data());
        });
    }

    TFISEG_CLONES static void measure_columns(const ColumnDistance columns, int32_t begin, int32_t end) { columns(begin, end); }

    // Every countable pixel then links straight to its summit.
    void ascend() {
        Picture &p = picture_;
        p.link = p.arena.take<int32_t>(p.n);
        const Ascent ascent = {p.cls, p.squared, p.link, h_, w_};
        p.team.run(h_, 16, [&](int64_t begin, int64_t end, int32_t) {
            for (int32_t y = int32_t(begin); y < end; ++y) {
                const bool framed = y > 0 && y < h_ - 1;
                p.for_runs(y, [&](int32_t x0, int32_t x1) {
                    const int32_t a = std::max(x0, 1), b = std::min(x1, w_ - 1), row = y * w_;
                    if (framed) ascend_run(ascent, row + a, row + b);
                    for (int32_t x = x0; x < x1; ++x)
                        if (!framed || x < a || x >= b || !Ascent::is_inside(p.squared[row + x])) ascent.outline(row + x, y, x);
                });
            }
        });
        p.roots = p.select([&](int32_t y, int32_t x0, int32_t x1, std::vector<int32_t> &out) {
            for (int32_t i = y * w_ + x0; i < y * w_ + x1; ++i)
                if (find_and_compress(p.link, i) == i) out.push_back(i);
        });
    }

    TFISEG_CLONES static void ascend_run(const Ascent ascent, int32_t begin, int32_t end) {
        for (int32_t i = begin; i < end; ++i) ascent.inside(i);
    }

    // All contacts between basins, highest saddle first, ties by pixel and direction.
    std::vector<Contact> find_contacts() const {
        const uint8_t *cls = picture_.cls;
        const int32_t *link = picture_.link, *squared = picture_.squared;
        std::vector<Contact> all = picture_.select<Contact>([&](int32_t y, int32_t x0, int32_t x1, std::vector<Contact> &out) {
            for (int32_t x = x0; x < x1; ++x) {
                const int32_t i = y * w_ + x;
                if (y + 1 < h_ && x > x0 && x + 1 < x1 && link[i] == link[i + w_] && link[i] == link[i + w_ - 1] &&
                    link[i] == link[i + w_ + 1] && link[i] == link[i + 1])
                    continue;  // deep in a basin, as most are
                for (int32_t d = 0; d < 4; ++d) {
                    const int32_t ny = y + kLaterDy[d], nx = x + kLaterDx[d];
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

    // Persistence with the raster's own height as threshold: highest saddles first, the lower summit goes under if it is noise.
    std::vector<Contact> merge_noise() {
        std::vector<Contact> all = find_contacts();
        int32_t *link = picture_.link;
        const int32_t *squared = picture_.squared;
        size_t kept = 0;
        for (const Contact &c : all) {
            int32_t a = find_and_compress(link, c.pixel()), b = find_and_compress(link, c.neighbor(w_));
            if (a == b) continue;
            if (squared[a] < squared[b] || (squared[a] == squared[b] && a > b)) std::swap(a, b);
            if (is_noise(c.saddle, squared[b])) {
                link[b] = a;
            } else {
                all[kept++] = c;
            }
        }
        all.resize(kept);
        return all;
    }

    Picture &picture_;
    const int32_t h_, w_;
};

// Components of the graph that joins every pixel with its target and adjacent centers. Most targets are centers, and there are few of
// those: centers are united first, then most other pixels take the root of their target, and only the rest is united as well.
class GivenBasins {
  public:
    explicit GivenBasins(Picture &picture)
        : picture_(picture), h_(picture.h), w_(picture.w),
          target_{picture.cls, picture.displacement, picture.displacement + picture.n, picture.h, picture.w} {}

    // Leaves basins as links and their roots in the picture.
    void run() {
        Picture &p = picture_;
        p.link = p.arena.take<int32_t>(p.n);
        center_ = p.arena.take<uint8_t>(p.n);
        std::fill_n(center_, p.n, uint8_t(0));
        int32_t *link = p.link;
        const std::vector<int32_t> centers = find_centers();
        p.each_of(centers, [&](int32_t i) { unite_center(i); });
        p.each_of(centers, [&](int32_t i) { find_and_compress(link, i); });
        const std::vector<int32_t> rest = follow_to_centers();
        p.each_of(rest, [&](int32_t i) { unite(link, i, target_(i / w_, i % w_)); });
        p.each_of(centers, [&](int32_t i) {
            const int32_t t = target_(i / w_, i % w_);
            if (!center_[t]) unite(link, i, t);
        });
        p.each_of(rest, [&](int32_t i) { find_and_compress(link, i); });
        p.roots = centers;
        p.roots.insert(p.roots.end(), rest.begin(), rest.end());
    }

  private:
    // Also leaves the first target of every pixel in its link, and a center as its own link.
    std::vector<int32_t> find_centers() {
        const float radius = float(picture_.problem.centre_radius), radius_squared = radius * radius;
        int32_t *link = picture_.link;
        return picture_.select([&](int32_t y, int32_t x0, int32_t x1, std::vector<int32_t> &out) {
            aim_run(target_, radius_squared, center_, link, y, x0, x1);
            const uint8_t *row = center_ + int64_t(y) * w_;
            for (int64_t a = x0, b = x0; next_run(row, x1, a, b); a = b)
                for (int32_t i = y * w_ + int32_t(a); i < y * w_ + b; ++i) {
                    link[i] = i;
                    out.push_back(i);
                }
        });
    }

    TFISEG_CLONES static void aim_run(const GivenTarget<> target, float radius_squared, uint8_t *center, int32_t *link, int32_t y,
                                      int32_t x0, int32_t x1) {
        const int32_t row = y * target.w;
        for (int32_t x = x0; x < x1; ++x) center[row + x] = target.is_centre(row + x, radius_squared) ? target.cls[row + x] : uint8_t(0);
        for (int32_t x = x0; x < x1; ++x) link[row + x] = target.first(y, x);
    }

    void unite_center(int32_t i) {
        const int32_t y = i / w_, x = i % w_, t = target_(y, x);
        if (center_[t]) unite(picture_.link, i, t);
        for (int32_t d = 0; d < 4; ++d) {
            const int32_t ny = y + kLaterDy[d], nx = x + kLaterDx[d];
            if (ny >= h_ || nx < 0 || nx >= w_) continue;
            const int32_t j = ny * w_ + nx;
            if (picture_.cls[j] == picture_.cls[i] && center_[j]) unite(picture_.link, i, j);
        }
    }

    // Pixels whose target is a center of their class take its root (a center's link is its root, a center as well: that leaves it as it
    // is). Returns the other pixels, which become their own links.
    std::vector<int32_t> follow_to_centers() {
        int32_t *link = picture_.link;
        return picture_.select([&](int32_t y, int32_t x0, int32_t x1, std::vector<int32_t> &out) {
            for (int32_t i = y * w_ + x0; i < y * w_ + x1; ++i) {
                const int32_t t = link[i];
                if (center_[t] == picture_.cls[i]) {
                    put(link + i, peek(link + t));
                } else {
                    link[i] = i;
                    out.push_back(i);
                }
            }
        });
    }

    Picture &picture_;
    const int32_t h_, w_;
    const GivenTarget<> target_;
    uint8_t *center_ = nullptr;  // class of a center, 0 elsewhere
};

}  // namespace tfiseg
