// A second look at unions ("pieces") that a boundary crosses where shape has no neck, as people arm in arm.
//
// What the boundary leaves of a piece is clustered by its shape anew, with a rule of its own. Parts of at least a fifth of the piece are
// objects if there are two; they grow over the rest of it, slower where the boundary is likely. As in sharpen.h, one struct is one phase;
// the CPU shares `Inside` and grows by a queue (parts_cpu.h): where nothing changes any more, both end at the same.
#pragma once
#include "graph_phases.h"
#include "tfiseg.h"

namespace tfiseg {

constexpr float kCalm = 0.5f;  // probability of a boundary up to which a pixel isn't on it
constexpr int64_t kCrossedPixels = 8, kLeftPixels = 64;  // of a piece: on boundaries, and beside them
constexpr int64_t kPartShares = 5;

TFISEG_HD bool is_crossed(int64_t area, int64_t left) { return area - left >= kCrossedPixels && left >= kLeftPixels; }
TFISEG_HD bool is_part(int64_t area, int64_t of_piece) { return area * kPartShares >= of_piece; }
// The larger part first, of equal ones the one whose first pixel comes first.
TFISEG_HD uint64_t size_key(const Region &part) { return uint64_t(part.area) << 32 | (0xFFFFFFFFu - uint32_t(part.first)); }

// The second look as a problem of its own: class map and evidence, by the part rule.
inline tfiseg_problem second_look(const tfiseg_problem &p, const uint8_t *inside) {
    tfiseg_problem again = p;
    again.class_map = inside;
    again.logits = again.displacement = again.scores = nullptr;
    again.out_height = p.height;
    again.out_width = p.width;
    again.evidence_rule = p.part_rule;
    again.evidence_hidden = p.part_hidden;
    again.part_rule = nullptr;
    again.part_hidden = again.sharpen = 0;
    again.boundary_stride = 1;
    return again;
}

// What is counted of each piece.
struct PieceCounts {
    int32_t *left, *kept, *largest;
    uint64_t *largest_key;

    TFISEG_HD void operator()(int32_t r) const {
        left[r] = kept[r] = largest[r] = 0;
        largest_key[r] = 0;
    }
};

// Pieces as they are now, and their pixels on no boundary. One item is a strip.
struct CountLeft {
    Grid grid;
    const int32_t *map;
    Values boundary;
    int32_t *piece;  // out
    int32_t *left;   // in, out

    TFISEG_HD int32_t strips() const { return strips_of(grid); }

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t row = k / strips(), begin = k % strips() * kStrip;
        const int32_t end = begin + kStrip < grid.w ? begin + kStrip : grid.w;
        int32_t number = 0, count = 0;
        for (int32_t i = row * grid.w + begin; i < row * grid.w + end; ++i) {
            piece[i] = map[i];
            if (!map[i] || !(boundary[i] <= kCalm)) continue;
            if (map[i] != number) {
                if (count) fetch_add(left + number - 1, count);
                number = map[i];
                count = 0;
            }
            ++count;
        }
        if (count) fetch_add(left + number - 1, count);
    }
};

// Class of what boundaries leave of a crossed piece, 0 elsewhere; and on a line between pieces, so that no two of them touch.
struct Inside {
    Grid grid;
    const uint8_t *cls;
    const int32_t *piece;  // from 1, 0 = none
    const Region *pieces;
    const int32_t *left;  // pixels of each piece that are on no boundary
    Values boundary;
    uint8_t *inside;  // out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t its = piece[i];
        bool in = its && is_crossed(pieces[its - 1].area, left[its - 1]) && boundary[i] <= kCalm;
        for (int32_t d = 0; in && d < 4; ++d) {
            const int32_t j = grid.later_neighbour(i, d);
            in = j < 0 || !piece[j] || piece[j] == its || cls[j] != cls[i];
        }
        inside[i] = in ? cls[i] : uint8_t(0);
    }
};

// How many parts each piece has, and which is the largest. One item is a region of the second look.
struct CountParts {
    const Region *parts;
    const int32_t *into, *piece;
    const Region *pieces;
    int32_t *kept;          // in, out
    uint64_t *largest_key;  // in, out
    const PictureState *again_states;
    PictureState *states;  // out
    int32_t plane;
    const int32_t *again_overflow;
    int32_t *overflow;  // out

    TFISEG_HD void operator()(int32_t r) const {
        if (*again_overflow) put(overflow, 1);
        const int64_t picture = parts[r].first / plane;
        if (again_states[picture].rescored > merge_budget(plane)) put(&states[picture].is_stopped, 1);
        if (into[r] != r) return;
        const int32_t its = piece[parts[r].first] - 1;
        if (!is_part(parts[r].area, pieces[its].area)) return;
        fetch_add(kept + its, 1);
        raise_to(largest_key + its, size_key(parts[r]));
    }
};

// Parts become regions beside the pieces.
struct TakeParts {
    const Region *parts;
    const int32_t *into, *piece;
    const int32_t *kept;
    const uint64_t *largest_key;
    int32_t capacity;
    Region *regions;     // in, out
    int32_t *united;     // out: each part is a union
    int32_t *largest;    // out, by piece: its largest part's number, from 1
    int32_t *number_of;  // out, by region of the second look: its part's number, from 1; 0 = none
    Counters *counters;

    TFISEG_HD void operator()(int32_t r) const {
        number_of[r] = 0;
        if (into[r] != r) return;
        const int32_t its = piece[parts[r].first] - 1;
        if (kept[its] < 2 || !is_part(parts[r].area, regions[its].area)) return;
        const int32_t slot = fetch_add(&counters->regions, 1);
        if (slot >= capacity) {
            put(&counters->overflow, 1);
            return;
        }
        regions[slot] = parts[r];
        united[slot] = slot;
        number_of[r] = slot + 1;
        if (size_key(parts[r]) == largest_key[its]) largest[its] = slot + 1;
    }
};

// Parts in place of their pieces; what is in none is to be grown over.
struct PlaceParts {
    const int32_t *piece, *kept, *part, *into, *number_of;  // part: region of the second look, from 1, 0 = none
    int32_t *map, *other;   // out
    int32_t *distance[2];   // out
    int32_t *list, *count;  // out

    TFISEG_HD void operator()(int32_t i) const {
        if (piece[i] && kept[piece[i] - 1] > 1) {
            map[i] = part[i] ? number_of[find_root(into, part[i] - 1)] : 0;
        }
        const bool free = piece[i] && !map[i];
        other[i] = map[i];
        distance[0][i] = distance[1][i] = free ? kUnreached : 0;
        if (free) append(list, count, i);
    }
};

// Parts grow, round by round, until nothing changes: both maps are the same then.
struct GrowthRounds {
    Spread<Values, int32_t> spread[2];
    const int32_t *list;
    Counters *counters;

    static constexpr int32_t kPhases = 2, kThreads = 1024;

    TFISEG_HD int32_t items(int32_t phase, int32_t) const { return phase ? 1 : counters->overflow ? 0 : counters->rest; }
    // A path over a piece has fewer steps than the picture has pixels, so the bound never shows: it is for what must not happen.
    TFISEG_HD bool again(int32_t round) const { return peek(&counters->growth_again[round % 3]) != 0 && round < spread[0].h * spread[0].w; }

    TFISEG_HD void operator()(int32_t phase, int32_t round, int32_t k) const {
        if (phase) {
            counters->growth_again[(round + 1) % 3] = 0;
            return;
        }
        const Spread<Values, int32_t> &step = spread[round & 1];
        const int32_t i = list[k];
        step(i);
        if (step.next_map[i] != step.map[i] || step.next_distance[i] != step.distance[i]) put(&counters->growth_again[round % 3], 1);
    }
};

// What no part reaches belongs to the largest.
struct LeaveToLargest {
    const int32_t *list, *piece, *distance, *largest;
    int32_t *map;  // out

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t i = list[k];
        if (distance[i] == kUnreached) map[i] = largest[piece[i] - 1];
    }
};

}  // namespace tfiseg
