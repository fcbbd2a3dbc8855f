// The operator for thousands of threads, second half: basins -> regions and edges -> unions -> instances at full resolution.
// As in grid_phases.h, one struct is one phase, called once per item in any order.
#pragma once
#include "bit_ranks.h"
#include "noise.h"
#include "sharpen.h"
#include "upsample.h"

namespace tfiseg {

// Neighboring lanes often add to the same sum: gives the first lane of each run of equal numbers the sum of the run. Returns whether this
// lane is one that adds. T: 32-bit words, with absorb().
template <class T>
TFISEG_HD bool gather_run(int32_t number, T &sum) {
#ifdef __CUDA_ARCH__
    constexpr uint32_t kAll = 0xFFFFFFFFu;
    if (__activemask() != kAll) return true;
    const int32_t lane = int32_t(threadIdx.x & 31), before = __shfl_up_sync(kAll, number, 1);
    const uint32_t heads = __ballot_sync(kAll, lane == 0 || before != number), later = heads & ~((2u << lane) - 1u);
    const int32_t end = later ? trailing_zeros(later) : 32;
    for (int32_t step = 1; step < 32; step <<= 1) {
        uint32_t words[sizeof(T) / sizeof(uint32_t)];
        memcpy(words, &sum, sizeof sum);
        for (uint32_t &word : words) word = __shfl_down_sync(kAll, word, step);
        T other;
        memcpy(&other, words, sizeof other);
        if (lane + step < end) sum.absorb(other);
    }
    return heads >> lane & 1u;
#else
    (void)number, (void)sum;  // one thread after the other
    return true;
#endif
}

// Adds sums to region `number`, from 1, that other threads add to as well; 0 = none.
TFISEG_HD void add_to(Region *regions, int32_t number, Region o) {
    if (!gather_run(number, o)) return;
    if (!number) return;
    Region *r = regions + number - 1;
    add(&r->area, o.area);
    add(&r->sum_x, o.sum_x);
    add(&r->sum_y, o.sum_y);
    add(&r->sum_xx, o.sum_xx);
    add(&r->sum_xy, o.sum_xy);
    add(&r->sum_yy, o.sum_yy);
    if (o.score_sum) add(&r->score_sum, o.score_sum);
    lower_to(&r->first, o.first);
    lower_to(&r->x0, o.x0);
    lower_to(&r->y0, o.y0);
    raise_to(&r->x1, o.x1);
    raise_to(&r->y1, o.y1);
}

// A batch in strips: columns of a few pixels, numbered along the rows, so that neighboring threads work on neighboring pixels.
struct Strips {
    static constexpr int32_t kRows = 8;  // a thread loads those of a strip at once

    int32_t pictures, h, w;

    TFISEG_HD int32_t down() const { return (h + kRows - 1) / kRows; }
    TFISEG_HD int64_t items() const { return int64_t(pictures) * down() * w; }

    TFISEG_HD int32_t column(int64_t strip) const { return int32_t(strip % w); }
    TFISEG_HD int32_t begin(int64_t strip) const { return int32_t(strip / w % down()) * kRows; }
    TFISEG_HD int32_t end(int64_t strip) const { return begin(strip) + kRows < h ? begin(strip) + kRows : h; }
    // Number in the batch of the pixel in row y.
    TFISEG_HD int64_t pixel(int64_t strip, int32_t y) const { return (strip / w / down() * h + y) * w + column(strip); }

    // Calls f(y, i) for each pixel of a strip from top to bottom; i is its number in the batch.
    template <class F>
    TFISEG_HD void each_pixel(int64_t strip, const F &f) const {
        const int64_t first = pixel(strip, 0);
        for (int32_t y = begin(strip); y < end(strip); ++y) f(y, first + int64_t(y) * w);
    }
};

TFISEG_HD Strips strips_of(const Grid &grid) { return {grid.pictures, grid.h, grid.w}; }

// Adds pixels of column x to the sums of their regions: number[j], from 1 (0 = none), and score[j] are of row y0 + j, first[j] is the pixel's
// index. All lanes of a warp add their topmost region together, then the next ones.
template <int32_t kRows>
TFISEG_HD void add_column(Region *regions, int32_t x, int32_t y0, const int32_t (&number)[kRows], const int32_t (&score)[kRows], int64_t first,
                          int64_t row_step) {
    uint32_t left = 0;  // bit j: pixel j is not yet added
    TFISEG_UNROLL
    for (int32_t j = 0; j < kRows; ++j) left |= uint32_t(number[j] != 0) << j;
    while (any_lane(left != 0)) {
        const int32_t top = left ? trailing_zeros(left) : kRows;
        int32_t current = 0;
        TFISEG_UNROLL
        for (int32_t j = 0; j < kRows; ++j) current = j == top ? number[j] : current;
        Region sum = kEmptyRegion;
        int32_t area = 0, rows = 0, squares = 0, scores = 0, last = 0;  // rows: below y0
        TFISEG_UNROLL
        for (int32_t j = 0; j < kRows; ++j) {
            const bool is_taken = number[j] == current;
            area += is_taken;
            rows += is_taken ? j : 0;
            squares += is_taken ? j * j : 0;
            scores += is_taken ? score[j] : 0;
            last = is_taken ? j : last;
            left &= ~(uint32_t(is_taken) << j);
        }
        sum.area = area;
        sum.sum_x = int64_t(area) * x;
        sum.sum_y = int64_t(area) * y0 + rows;
        sum.sum_xx = sum.sum_x * x;
        sum.sum_xy = sum.sum_y * x;
        sum.sum_yy = int64_t(area) * y0 * y0 + int64_t(2) * y0 * rows + squares;
        sum.score_sum = scores;
        sum.first = first + top * row_step;
        sum.x0 = x;
        sum.x1 = x + 1;
        sum.y0 = y0 + top;
        sum.y1 = y0 + last + 1;
        add_to(regions, current, sum);
    }
}

// The pixels of a strip; those below the picture repeat the last one.
struct StripPixels {
    int32_t count, y0, first, step;  // pixel j is number first + j * step of the batch, for j < count

    TFISEG_HD int32_t operator[](int32_t j) const { return first + (j < count ? j : count - 1) * step; }
};

TFISEG_HD StripPixels strip_pixels(const Grid &grid, int64_t strip) {
    const Strips strips = strips_of(grid);
    const int32_t y0 = strips.begin(strip);
    return {strips.end(strip) - y0, y0, int32_t(strips.pixel(strip, y0)), grid.w};
}

// Adds the pixels of a strip to the sums of their regions.
TFISEG_HD void sum_strip(const Grid &grid, const uint16_t *fixed_scores, Region *regions, int64_t k, int32_t (&number)[Strips::kRows]) {
    const StripPixels pixels = strip_pixels(grid, k);
    int32_t score[Strips::kRows];
    TFISEG_UNROLL
    for (int32_t j = 0; j < Strips::kRows; ++j) {
        score[j] = fixed_scores ? fixed_scores[pixels[j]] : 0;
        number[j] = j < pixels.count ? number[j] : 0;
    }
    add_column(regions, strips_of(grid).column(k), pixels.y0, number, score, pixels.first, grid.w);
}

// Makes a region of every basin that did not merge into another, in any order: regions are ordered by their first pixel.
struct CreateRegions {
    const int32_t *basin_parent, *squared;  // both NULL with a given field
    const uint8_t *cls;
    int32_t *roots;   // in: by basin, its root; out: number of the region, from 1
    int32_t *map;     // out: at roots, the same number
    Region *regions;  // out
    int32_t *parent, *last_merge_round;  // out
    int32_t capacity;
    int32_t plane;
    int32_t *region_count;  // in, out: by picture; or NULL
    Counters *counters;

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t root = roots[k];
        if (basin_parent && basin_parent[k] != k) return;
        const int32_t peak = squared ? squared[root] : 0, class_id = cls[root];
        if (region_count) fetch_add(region_count + root / plane, 1);
        const int32_t r = fetch_add(&counters->regions, 1);
        if (r >= capacity) {
            put(&counters->overflow, 1);
            map[root] = roots[k] = 0;
            return;
        }
        map[root] = roots[k] = r + 1;
        regions[r] = kEmptyRegion;
        regions[r].peak = peak;
        regions[r].class_id = class_id;
        parent[r] = r;
        last_merge_round[r] = -1;
    }
};

// Gives basins that merged the region of the basin that they are part of now.
struct SpreadRegions {
    const int32_t *basin_parent;
    int32_t *roots;  // in: number of the region of basins that did not merge, roots of the others; out: number of the region
    int32_t *map;    // out: at roots of basins that merged

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t pixel = roots[k], last = find_root(basin_parent, k);
        if (last == k) return;
        map[pixel] = roots[k] = roots[last];
    }
};

// Writes the region of every pixel and sums the regions. One item is a strip.
struct SumRegions {
    Grid grid;
    const uint8_t *cls;
    const uint16_t *fixed_scores;  // or NULL
    const int32_t *link;  // of every pixel to its basin's root
    int32_t *map;  // in at roots, out everywhere: 0 = none
    Region *regions;

    TFISEG_HD int64_t items() const { return strips_of(grid).items(); }

    TFISEG_HD void operator()(int64_t k) const {
        const StripPixels pixels = strip_pixels(grid, k);
        uint8_t c[Strips::kRows];
        int32_t root[Strips::kRows], number[Strips::kRows];
        TFISEG_UNROLL
        for (int32_t j = 0; j < Strips::kRows; ++j) {
            c[j] = cls[pixels[j]];
            root[j] = link[pixels[j]];
        }
        TFISEG_UNROLL
        for (int32_t j = 0; j < Strips::kRows; ++j) number[j] = c[j] ? map[root[j]] : 0;
        TFISEG_UNROLL
        for (int32_t j = 0; j < Strips::kRows; ++j)
            if (j < pixels.count && (!c[j] || root[j] != pixels[j])) map[pixels[j]] = number[j];
        sum_strip(grid, fixed_scores, regions, k, number);
    }
};

// For sharpen.h and parts.h: flags and sums of unions start at 0.
struct ClearCores {
    int32_t *has_core;  // out
    TFISEG_HD void operator()(int32_t r) const { has_core[r] = 0; }
};

struct ClearSums {
    Region *regions;

    TFISEG_HD void operator()(int32_t r) const {
        const int64_t class_id = regions[r].class_id;
        regions[r] = kEmptyRegion;
        regions[r].class_id = class_id;
    }
};

struct SpreadBand {
    SpreadLabels<Values> spread;
    const int32_t *band_pixels;
    TFISEG_HD void operator()(int32_t k) const { spread(band_pixels[k]); }
};

// Sums the unions in the map. One item is a strip.
struct SumUnions {
    Grid grid;
    const uint16_t *fixed_scores;  // or NULL
    const int32_t *map;
    Region *regions;

    TFISEG_HD int64_t items() const { return strips_of(grid).items(); }

    TFISEG_HD void operator()(int64_t k) const {
        const StripPixels pixels = strip_pixels(grid, k);
        int32_t number[Strips::kRows];
        TFISEG_UNROLL
        for (int32_t j = 0; j < Strips::kRows; ++j) number[j] = map[pixels[j]];
        sum_strip(grid, fixed_scores, regions, k, number);
    }
};

// Edges between regions from those between their basins: first enters all pairs, then sums their evidence. One item is an edge of basins.
struct RegionEdges {
    const Edge *basin_edges;
    const int32_t *region_of;  // by basin, from 1; 0 = none
    EdgeSet set;
    bool summing;

    TFISEG_HD void operator()(int32_t k) const {
        const Edge &e = basin_edges[k];
        const int32_t a = region_of[e.a], b = region_of[e.b];
        if (a == b || !a || !b) return;
        if (!summing) return set.enter(a - 1, b - 1);
        const int32_t place = set.at(a - 1, b - 1);
        if (place < 0) return;
        Edge sum = e;
        sum.saddle = saddle_of(e.saddle);
        set.absorb(place, sum);
    }
};

// Edges from learned affinities: pixel pairs at fixed offsets. One item is a pixel and a channel.
struct AffinityEdges {
    Grid grid;
    const uint8_t *cls;
    const int32_t *map;
    Values affinity;  // (pictures, channels, cells)
    const Settings *settings;
    int32_t channels, stride;
    const int32_t *piece;  // pairs of different pieces are ignored; NULL: none are
    EdgeSet set;
    bool summing;

    TFISEG_HD int64_t items() const { return int64_t(channels) * grid.pixels(); }

    TFISEG_HD void operator()(int64_t k) const {
        const int32_t channel = int32_t(k / grid.pixels()), i = int32_t(k % grid.pixels());
        if (!map[i]) return;
        const int32_t *offset = settings->affinity_offsets_yx + 2 * channel;
        const int64_t dy = int64_t(offset[0]) * stride, dx = int64_t(offset[1]) * stride;
        if (dy >= grid.h || -dy >= grid.h || dx >= grid.w || -dx >= grid.w) return;
        const int32_t j = grid.offset(i, int32_t(dy), int32_t(dx));
        if (j < 0 || !map[j] || map[j] == map[i] || cls[j] != cls[i] || (piece && piece[j] != piece[i])) return;
        if (!summing) {
            set.enter(map[i] - 1, map[j] - 1);
            return;
        }
        const int32_t x = i % grid.w, row = i / grid.w, y = row % grid.h, picture = row / grid.h;
        const int32_t cells_w = (grid.w + stride - 1) / stride, cells_h = (grid.h + stride - 1) / stride;
        const int64_t cell = ((int64_t(picture) * channels + channel) * cells_h + y / stride) * cells_w + x / stride;
        const int32_t place = set.at(map[i] - 1, map[j] - 1);
        if (place < 0) return;
        Edge e;
        e.affinity_sum = to_fixed(affinity[cell]);
        e.affinity_count = 1;
        set.absorb(place, e);
    }
};

// Merges regions in rounds: every region names its best edge (largest score; of equal ones, that with the smallest pair of first pixels in
// it), pairs that name each other merge, and all edges are entered again with the unions as their ends, while any score is above 0.
struct MergeRounds {
    MergeRule rule;
    EdgeSet sets[2];  // this round's and the next one's; they share keys and places
    double *scores[2];
    Region *regions;
    int32_t *parent, *last_merge_round;  // by region: the region it merged into; the last round in which another merged into it
    PictureState *states;
    int32_t plane;
    Counters *counters;

    static constexpr int32_t kPhases = 5;

    TFISEG_HD int32_t edges(int32_t round) const {
        const int32_t n = counters->edges[round & 1], most = sets[0].capacity;
        return counters->overflow ? 0 : n < most ? n : most;
    }

    // Evidence that lets only one pair merge per round (a ramp) would keep a GPU busy for minutes. The count reports it, as for too many edges.
    TFISEG_HD bool has_next(int32_t round) const {
        if (!has_merged(round)) return false;
        if (round + 1 < kMostRounds) return true;
        put(&counters->overflow, 1);
        return false;
    }

    TFISEG_HD int32_t items(int32_t phase, int32_t round) const {
        if (phase > 2 && !has_merged(round)) return 0;
        return phase == 0 ? EdgeSet::slots_for(edges(round)) : edges(round);
    }

    TFISEG_HD void operator()(int32_t phase, int32_t round, int32_t k) const {
        const EdgeSet &set = sets[round & 1];
        switch (phase) {
            case 0:
                if (k == 0) {
                    counters->edges[(round + 1) & 1] = 0;
                    counters->merge_progress[(round + 1) % 3] = 0;
                }
                set.keys[k] = kNoKey;  // for the next round's edges
                if (k < edges(round)) score(set.edges[k], scores[round & 1] + k, round);
                return;
            case 1: return name(set, k, round);
            case 2: return merge(set, k, round);
            case 3: return move(set, k, round, false);
            default: return move(set, k, round, true);
        }
    }

  private:
    static constexpr int32_t kMostRounds = 1 << 15;  // photographs take fewer than 100

    TFISEG_HD bool has_merged(int32_t round) const { return peek(&counters->merge_progress[round % 3]) != 0; }

    TFISEG_HD static uint64_t order_of(double score) {  // of positive numbers
        uint64_t bits;
        memcpy(&bits, &score, sizeof bits);
        return bits;
    }

    TFISEG_HD void score(const Edge &e, double *kept, int32_t round) const {
        if (last_merge_round[e.a] == round - 1 || last_merge_round[e.b] == round - 1) {
            *kept = rule.score(e, regions[e.a], regions[e.b]);
            if (round > 0 && rule.depends_on_shape(regions[e.a].class_id)) add(&states[regions[e.a].first / plane].rescored, 1);
        }
        if (*kept > 0.0) {
            raise_to(sets[0].best_score + e.a, order_of(*kept));
            raise_to(sets[0].best_score + e.b, order_of(*kept));
        }
    }

    TFISEG_HD void name(const EdgeSet &set, int32_t k, int32_t round) const {
        const double s = scores[round & 1][k];
        const int32_t a = set.edges[k].a, b = set.edges[k].b;
        const uint64_t pair = set.pairs[k], best_a = set.best_score[a], best_b = set.best_score[b];
        if (!(s > 0.0)) return;
        if (best_a == order_of(s)) lower_to(set.best_pair + a, pair);
        if (best_b == order_of(s)) lower_to(set.best_pair + b, pair);
    }

    TFISEG_HD void merge(const EdgeSet &set, int32_t k, int32_t round) const {
        const double s = scores[round & 1][k];
        const Edge &e = set.edges[k];
        const uint64_t pair = set.pairs[k], best_a = set.best_pair[e.a], best_b = set.best_pair[e.b];
        if (!(s > 0.0) || best_a != pair || best_b != pair) return;
        if (states[regions[e.a].first / plane].rescored > merge_budget(plane)) return;
        regions[e.a].absorb(regions[e.b]);
        parent[e.b] = e.a;
        last_merge_round[e.a] = round;
        put(&counters->merge_progress[round % 3], 1);
    }

    TFISEG_HD void move(const EdgeSet &set, int32_t k, int32_t round, bool summing) const {
        const Edge &e = set.edges[k];
        const int32_t a = parent[e.a], b = parent[e.b];
        if (a == b) return;
        EdgeSet next = sets[(round + 1) & 1];
        next.slots = EdgeSet::slots_for(edges(round));
        if (!summing) return next.enter(a, b, kNoKey);
        const int32_t place = next.at(a, b);
        if (place < 0) return;
        next.absorb(place, e);
        next.absorb_pair(place, set.pairs[k]);
        if (last_merge_round[a] != round && last_merge_round[b] != round) scores[(round + 1) & 1][place] = scores[round & 1][k];
    }
};

// Lists the unions; if a picture has more than `most`, finds its largest by bisection of their key, one bit per round.
struct LargestRounds {
    Grid grid;
    const Region *regions;
    int32_t *parent;    // in, out: every region's union
    int32_t *unions;  // out
    int32_t *number;  // out: 0
    PictureState *states;
    int64_t min_area;
    int32_t most;
    Counters *counters;

    static constexpr int32_t kPhases = 2;
    static constexpr int32_t kFirstBits = 25, kBits = 50;  // a picture has at most 2^24 pixels

    TFISEG_HD int32_t region_count() const { return counters->overflow ? 0 : counters->regions; }
    TFISEG_HD int32_t picture_of(int32_t r) const { return int32_t(regions[r].first / grid.plane()); }
    TFISEG_HD bool is_crowded(int32_t picture) const { return states[picture].unions > most; }

    // Larger for larger areas, and of equal areas for the smaller first pixel. No two keys are equal.
    TFISEG_HD uint64_t key(int32_t r) const {
        const uint64_t first = uint64_t(regions[r].first % grid.plane());
        return uint64_t(regions[r].area) << kFirstBits | ((uint64_t(1) << kFirstBits) - 1 - first);
    }

    TFISEG_HD bool is_kept(int32_t r) const { return key(r) >= states[picture_of(r)].least; }

    TFISEG_HD int32_t items(int32_t phase, int32_t round) const {
        if (phase == 1) return counters->unions;
        return round == 0 ? region_count() : grid.pictures;
    }

    TFISEG_HD bool has_next(int32_t round) const {
        bool crowded = false;
        for (int32_t p = 0; p < grid.pictures; ++p) crowded = crowded || is_crowded(p);
        return crowded && round < kBits;
    }

    TFISEG_HD void operator()(int32_t phase, int32_t round, int32_t k) const {
        const uint64_t bit = uint64_t(1) << (kBits - 1 - (phase == 1 ? round : round - 1) % kBits);
        if (phase == 1) {
            const int32_t r = unions[k], picture = picture_of(r);
            if (round < kBits && is_crowded(picture) && key(r) >= (states[picture].least | bit)) fetch_add(&states[picture].tried, 1);
        } else if (round == 0) {
            number[k] = 0;
            if (find_and_compress(parent, k) != k || regions[k].area < (min_area > 1 ? min_area : 1)) return;  // pieces that were cut are empty
            append(unions, &counters->unions, k);
            fetch_add(&states[picture_of(k)].unions, 1);
        } else {
            if (states[k].tried >= most) states[k].least |= bit;
            states[k].tried = 0;
        }
    }
};

// The size of the result. Its pixels are numbered like the grid's, with 64 bits.
struct Output {
    int32_t h, w;

    TFISEG_HD int64_t plane() const { return int64_t(h) * w; }
    // Of a bit map of a picture: whole groups, so that no group holds bits of two pictures.
    TFISEG_HD int64_t words() const { return counts_of((plane() + 31) >> 5) * kWordsPerCount; }
};

// With logits: moves a union's sums at the grid's size aside, for the sums at the output size.
struct KeepGridSums {
    LargestRounds from;
    Region *regions;
    int64_t *grid_area, *grid_score_sum;  // out, by region
    int32_t *number;                      // out: 1 if kept

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t r = from.unions[k];
        if (!from.is_kept(r)) return;
        number[r] = 1;
        grid_area[r] = regions[r].area;
        grid_score_sum[r] = regions[r].score_sum;
        const int64_t class_id = regions[r].class_id, first = regions[r].first;
        regions[r] = kEmptyRegion;
        regions[r].class_id = class_id;
        regions[r].peak = first / from.grid.plane();  // the picture, which the first pixel told until now
    }
};

// Sums over the runs of a column's pixels. When one lane of a warp has a sum to add, all of them add theirs together.
class StripSum {
  public:
    TFISEG_HD StripSum(Region *regions, int32_t x) : regions_(regions), x_(x) {}

    // number: of the region, from 1; 0 = none. index: of the pixel; `first` is the smallest.
    TFISEG_HD void pixel(int32_t number, int32_t y, int64_t index, int32_t score) {
        if (any_lane(number_ && number != number_)) finish();
        if (!number) return;
        if (!run_.area) {
            number_ = number;
            run_.first = index;
            run_.y0 = y;
        }
        run_.area += 1;
        run_.sum_y += y;
        run_.sum_yy += int64_t(y) * y;
        run_.score_sum += score;
        run_.y1 = y + 1;
    }

    TFISEG_HD void finish() {
        run_.sum_x = run_.area * x_;
        run_.sum_xy = run_.sum_y * x_;
        run_.sum_xx = run_.sum_x * x_;
        run_.x0 = x_;
        run_.x1 = x_ + 1;
        add_to(regions_, number_, run_);
        run_ = kEmptyRegion;
        number_ = 0;
    }

  private:
    Region *regions_;
    int32_t x_, number_ = 0;
    Region run_ = kEmptyRegion;
};

// Writes class and union of every output pixel and sums the unions there. One item is a column of the output rows between few grid rows.
struct Upsample {
    // Union of a grid pixel, from 1; 0 = none.
    struct Unions {
        const int32_t *map, *parent, *number;

        TFISEG_HD Unions operator+(int32_t i) const { return {map + i, parent, number}; }

        // Each of three loads for all pixels at once.
        template <int32_t kRows>
        TFISEG_HD void load(const int32_t (&pixels)[kRows], int32_t (&out)[kRows]) const {
            int32_t region[kRows], root[kRows];
            TFISEG_UNROLL
            for (int32_t j = 0; j < kRows; ++j) region[j] = pixels[j] < 0 ? 0 : map[pixels[j]];
            TFISEG_UNROLL
            for (int32_t j = 0; j < kRows; ++j) root[j] = region[j] ? parent[region[j] - 1] : 0;
            TFISEG_UNROLL
            for (int32_t j = 0; j < kRows; ++j) out[j] = region[j] && number[root[j]] ? root[j] + 1 : 0;
        }
    };

    static constexpr int32_t kRows = 3;

    Grid grid;
    Output out;
    const uint8_t *semantic;
    Unions unions;
    Values logits;
    int32_t classes;
    Region *regions;
    const Counters *counters;
    int32_t *label_map;       // out
    uint8_t *semantic_map;    // out, or NULL
    int32_t *semantic_map_32;  // out, or NULL

    TFISEG_HD int64_t items() const { return int64_t(grid.pictures) * bands() * out.w; }

    TFISEG_HD void operator()(int64_t k) const {
        if (logits.is_half) {
            write(k, Halves{static_cast<const uint16_t *>(logits.data)});
        } else {
            write(k, static_cast<const float *>(logits.data));
        }
    }

  private:
    // Of an item. Few output rows give few threads enough to do only if items are short; more rows need fewer additions of sums.
    TFISEG_HD int32_t grid_rows() const {
        const int32_t output_rows = int64_t(grid.pictures) * out.plane() > (1 << 19) ? 16 : kRows, rows = output_rows * grid.h / out.h;
        return rows > 1 ? rows : 1;
    }
    TFISEG_HD int32_t bands() const { return (grid.h + grid_rows() - 1) / grid_rows(); }

    // The first output row whose upper grid row is at least `row`.
    TFISEG_HD int32_t first_row(int32_t row) const {
        if (row >= grid.h) return out.h;
        int32_t y = int32_t(float(row) * (float(out.h) / float(grid.h)));
        y = y < out.h ? y : out.h;
        while (y > 0 && grid_position(y - 1, out.h, grid.h).low >= row) --y;
        while (y < out.h && grid_position(y, out.h, grid.h).low < row) ++y;
        return y;
    }

    template <class Logits>
    TFISEG_HD void write(int64_t k, const Logits &of_batch) const {
        const int32_t x = int32_t(k % out.w), band = int32_t(k / out.w % bands()), picture = int32_t(k / out.w / bands());
        const int32_t start = picture * grid.plane(), end = first_row((band + 1) * grid_rows());
        const FullResolution<Unions, Logits> full = {semantic + start, unions + start, of_batch + int64_t(start) * classes, classes, grid.h, grid.w};
        const GridPosition at_x = grid_position(x, out.w, grid.w);
        const bool overflows = counters->overflow;
        StripSum sum(regions, x);
        for (int32_t y = first_row(band * grid_rows()), count = 0; y < end; y += count) {
            GridPosition rows[kRows];  // that lie between the same two grid rows, so that these are read once
            count = 0;
            for (int32_t j = 0; j < kRows; ++j) {
                rows[j] = grid_position(y + j, out.h, grid.h);
                if (j == count && y + j < end && rows[j].low == rows[0].low) count = j + 1;
            }
            uint8_t c[kRows];
            int32_t number[kRows];
            full.column(rows, count, at_x, c, number);
            for (int32_t j = 0; j < kRows; ++j) {
                if (j >= count) continue;
                if (overflows) number[j] = 0;
                const int64_t of_picture = int64_t(y + j) * out.w + x, i = picture * out.plane() + of_picture;
                label_map[i] = number[j];
                if (semantic_map) semantic_map[i] = c[j];
                if (semantic_map_32) semantic_map_32[i] = c[j];
                sum.pixel(number[j], y + j, of_picture, 0);
            }
        }
        sum.finish();
    }
};

// Marks the first pixel of every union that is kept.
struct MarkFirstPixels {
    LargestRounds from;
    Region *regions;
    int32_t *number;  // in with logits, out: 0 = dropped
    int64_t *grid_area, *grid_score_sum;  // NULL with a class map
    Output out;
    int64_t min_area;
    uint32_t *bits;  // in, out

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t r = from.unions[k];
        int64_t picture = regions[r].peak;
        if (!grid_area) {
            picture = from.picture_of(r);
            if (!from.is_kept(r)) return;
            regions[r].first -= picture * out.plane();
            regions[r].peak = picture;
        } else if (!number[r] || regions[r].area < (min_area > 1 ? min_area : 1)) {  // shrinking can leave one without a pixel
            number[r] = 0;
            return;
        } else {
            regions[r].score_sum = carried_score(grid_score_sum[r], grid_area[r], regions[r].area);
        }
        number[r] = 1;
        const int64_t first = regions[r].first;
        set_bits(bits + picture * out.words() + (first >> 5), 1u << (first & 31));
    }
};

// Numbers the kept unions by their first pixels and writes the table. prefix_count: see bit_ranks.h.
struct NumberInstances {
    const int32_t *unions;
    const Region *regions;
    Output out;
    const uint32_t *bits;
    const int32_t *prefix_count;
    const PictureState *states;
    int32_t plane;  // of the grid
    bool has_scores;
    int32_t most;
    int32_t *number;  // in, out
    float *table;     // out: (pictures, most, 10)

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t r = unions[k];
        if (!number[r]) return;
        const int64_t picture = regions[r].peak, start = picture * out.words();
        const int32_t rank = bits_before(bits, prefix_count, 32 * start + regions[r].first) - prefix_count[start / kWordsPerCount];
        number[r] = rank + 1;
        const bool is_stopped = states[picture].is_stopped || states[picture].rescored > merge_budget(plane);
        write_row(regions[r], has_scores, is_stopped, out.h, out.w, table + (picture * most + rank) * TFISEG_TABLE_COLUMNS);
    }
};

// Writes the final labels. With logits, the label map holds unions already; with a class map, it is written from the regions. One item is
// four pixels.
struct WriteLabels {
    int64_t pixels;
    int32_t pictures;
    Output out;
    const int32_t *map, *parent, *number, *prefix_count;  // map: NULL with logits
    const uint8_t *class_map;
    const Counters *counters;
    int32_t *label_map;       // in, out
    uint8_t *semantic_map;    // out, or NULL
    int32_t *semantic_map_32;  // out, or NULL
    int32_t *count;           // out: TFISEG_COUNT_OVERFLOW if there were too many regions, edges or merge rounds

    TFISEG_HD int32_t marked_until(int64_t picture) const { return prefix_count[picture * out.words() / kWordsPerCount]; }
    TFISEG_HD int64_t items() const { return (pixels + 3) / 4 > pictures ? (pixels + 3) / 4 : pictures; }

    TFISEG_HD void operator()(int64_t k) const {
        const bool overflows = counters->overflow;
        if (k < pictures) count[k] = overflows ? TFISEG_COUNT_OVERFLOW : marked_until(k + 1) - marked_until(k);
        const int64_t begin = 4 * k;
        if (begin + 4 > pixels || !is_aligned()) {
            for (int64_t i = begin; i < begin + 4 && i < pixels; ++i) {
                label_map[i] = label_of(overflows ? 0 : (map ? map : label_map)[i]);
                if (map && semantic_map) semantic_map[i] = class_map[i];
                if (map && semantic_map_32) semantic_map_32[i] = class_map[i];
            }
            return;
        }
        const Four<int32_t> from = load_four((map ? map : label_map) + begin);
        Four<int32_t> labels;
        for (int32_t j = 0; j < 4; ++j) labels[j] = j && from[j] == from[j - 1] ? labels[j - 1] : label_of(overflows ? 0 : from[j]);
        store_four(label_map + begin, labels);
        if (!map || !(semantic_map || semantic_map_32)) return;
        const Four<uint8_t> classes = load_four(class_map + begin);
        if (semantic_map) store_four(semantic_map + begin, classes);
        if (semantic_map_32) store_four<int32_t>(semantic_map_32 + begin, {classes[0], classes[1], classes[2], classes[3]});
    }

  private:
    // The maps that a caller gives lie anywhere.
    TFISEG_HD bool is_aligned() const {
        const auto past = [](const void *memory, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(memory) % bytes; };
        return !(past(label_map, 16) | past(semantic_map_32, 16) | past(semantic_map, 4) | past(class_map, 4));
    }

    // region: a union, with logits.
    TFISEG_HD int32_t label_of(int32_t region) const { return !region ? 0 : number[map ? parent[region - 1] : region - 1]; }
};

}  // namespace tfiseg
