// The operator for thousands of threads, first half: logits -> classes -> distances -> basins. One struct is one phase, called once
// per item in any order, with a barrier between phases. Nothing here is CUDA: pipeline.h gives the order, and an executor runs the phases.
//
// Pixels of a batch have one numbering: i = (picture * h + y) * w + x.
#pragma once
#include <cmath>
#include <cstring>

#include "edge_set.h"
#include "field.h"
#include "four.h"
#include "values.h"

namespace tfiseg {

struct Grid {
    int32_t pictures, h, w;

    TFISEG_HD int32_t plane() const { return h * w; }
    TFISEG_HD int32_t pixels() const { return pictures * h * w; }
    TFISEG_HD int32_t column_words() const { return (h + 31) >> 5; }
    TFISEG_HD int32_t row_words() const { return (w + 31) >> 5; }
    // The neighbor E, SW, S or SE of pixel i, so that every pair counts once; -1 outside the picture.
    TFISEG_HD int32_t later_neighbour(int32_t i, int32_t direction) const {
        const int32_t dy = direction > 0, dx = direction == 0 || direction == 3 ? 1 : direction == 1 ? -1 : 0;
        return offset(i, dy, dx);
    }
    TFISEG_HD int32_t offset(int32_t i, int32_t dy, int32_t dx) const {
        const int32_t row = i / w, x = i - row * w + dx, y = row % h + dy;
        return x >= 0 && x < w && y >= 0 && y < h ? i + dy * w + dx : -1;
    }
};

// What one call counts, in the workspace.
struct Counters {
    int32_t roots = 0, contacts = 0, work[2] = {0, 0}, regions = 0, edges[2] = {0, 0}, unions = 0, band_pixels = 0, rest = 0, overflow = 0;
    // Whether a round changed something. Of three rounds, so that one can be cleared while another is read.
    int32_t merge_progress[3] = {0, 0, 0}, growth_progress[3] = {0, 0, 0};
};

// The caller's settings. As a kernel's argument they need CUDA 12.1, which raised the limit from 4 KB to 32 KB; see the check below.
struct Settings {
    double split[256];
    uint32_t things[8];
    int32_t affinity_offsets_yx[64];
    float evidence_rule[TFISEG_MAX_EVIDENCE_HIDDEN * (TFISEG_EVIDENCE_FEATURES + 2) + 1];

    TFISEG_HD bool is_thing(int32_t c) const { return (things[c >> 5] >> (c & 31)) & 1u; }
};

#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
#error "the kernels' parameters are up to 7 KB, which needs CUDA 12.1 or later: use a newer toolkit"
#endif

// One picture. Of its unions those are stored whose key (graph_phases.h) is at least `least`.
struct PictureState {
    uint64_t least = 0;
    int64_t rescored = 0;  // edges, see merge_budget()
    int32_t unions = 0, tried = 0;
    int32_t is_stopped = 0;  // merging in the second pass stopped at its budget
};

// The settings in 32-bit words, so that many threads store a word each.
constexpr int32_t kSettingsWords = int32_t(sizeof(Settings) / sizeof(uint32_t));

// Class, countable class and fixed-point score of every pixel; also gives everything in the workspace its start value.
struct FindClasses {
    Grid grid;
    Settings settings;
    const uint8_t *class_map;  // or NULL
    Values logits, scores;
    int32_t classes;
    uint8_t *semantic, *cls;  // out; semantic with logits only
    uint16_t *fixed_scores;   // out, or NULL
    int32_t *link;            // out
    Settings *stored;           // out
    Counters *counters;       // out
    uint64_t *keys;           // out: all kNoKey
    uint32_t *bits;           // out: all 0
    PictureState *states;     // out: one for each picture, all 0
    int32_t *region_count;    // out: one for each picture, 0; or NULL
    int32_t key_slots, bit_words;

    TFISEG_HD int32_t items() const {
        int32_t most = key_slots > bit_words ? key_slots : bit_words;
        most = most > kSettingsWords ? most : kSettingsWords;
        return most > grid.pixels() ? most : grid.pixels();
    }

    TFISEG_HD void operator()(int32_t i) const {
        if (i < kSettingsWords) {
            uint32_t word;
            std::memcpy(&word, reinterpret_cast<const char *>(&settings) + sizeof word * size_t(i), sizeof word);
            std::memcpy(reinterpret_cast<char *>(stored) + sizeof word * size_t(i), &word, sizeof word);
        }
        if (i == 0) *counters = Counters();
        if (i < grid.pictures) states[i] = PictureState();
        if (i < grid.pictures && region_count) region_count[i] = 0;
        if (i < key_slots) keys[i] = kNoKey;
        if (i < bit_words) bits[i] = 0;
        if (i >= grid.pixels()) return;
        link[i] = i;
        const int32_t plane = grid.plane(), picture = i / plane;
        const Values here = logits.data ? logits + (int64_t(picture) * classes * plane + i % plane) : logits;
        float top = 0.0f;
        int32_t c = 0;
        if (class_map) {
            c = class_map[i];
        } else {
            top = here[0];
            for (int32_t k = 1; k < classes; ++k) {
                const float v = here[int64_t(k) * plane];
                c = v > top ? k : c;
                top = v > top ? v : top;
            }
            semantic[i] = uint8_t(c);
        }
        const bool thing = c != 255 && settings.is_thing(c);
        cls[i] = thing ? uint8_t(c) : uint8_t(0);
        if (!fixed_scores) return;
        float score = 0.0f;
        if (scores.data) {
            score = scores[i];
        } else if (thing) {
            float sum = 0.0f;
            for (int32_t k = 0; k < classes; ++k) sum += std::exp(here[int64_t(k) * plane] - top);
            score = 1.0f / sum;
        }
        fixed_scores[i] = uint16_t(to_fixed(score));
    }
};

// Where the class changes along columns and rows, 32 pixels to a word: bit p is set if pixel p differs from the previous one.
struct FindClassChanges {
    Grid grid;
    const uint8_t *cls;
    uint32_t *columns;  // out: (pictures, column_words, w)
    uint32_t *rows;     // out: (pictures, h, row_words)

    TFISEG_HD int32_t column_items() const { return grid.pictures * grid.column_words() * grid.w; }
    TFISEG_HD int32_t items() const { return column_items() + grid.pictures * grid.h * grid.row_words(); }

    TFISEG_HD void operator()(int32_t k) const {
        if (k < column_items()) {
            const int32_t x = k % grid.w, word = k / grid.w % grid.column_words(), picture = k / grid.w / grid.column_words();
            columns[k] = changes(cls + int64_t(picture) * grid.plane() + x, grid.w, word * 32, grid.h);
        } else {
            const int32_t m = k - column_items(), begin = m % grid.row_words() * 32;
            const uint8_t *line = cls + int64_t(m / grid.row_words()) * grid.w;
            rows[m] = grid.w % 32 ? changes(line, 1, begin, grid.w) : changes(line, begin);
        }
    }

    TFISEG_HD static uint32_t changes(const uint8_t *line, int32_t stride, int32_t begin, int32_t size) {
        const int32_t end = begin + 32 < size ? begin + 32 : size;
        uint8_t previous = line[int64_t(begin ? begin - 1 : 0) * stride];
        uint32_t word = 0;
        for (int32_t p = begin; p < end; ++p) {
            const uint8_t now = line[int64_t(p) * stride];
            word |= uint32_t(now != previous) << (p - begin);
            previous = now;
        }
        return word;
    }

    // Of 32 whole pixels of a row, 16 with each load.
    TFISEG_HD static uint32_t changes(const uint8_t *line, int32_t begin) {
        uint32_t previous = line[begin ? begin - 1 : 0], word = 0;
        for (int32_t k = 0; k < 8; k += 4) {
            const Four<uint32_t> pixels = load_four(reinterpret_cast<const uint32_t *>(line + begin) + k);
            for (int32_t j = 0; j < 4; ++j) {
                const uint32_t now = pixels[j], differs = now ^ (now << 8 | previous);
                const uint32_t tops = (differs | ((differs & 0x7F7F7F7Fu) + 0x7F7F7F7Fu)) & 0x80808080u;  // of bytes that are not 0
                word |= (tops * 0x00204081u >> 28) << (4 * (k + j));  // the product gathers the four bits
                previous = now >> 24;
            }
        }
        return word;
    }
};

// The run of one class around position `at` of a line: the last change at or before it, and the first after it; -1 if there is none.
TFISEG_HD int32_t change_before(const uint32_t *words, int32_t stride, int32_t at) {
    int32_t b = at >> 5;
    uint32_t word = words[int64_t(b) * stride] & (0xFFFFFFFFu >> (31 - (at & 31)));
    while (!word) {
        if (--b < 0) return -1;
        word = words[int64_t(b) * stride];
    }
    return b * 32 + 31 - leading_zeros(word);
}

TFISEG_HD int32_t change_after(const uint32_t *words, int32_t stride, int32_t at, int32_t count) {
    int32_t b = at >> 5;
    uint32_t word = words[int64_t(b) * stride] & ~(0xFFFFFFFFu >> (31 - (at & 31)));
    while (!word) {
        if (++b >= count) return -1;
        word = words[int64_t(b) * stride];
    }
    return b * 32 + trailing_zeros(word);
}

// Distance up or down to the nearest pixel of another class. One item is a few pixels of a column.
struct ColumnSearch {
    static constexpr int32_t kRows = 8;  // divides 32

    Grid grid;
    const uint32_t *columns;
    int16_t *distance;  // out

    TFISEG_HD int32_t down() const { return (grid.h + kRows - 1) / kRows; }
    TFISEG_HD int32_t items() const { return grid.pictures * down() * grid.w; }

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t x = k % grid.w, part = k / grid.w, picture = part / down(), y0 = part % down() * kRows;
        const int32_t last = (y0 + kRows < grid.h ? y0 + kRows : grid.h) - 1;
        const uint32_t *words = columns + int64_t(picture) * grid.column_words() * grid.w + x;
        const uint32_t changes = words[int64_t(y0 >> 5) * grid.w] >> (y0 & 31);  // bit r: of row y0 + r
        const int32_t start = change_before(words, grid.w, y0), end = change_after(words, grid.w, last, grid.column_words());
        // far ones grow by at most kRows
        int32_t up = start < 0 ? kFarColumn : y0 - start, down = end < 0 ? kFarColumn : end - last - 1, nearest[kRows];
        for (int32_t r = 0; r < kRows; ++r) nearest[r] = up = r && (changes >> r & 1u) ? 1 : up + 1;
        int16_t *out = distance + (int64_t(picture) * grid.h + y0) * grid.w + x;
        for (int32_t r = kRows - 1; r >= 0; --r) {
            if (y0 + r > last) continue;
            down = y0 + r < last && (changes >> (r + 1) & 1u) ? 1 : down + 1;
            out[int64_t(r) * grid.w] = int16_t(nearest[r] < down ? nearest[r] : down);
        }
    }
};

// Exact squared distances along rows. The distance of a pixel is the least of (x - s)^2 + column(s)^2 over the sites s of its run, where
// column(s) is 0 on walls, the pixels of another class that end the run. The lower envelope in field.h suits one thread; parallel threads
// search outwards until no nearer site is possible, a block of sites on each side at once, so that a thread waits once for all of them.
// Sites behind a wall are farther than the wall, so they need no check.
struct RowSearch {
    static constexpr int16_t kNoSite = -1, kWall = 1 << 14;  // kWall: added to a site that is a wall; a row has at most 4096 pixels

    Grid grid;
    const uint8_t *cls;
    const uint32_t *rows;
    const int16_t *column;
    int32_t *squared;  // out

    TFISEG_HD void operator()(int32_t i) const {
        int16_t site;
        squared[i] = search(i, site);
    }

    // Squared distance of a pixel, and the site that gives it; kNoSite where its run has none.
    TFISEG_HD int32_t search(int32_t i, int16_t &site) const {
        const int32_t row = i / grid.w, x = i - row * grid.w, own = x / kSites;
        const uint8_t c = cls[i];
        const Block around = load(row, own);
        site = kNoSite;
        if (!c) return 0;
        Nearest nearest = {x, kFarSquared, kNoSite};
        take(around, own, nearest);
        for (int32_t left = own - 1, right = own + 1;; --left, ++right) {
            const int32_t to_left = x - (left * kSites + kSites - 1), to_right = right * kSites - x;
            const bool takes_left = left >= 0 && to_left * to_left < nearest.square;
            const bool takes_right = right * kSites < grid.w && to_right * to_right < nearest.square;
            if (!takes_left && !takes_right) break;
            const Block before = load(row, takes_left ? left : own), behind = load(row, takes_right ? right : own);
            if (takes_left) take(before, left, nearest);
            if (takes_right) take(behind, right, nearest);
        }
        site = nearest.site;
        return nearest.square;
    }

  private:
    static constexpr int32_t kSites = 8;

    struct alignas(16) Distances {
        int16_t values[kSites];
    };

    struct Block {
        Distances columns;
        uint32_t changes;  // bit j: the class changes from the site before to site j
    };

    struct Nearest {
        int32_t x, square;
        int16_t site;

        TFISEG_HD void take_wall(int32_t at) {
            const int32_t other = (at - x) * (at - x);
            site = other < square ? int16_t(at | kWall) : site;
            square = other < square ? other : square;
        }
    };

    // Behind the end of a row, its last pixel is repeated.
    TFISEG_HD Block load(int32_t row, int32_t number) const {
        Block block;
        const int16_t *line = column + int64_t(row) * grid.w;
        block.changes = reinterpret_cast<const uint8_t *>(rows + int64_t(row) * grid.row_words())[number];
        const int32_t first = number * kSites, last = grid.w - 1;
        if (are_whole_blocks(grid.w, kSites)) {
            block.columns = load_whole<Distances>(line + first);
        } else {
            TFISEG_UNROLL
            for (int32_t j = 0; j < kSites; ++j) block.columns.values[j] = line[first + j < last ? first + j : last];
        }
        return block;
    }

    TFISEG_HD static void take(const Block &block, int32_t number, Nearest &nearest) {
        const int32_t first = number * kSites, own = nearest.x - first;  // pixel x is site `own`, if that is one of the block
        const uint32_t until_own = own < 0 ? 0u : own >= kSites ? ~0u : (2u << own) - 1u;
        const uint32_t before = block.changes & until_own, behind = block.changes & ~until_own;
        if (before) nearest.take_wall(first + 30 - leading_zeros(before));
        if (behind) nearest.take_wall(first + trailing_zeros(behind));
        int32_t squares[kSites], least = nearest.square;
        TFISEG_UNROLL
        for (int32_t j = 0; j < kSites; ++j) {  // kFarColumn squared is above kFarSquared
            const int32_t across = first + j - nearest.x, along = block.columns.values[j];
            squares[j] = across * across + along * along;
            least = squares[j] < least ? squares[j] : least;
        }
        if (least == nearest.square) return;
        nearest.square = least;
        TFISEG_UNROLL
        for (int32_t j = 0; j < kSites; ++j) nearest.site = squares[j] == least ? int16_t(first + j) : nearest.site;
    }
};

// Cells of an array, numbered so that 32 threads that run together have cells of few columns and several rows: neighboring rows take about as
// many steps, far columns do not.
struct Cells {
    static constexpr int32_t kAcross = 4, kDown = 8;

    int32_t rows, across;

    TFISEG_HD int32_t groups_across() const { return (across + kAcross - 1) / kAcross; }
    TFISEG_HD int32_t items() const { return (rows + kDown - 1) / kDown * groups_across() * kAcross * kDown; }
    TFISEG_HD int32_t row(int32_t k) const { return k / (kAcross * kDown) / groups_across() * kDown + k / kAcross % kDown; }
    TFISEG_HD int32_t column(int32_t k) const { return k / (kAcross * kDown) % groups_across() * kAcross + k % kAcross; }
};

// On large grids, the sites of few pixels of a row are searched first, then the distances of all. Sites do not cross: the difference between
// two sites' squares grows evenly along a row, so a pixel between two others has its nearest site between theirs.
struct RowSamples {
    static constexpr int32_t kStride = 16;  // divides 32

    RowSearch search;
    int16_t *sites;  // out: (pictures, h, across)

    TFISEG_HD int32_t across() const { return (search.grid.w + kStride - 1) / kStride; }
    TFISEG_HD Cells cells() const { return {search.grid.pictures * search.grid.h, across()}; }

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t row = cells().row(k), column = cells().column(k);
        if (row < cells().rows && column < across()) search.search(row * search.grid.w + column * kStride, sites[row * across() + column]);
    }
};

// One item is a few neighboring pixels, for all of which a site is loaded once.
struct RowBetween {
    static constexpr int32_t kPixels = 8;  // divides RowSamples::kStride

    RowSamples samples;

    TFISEG_HD Cells cells() const { return {samples.cells().rows, (samples.search.grid.w + kPixels - 1) / kPixels}; }

    TFISEG_HD void operator()(int32_t k) const {
        constexpr int32_t kStride = RowSamples::kStride;
        const RowSearch &search = samples.search;
        const Grid &grid = search.grid;
        const int32_t row = cells().row(k), x0 = cells().column(k) * kPixels, i = row * grid.w + x0;
        if (row >= cells().rows || x0 >= grid.w) return;
        const int32_t sample = x0 / kStride, before = sample * kStride, behind = before + kStride, begin = x0 - before;
        // bit r: the class changes from pixel before + r - 1 to before + r; up to the next sample
        const uint32_t *words = search.rows + int64_t(row) * grid.row_words() + (before >> 5);
        uint32_t changes = words[0] >> (before & 31);
        if (behind % 32 == 0 && behind < grid.w) changes |= words[1] << (kStride - 1) << 1;
        changes &= (2u << kStride) - 2u;
        const int32_t count = x0 + kPixels < grid.w ? kPixels : grid.w - x0;
        const uint8_t *cls = search.cls + i;
        int32_t out[kPixels] = {};
        for (int32_t first = 0, next; first < count; first = next) {  // pixels of one class
            const uint32_t later = changes >> (begin + first) >> 1, earlier = changes & ((2u << (begin + first)) - 1u);
            const int32_t to_change = later ? trailing_zeros(later) + 1 : kStride;
            next = first + to_change < count ? first + to_change : count;
            if (!cls[first]) continue;
            const int16_t *sites = samples.sites + int64_t(row) * samples.across() + sample;
            const int32_t a = earlier ? (before + 30 - leading_zeros(earlier)) | RowSearch::kWall : sites[0];
            const int32_t b = later ? (x0 + first + to_change) | RowSearch::kWall : behind < grid.w ? sites[1] : grid.w - 1;
            take_nearest(row, x0, a, b, first, next, out);
        }
        if (grid.w % kPixels == 0) {
            for (int32_t j = 0; j < kPixels; j += 4) store_four(search.squared + i + j, {out[j], out[j + 1], out[j + 2], out[j + 3]});
        } else {
            for (int32_t j = 0; j < count; ++j) search.squared[i + j] = out[j];
        }
    }

  private:
    // Sites [low, high], and others around, four with each load: a site that is none of the pixels' is farther than theirs.
    template <class Take>
    TFISEG_HD void take_sites(const int16_t *column, int32_t low, int32_t high, const Take &take) const {
        if (!are_whole_blocks(samples.search.grid.w, 4)) {
            for (int32_t s = low; s <= high; ++s) take(s, column[s]);
            return;
        }
        for (int32_t s = low & ~3; s <= high; s += 4) {
            const Four<int16_t> along = load_four(column + s);
            TFISEG_UNROLL
            for (int32_t j = 0; j < 4; ++j) take(s + j, along[j]);
        }
    }

    // The least squares of pixels x0 + [first, next) over the sites between a and b.
    TFISEG_HD void take_nearest(int32_t row, int32_t x0, int32_t a, int32_t b, int32_t first, int32_t next, int32_t (&out)[kPixels]) const {
        int32_t best[kPixels];  // less j^2, since (x0 + j - s)^2 = (x0 - s)^2 + 2 j (x0 - s) + j^2
        for (int32_t j = 0; j < kPixels; ++j) best[j] = kFarSquared - j * j;
        const auto take = [&](int32_t site, int32_t along) {
            const int32_t across = x0 - site;
            int32_t square = across * across + along * along;
            for (int32_t j = 0; j < kPixels; ++j, square += 2 * across) best[j] = square < best[j] ? square : best[j];
        };
        if (a != RowSearch::kNoSite && b != RowSearch::kNoSite) {
            const int32_t at_a = a & ~RowSearch::kWall, at_b = b & ~RowSearch::kWall;
            if (a != at_a) take(at_a, 0);
            if (b != at_b) take(at_b, 0);
            const int32_t low = at_a < at_b ? at_a + (a != at_a) : at_b + (b != at_b), high = at_a < at_b ? at_b - (b != at_b) : at_a - (a != at_a);
            const int16_t *column = samples.search.column + int64_t(row) * samples.search.grid.w;
            take_sites(column, low, high, take);
        }
        for (int32_t j = 0; j < kPixels; ++j)
            if (j >= first && j < next) out[j] = best[j] + j * j;
    }
};

static_assert(int32_t(kFarColumn) * kFarColumn > kFarSquared, "a far column must never be nearest");

// Links every pixel to its highest neighbor (see Ascent), then to where these links leave its tile, so that following them over the picture
// takes few hops. A tile is a square of pixels whose threads share memory: they load it once, with a frame of one pixel, and write the links
// once. Steps of a tile have a barrier between them.
struct AscentLinks {
    static constexpr int32_t kSide = 32, kItems = kSide * kSide;
    static constexpr int32_t kSteps = 3;
    static constexpr int32_t kFramed = kSide + 2, kCells = kFramed * kFramed;  // with the frame
    static constexpr int32_t kLoads = 4;  // cells that a thread loads
    static_assert(kCells % kLoads == 0, "every thread that loads must load as many cells");

    struct Shared {
        int32_t squared[kCells];  // -1 outside the picture
        int16_t next[kCells];     // the highest neighbor; in the frame, at summits and in the background, the cell itself
        uint8_t cls[kCells];
        int32_t corner;
    };

    Grid grid;
    const uint8_t *cls;
    const int32_t *squared;
    int32_t *link;  // out: of countable pixels

    TFISEG_HD int32_t tiles_across() const { return (grid.w + kSide - 1) / kSide; }
    TFISEG_HD int32_t tiles_down() const { return (grid.h + kSide - 1) / kSide; }
    TFISEG_HD int64_t tiles() const { return int64_t(grid.pictures) * tiles_down() * tiles_across(); }

    TFISEG_HD void operator()(Shared &shared, int64_t number, int32_t step, int32_t item) const {
        const int32_t own = (item / kSide + 1) * kFramed + item % kSide + 1;
        if (step == 0) {
            if (item < kCells / kLoads) load(shared, number, item);
        } else if (!shared.cls[own]) {
            return;
        } else if (step == 1) {
            const bool is_inside = Ascent::is_inside(shared.squared[own]);  // then all neighbors in the picture are of its class
            shared.next[own] = int16_t(own + (is_inside ? highest<true>(shared, own) : highest<false>(shared, own)));
        } else {
            int32_t last = own, before;
            do {  // the last cell is linked to itself, so four hops need one comparison
                before = shared.next[last];
                last = shared.next[shared.next[shared.next[before]]];
            } while (last != before);
            const int32_t first = shared.corner;
            link[first + own / kFramed * grid.w + own % kFramed] = first + last / kFramed * grid.w + last % kFramed;
        }
    }

  private:
    // Every (kCells / kLoads)-th cell, all of which are loaded before any is used.
    TFISEG_HD void load(Shared &shared, int64_t number, int32_t first) const {
        const int32_t row = int32_t(number) / tiles_across(), x0 = (int32_t(number) - row * tiles_across()) * kSide - 1;
        const int32_t picture = row / tiles_down(), y0 = (row - picture * tiles_down()) * kSide - 1;
        const int32_t corner = picture * grid.plane() + y0 * grid.w + x0;  // the pixel of the first cell, if pictures had no end
        if (first == 0) shared.corner = corner;
        uint8_t c[kLoads];
        int32_t values[kLoads];
        TFISEG_UNROLL
        for (int32_t j = 0; j < kLoads; ++j) {
            const int32_t cell = first + j * (kCells / kLoads), down = cell / kFramed, right = cell % kFramed;
            const bool is_in = uint32_t(y0 + down) < uint32_t(grid.h) && uint32_t(x0 + right) < uint32_t(grid.w);
            const int32_t i = corner + down * grid.w + right;
            c[j] = is_in ? cls[i] : uint8_t(0);
            values[j] = is_in ? squared[i] : -1;
        }
        TFISEG_UNROLL
        for (int32_t j = 0; j < kLoads; ++j) {
            const int32_t cell = first + j * (kCells / kLoads);
            shared.cls[cell] = c[j];
            shared.squared[cell] = values[j];
            shared.next[cell] = int16_t(cell);
        }
    }

    // The way from a cell to the highest of its neighbors of its class; the first of equal ones.
    template <bool kIsInside>
    TFISEG_HD static int32_t highest(const Shared &shared, int32_t own) {
        int32_t best = -1, way = 0;
        TFISEG_UNROLL
        for (int32_t k = 0; k < 9; ++k) {
            const int32_t step = (k / 3 - 1) * kFramed + k % 3 - 1, value = shared.squared[own + step];
            const bool is_higher = value > best && (kIsInside || shared.cls[own + step] == shared.cls[own]);
            best = is_higher ? value : best;
            way = is_higher ? step : way;
        }
        return way;
    }
};

// A given displacement field: unites each pixel with its target, and centers that touch.
struct GivenLinks {
    Grid grid;
    const uint8_t *cls;
    Values displacement;
    float radius_squared;
    int32_t *link;  // in, out

    TFISEG_HD void operator()(int32_t i) const {
        if (!cls[i]) return;
        const int32_t plane = grid.plane(), picture = i / plane, start = picture * plane, p = i - start;
        const Values dy = displacement + int64_t(picture) * 2 * plane;
        const GivenTarget<Values> target = {cls + start, dy, dy + plane, grid.h, grid.w};
        unite(link, i, start + target(p / grid.w, p % grid.w));
        if (!target.is_centre(p, radius_squared)) return;
        for (int32_t d = 0; d < 4; ++d) {
            const int32_t j = grid.later_neighbour(i, d);
            if (j >= 0 && cls[j] == cls[i] && target.is_centre(j - start, radius_squared)) unite(link, i, j);
        }
    }
};

// Links every pixel to its root, and lists the roots. Basins are numbered by their places in the list. One item is a few neighboring pixels,
// whose links a thread follows at once.
struct FollowLinks {
    static constexpr int32_t kPixels = 4;

    Grid grid;
    const uint8_t *cls;
    int32_t *link;           // in, out
    int32_t *roots, *place;  // out; place: at roots
    uint64_t *best;          // out, by basin: 0; or NULL
    Counters *counters;

    TFISEG_HD int32_t items() const { return (grid.pixels() + kPixels - 1) / kPixels; }

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t first = k * kPixels, left = grid.pixels() - first, count = left < kPixels ? left : kPixels;
        Four<uint8_t> c = {};
        Four<int32_t> linked = {};
        if (count == kPixels) {
            c = load_four(cls + first);
            linked = peek_four(link + first);
        } else {
            TFISEG_UNROLL
            for (int32_t j = 0; j < kPixels; ++j) {  // without a variable index, which would need memory
                if (j >= count) continue;
                c[j] = cls[first + j];
                linked[j] = peek(link + first + j);
            }
        }
        Four<int32_t> root = linked;
        follow(c, root);
        list_roots(first, c, root);
        if (!differs(root, linked)) return;  // else shortens the way of others, too
        if (count == kPixels) {
            put_four(link + first, root);
        } else {
            TFISEG_UNROLL
            for (int32_t j = 0; j < kPixels; ++j)
                if (j < count) put(link + first + j, root[j]);
        }
    }

  private:
    TFISEG_HD static bool differs(const Four<int32_t> &a, const Four<int32_t> &b) {
        return a[0] != b[0] || a[1] != b[1] || a[2] != b[2] || a[3] != b[3];
    }

    TFISEG_HD void follow(const Four<uint8_t> &c, Four<int32_t> &root) const {
        bool moves[kPixels] = {c[0] != 0, c[1] != 0, c[2] != 0, c[3] != 0};
        while (moves[0] || moves[1] || moves[2] || moves[3]) {
            int32_t next[kPixels];
            TFISEG_UNROLL
            for (int32_t j = 0; j < kPixels; ++j) next[j] = moves[j] ? peek(link + root[j]) : root[j];
            TFISEG_UNROLL
            for (int32_t j = 0; j < kPixels; ++j) {
                moves[j] = next[j] != root[j];
                root[j] = next[j];
            }
        }
    }

    TFISEG_HD void list_roots(int32_t first, const Four<uint8_t> &c, const Four<int32_t> &root) const {
        TFISEG_UNROLL
        for (int32_t j = 0; j < kPixels; ++j) {
            if (!c[j] || root[j] != first + j) continue;
            const int32_t k = next_place(&counters->roots);
            roots[k] = first + j;
            place[first + j] = k;
            if (best) best[k] = 0;
        }
    }
};

// Lists the pixels that touch another basin of their class. One item is a few neighboring pixels of a row.
struct ListContacts {
    static constexpr int32_t kPixels = 4;

    Grid grid;
    const uint8_t *cls;
    const int32_t *link;
    int32_t *contacts;  // out
    Counters *counters;

    TFISEG_HD int32_t across() const { return (grid.w + kPixels - 1) / kPixels; }
    TFISEG_HD int32_t items() const { return grid.pictures * grid.h * across(); }

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t row = k / across(), x = k % across() * kPixels;
        const Pixels own = load(row, x), below = load((row + 1) % grid.h ? row + 1 : row, x);  // in the last row, these touch nothing new
        TFISEG_UNROLL
        for (int32_t j = 1; j <= kPixels; ++j) {
            const auto touches = [&](const Pixels &pixels, int32_t at) { return pixels.cls[at] == own.cls[j] && pixels.link[at] != own.link[j]; };
            const bool is_contact = touches(own, j + 1) || touches(below, j - 1) || touches(below, j) || touches(below, j + 1);
            if (own.cls[j] && is_contact) append(contacts, &counters->contacts, row * grid.w + x + j - 1);
        }
    }

  private:
    // Pixels x - 1 to x + kPixels of a row; those outside the picture have class 0.
    struct Pixels {
        uint8_t cls[kPixels + 2];
        int32_t link[kPixels + 2];
    };

    TFISEG_HD Pixels load(int32_t row, int32_t x) const {
        Pixels pixels;
        const int32_t first = row * grid.w;
        const auto load_pixel = [&](int32_t j) {  // outside, another one: no load waits for a decision
            const int32_t at = x + j - 1 < 0 ? 0 : x + j - 1 < grid.w ? x + j - 1 : grid.w - 1;
            const uint8_t c = cls[first + at];
            pixels.cls[j] = at == x + j - 1 ? c : uint8_t(0);
            pixels.link[j] = link[first + at];
        };
        load_pixel(0);
        if (are_whole_blocks(grid.w, kPixels)) {
            const Four<uint8_t> c = load_four(cls + first + x);
            const Four<int32_t> links = load_four(link + first + x);
            TFISEG_UNROLL
            for (int32_t j = 0; j < kPixels; ++j) {
                pixels.cls[j + 1] = c[j];
                pixels.link[j + 1] = links[j];
            }
        } else {
            TFISEG_UNROLL
            for (int32_t j = 1; j <= kPixels; ++j) load_pixel(j);
        }
        load_pixel(kPixels + 1);
        return pixels;
    }
};

// The neighbors E, SW, S and SE of a pixel that touches another basin.
struct TouchingPixel {
    int32_t pixel, own;  // own: root of its basin
    int32_t neighbor[4], root[4];  // roots of other basins; else the own one

    TFISEG_HD TouchingPixel(const Grid &grid, const uint8_t *cls, const int32_t *link, int32_t i) : pixel(i), own(link[i]) {
        const uint8_t c = cls[i];
        TFISEG_UNROLL
        for (int32_t d = 0; d < 4; ++d) {  // without a branch for the class: all of them are loaded together
            const int32_t j = grid.later_neighbour(i, d);
            neighbor[d] = j < 0 ? i : j;
            const int32_t there = link[neighbor[d]];
            root[d] = cls[neighbor[d]] == c ? there : own;
        }
    }
};

// Enters the pairs of basins that touch. One item is a pixel that touches another basin.
struct EnterContacts {
    Grid grid;
    const uint8_t *cls;
    const int32_t *link, *place, *contacts;
    EdgeSet set;

    TFISEG_HD void operator()(int32_t k) const {
        const TouchingPixel contact(grid, cls, link, contacts[k]);
        int32_t basins[4];
        const int32_t own = place[contact.own];
        TFISEG_UNROLL
        for (int32_t d = 0; d < 4; ++d) basins[d] = place[contact.root[d]];
        TFISEG_UNROLL
        for (int32_t d = 0; d < 4; ++d)
            if (basins[d] != own && (d == 0 || basins[d] != basins[d > 0 ? d - 1 : 0])) set.enter_basins(own, basins[d]);
    }
};

// Sums the evidence of the edges between basins. One item is a pixel that touches another basin.
struct SumContacts {
    Grid grid;
    const uint8_t *cls;
    const int32_t *link, *place, *contacts, *squared;  // squared: NULL with a given field
    Values boundary;
    EdgeSet set;
    uint64_t *best;  // in, out, by basin: highest contact; or NULL

    TFISEG_HD void operator()(int32_t k) const {
        const TouchingPixel contact(grid, cls, link, contacts[k]);
        int32_t basins[4];
        Edge evidence[4];
        const int32_t i = contact.pixel, own = place[contact.own];
        TFISEG_UNROLL
        for (int32_t d = 0; d < 4; ++d) {
            const int32_t j = contact.neighbor[d];
            basins[d] = place[contact.root[d]];
            evidence[d].contact = 1;
            if (squared) evidence[d].saddle = contact_key(squared[i] < squared[j] ? squared[i] : squared[j], i, d);
            if (boundary.data) {
                const int32_t a = to_fixed(boundary[i]), b = to_fixed(boundary[j]);
                evidence[d].boundary_sum = a > b ? a : b;
            }
        }
        TFISEG_UNROLL
        for (int32_t d = 0; d < 4; ++d) {  // the last of equal ones has their sum
            bool is_last = basins[d] != own;
            TFISEG_UNROLL
            for (int32_t later = d + 1; later < 4; ++later) {
                if (!is_last || basins[later] != basins[d]) continue;
                evidence[later].absorb(evidence[d]);
                is_last = false;
            }
            if (is_last) add_sum(own, basins[d], evidence[d]);
        }
    }

  private:
    TFISEG_HD void add_sum(int32_t own, int32_t other, const Edge &sum) const {
        const int32_t edge = set.at_basins(own, other);
        if (edge < 0) return;
        set.absorb(edge, sum);
        if (!best) return;
        for (const int32_t basin : {own, other})
            if (peek(best + basin) < uint64_t(sum.saddle)) raise_to(best + basin, uint64_t(sum.saddle));
    }
};

}  // namespace tfiseg
