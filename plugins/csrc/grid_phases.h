// The operator for thousands of threads, first half: logits -> classes -> distances -> basins. One struct is one phase, called once
// per item in any order, with a barrier between phases. Nothing here is CUDA: pipeline.h gives the order, and an executor runs the phases.
//
// Pixels of a batch have one numbering: i = (picture * h + y) * w + x.
#pragma once
#include <cmath>

#include "field.h"
#include "merge.h"
#include "values.h"

namespace tfiseg {

constexpr uint64_t kFinal = ~uint64_t(0);
constexpr uint64_t kNoKey = ~uint64_t(0);

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
    int32_t noise_progress[3] = {0, 0, 0}, merge_progress[3] = {0, 0, 0}, growth_progress[3] = {0, 0, 0};
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
        const int32_t most = key_slots > bit_words ? key_slots : bit_words;
        return most > grid.pixels() ? most : grid.pixels();
    }

    TFISEG_HD void operator()(int32_t i) const {
        if (i == 0) {
            *stored = settings;
            *counters = Counters();
        }
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
            const int32_t m = k - column_items();
            rows[m] = changes(cls + int64_t(m / grid.row_words()) * grid.w, 1, m % grid.row_words() * 32, grid.w);
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

// Distance up or down to the nearest pixel of another class.
struct ColumnSearch {
    Grid grid;
    const uint8_t *cls;
    const uint32_t *columns;
    int16_t *distance;  // out, countable pixels only

    TFISEG_HD void operator()(int32_t i) const {
        if (!cls[i]) return;
        const int32_t x = i % grid.w, row = i / grid.w, y = row % grid.h;
        const uint32_t *words = columns + int64_t(row / grid.h) * grid.column_words() * grid.w + x;
        const int32_t start = change_before(words, grid.w, y), end = change_after(words, grid.w, y, grid.column_words());
        const int32_t up = start < 0 ? kFarColumn : y - start + 1, down = end < 0 ? kFarColumn : end - y;
        distance[i] = int16_t(up < down ? up : down);
    }
};

// Exact squared distance of one pixel: searches the columns of its run outwards until no nearer one is possible. The work grows with the
// distance, which suits parallel threads; the lower envelope in field.h suits one thread.
struct RowSearch {
    Grid grid;
    const uint8_t *cls;
    const uint32_t *rows;
    const int16_t *column;
    int32_t *squared;  // out

    TFISEG_HD void operator()(int32_t i) const {
        if (!cls[i]) {
            squared[i] = 0;
            return;
        }
        const int32_t x = i % grid.w, row = i / grid.w;
        const uint32_t *words = rows + int64_t(row) * grid.row_words();
        const int32_t start = change_before(words, 1, x), end = change_after(words, 1, x, grid.row_words());
        const int32_t left = start < 0 ? x : x - start, right = (end < 0 ? grid.w : end) - 1 - x;
        int32_t best = kFarSquared;
        if (start >= 0) best = nearer(best, left + 1, 0);
        if (end >= 0) best = nearer(best, right + 1, 0);
        best = nearer(best, 0, column[i]);
        const int32_t most = left > right ? left : right;
        for (int32_t k = 1; k <= most && k * k < best; ++k) {
            if (k <= left) best = nearer(best, k, column[i - k]);
            if (k <= right) best = nearer(best, k, column[i + k]);
        }
        squared[i] = best;
    }

    TFISEG_HD static int32_t nearer(int32_t best, int32_t across, int32_t along) {
        const int32_t square = across * across + along * along;
        return along < kFarColumn && square < best ? square : best;
    }
};

struct AscentLinks {
    Grid grid;
    Ascent ascent;

    TFISEG_HD void operator()(int32_t i) const {
        if (!ascent.cls[i]) return;
        const int32_t x = i % grid.w, y = i / grid.w % grid.h;
        const bool framed = x > 0 && x < grid.w - 1 && y > 0 && y < grid.h - 1;
        if (framed && Ascent::is_inside(ascent.squared[i])) {
            ascent.inside(i);
        } else {
            ascent.outline(i, y, x);
        }
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

// Links every pixel to its root, and lists the roots. place: of a root in the list.
struct FollowLinks {
    const uint8_t *cls;
    int32_t *link;       // in, out
    int32_t *roots, *place;  // out
    Counters *counters;

    TFISEG_HD void operator()(int32_t i) const {
        if (!cls[i] || find_and_compress(link, i) != i) return;
        const int32_t k = fetch_add(&counters->roots, 1);
        roots[k] = i;
        place[i] = k;
    }
};

// Lists the pixels that touch another basin of their class.
struct FindContacts {
    Grid grid;
    const uint8_t *cls;
    const int32_t *link;
    int32_t *contacts;  // out
    Counters *counters;

    TFISEG_HD void operator()(int32_t i) const {
        if (!cls[i]) return;
        bool touches = false;
        for (int32_t d = 0; d < 4; ++d) {
            const int32_t j = grid.later_neighbour(i, d);
            touches = touches || (j >= 0 && cls[j] == cls[i] && link[j] != link[i]);
        }
        if (touches) append(contacts, &counters->contacts, i);
    }
};

// Merges noise (is_noise) in rounds, with the same result as one contact at a time, highest saddle first. In each round, every basin reads
// its highest contact. If the contact leads to a higher basin, the basin merges into it if it is noise, and is final otherwise: its other
// contacts are lower, and its height does not change. If the contact leads to a lower basin that is not decided yet, it waits. The highest
// contact of all can always be decided, so every round decides something, and the order of threads does not matter.
struct NoiseRounds {
    Grid grid;
    const uint8_t *cls;
    const int32_t *squared;
    int32_t *link;  // in, out: roots are basins' summits
    const int32_t *roots, *place, *contacts;
    int32_t *work[2];
    uint64_t *best;  // by place: highest contact, as saddle and (inverted) pixel pair
    Counters *counters;

    static constexpr int32_t kPhases = 3, kThreads = 1024;

    TFISEG_HD int32_t items(int32_t phase, int32_t round) const {
        if (phase == 1) return round ? counters->work[round & 1] : counters->contacts;
        return counters->roots > 0 ? counters->roots : 1;
    }

    TFISEG_HD bool has_next(int32_t round) const { return peek(&counters->noise_progress[round % 3]) != 0; }

    TFISEG_HD void operator()(int32_t phase, int32_t round, int32_t k) const {
        if (phase == 0) {
            if (k == 0) {
                counters->noise_progress[(round + 1) % 3] = 0;
                counters->work[(round + 1) & 1] = 0;
            }
            if (k < counters->roots && link[roots[k]] == roots[k] && (round == 0 || best[k] != kFinal)) best[k] = 0;
        } else if (phase == 1) {
            look(round ? work[round & 1][k] : contacts[k], round);
        } else if (k < counters->roots) {
            decide(roots[k], k, round);
        }
    }

    TFISEG_HD bool is_lower(int32_t a, int32_t b) const {
        return squared[a] < squared[b] || (squared[a] == squared[b] && a > b);
    }

    TFISEG_HD void look(int32_t i, int32_t round) const {
        bool open = false;
        for (int32_t d = 0; d < 4; ++d) {
            const int32_t j = grid.later_neighbour(i, d);
            if (j < 0 || cls[j] != cls[i]) continue;
            const int32_t a = find_and_compress(link, i), b = find_and_compress(link, j);
            if (a == b) continue;
            const bool a_low = is_lower(a, b);
            uint64_t *low = best + place[a_low ? a : b], *high = best + place[a_low ? b : a];
            if (peek(low) == kFinal) continue;
            open = true;
            const int32_t saddle = squared[i] < squared[j] ? squared[i] : squared[j];
            const uint64_t key = uint64_t(saddle) << 32 | (0xFFFFFFFFu - (uint32_t(i) * 4u + uint32_t(d)));
            if (peek(low) < key) raise_to(low, key);
            if (peek(high) < key) raise_to(high, key);  // one that stands has the highest value there is
        }
        if (open) append(work[(round + 1) & 1], &counters->work[(round + 1) & 1], i);
    }

    TFISEG_HD void decide(int32_t root, int32_t k, int32_t round) const {
        if (peek(link + root) != root || best[k] == kFinal || best[k] == 0) return;
        const uint32_t pair = 0xFFFFFFFFu - uint32_t(best[k]);
        const int32_t i = int32_t(pair >> 2), j = grid.later_neighbour(i, int32_t(pair & 3u));
        const int32_t a = find_root(link, i), b = find_root(link, j), other = a == root ? b : a;
        // others go under in this very phase: whatever `other` went under is higher still, and the answer is the same
        if (other == root || is_lower(other, root)) return;
        if (is_noise(int64_t(best[k] >> 32), squared[root])) {
            put(link + root, other);
        } else {
            best[k] = kFinal;
        }
        put(&counters->noise_progress[round % 3], 1);
    }
};

}  // namespace tfiseg
