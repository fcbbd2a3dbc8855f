// The second pass: unions ("pieces") that a boundary crosses where shape has no neck, like people arm in arm, are cut into parts.
//
// What the boundary leaves of a piece, its interior, is clustered by shape again, with a rule of its own (part_rule). Parts of at least a
// fifth of the piece are objects if there are two or more; they grow over the rest of the piece, slower where the boundary is likely. As in
// sharpen.h, one struct is one phase. The CPU shares FindInterior and grows parts from a queue (parts_cpu.h), with the same result.
#pragma once
#include "graph_phases.h"
#include "tfiseg.h"

namespace tfiseg {

constexpr float kBoundaryThreshold = 0.5f;  // a pixel is on a boundary where its probability is above this
constexpr int64_t kCrossedPixels = 8, kInteriorPixels = 64;  // of a piece: at least so many on boundaries, and beside them
constexpr int64_t kPartShares = 5;

TFISEG_HD bool is_crossed(int64_t area, int64_t interior_area) { return area - interior_area >= kCrossedPixels && interior_area >= kInteriorPixels; }
TFISEG_HD bool is_part(int64_t area, int64_t of_piece) { return area * kPartShares >= of_piece; }
// The larger part first, of equal ones the one whose first pixel comes first.
TFISEG_HD uint64_t size_key(const Region &part) { return uint64_t(part.area) << 32 | (0xFFFFFFFFu - uint32_t(part.first)); }

// The problem of the second pass: the interiors as a class map, the same evidence, and the part rule.
inline tfiseg_problem second_pass_problem(const tfiseg_problem &p, const uint8_t *inside) {
    tfiseg_problem second = p;
    second.class_map = inside;
    second.logits = second.displacement = second.scores = nullptr;
    second.out_height = p.height;
    second.out_width = p.width;
    second.evidence_rule = p.part_rule;
    second.evidence_hidden = p.part_hidden;
    second.part_rule = nullptr;
    second.part_hidden = second.sharpen = 0;
    second.boundary_stride = 1;
    return second;
}

// Clears the counts of each piece.
struct ClearPieceCounts {
    int32_t *interior_area, *part_count, *largest;
    uint64_t *largest_key;

    TFISEG_HD void operator()(int32_t r) const {
        interior_area[r] = part_count[r] = largest[r] = 0;
        largest_key[r] = 0;
    }
};

// Copies the map of pieces and counts the pixels of each that are on no boundary. One item is a strip.
struct CountInterior {
    Grid grid;
    const int32_t *map;
    Values boundary;
    int32_t *piece;          // out
    int32_t *interior_area;  // in, out

    TFISEG_HD int64_t items() const { return strips_of(grid).items(); }

    TFISEG_HD void operator()(int64_t k) const {
        int32_t number = 0, count = 0;
        strips_of(grid).each_pixel(k, [&](int32_t, int64_t i) {
            piece[i] = map[i];
            if (!map[i] || !(boundary[i] <= kBoundaryThreshold)) return;
            if (map[i] != number) {
                if (count) fetch_add(interior_area + number - 1, count);
                number = map[i];
                count = 0;
            }
            ++count;
        });
        if (count) fetch_add(interior_area + number - 1, count);
    }
};

// Class of each pixel in the interior of a crossed piece; 0 elsewhere, and along one side of every line between two pieces, so that no two
// interiors touch.
struct FindInterior {
    Grid grid;
    const uint8_t *cls;
    const int32_t *piece;  // from 1, 0 = none
    const Region *pieces;
    const int32_t *interior_area;  // pixels of each piece that are on no boundary
    Values boundary;
    uint8_t *inside;  // out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t its = piece[i];
        bool in = its && is_crossed(pieces[its - 1].area, interior_area[its - 1]) && boundary[i] <= kBoundaryThreshold;
        for (int32_t d = 0; in && d < 4; ++d) {
            const int32_t j = grid.later_neighbour(i, d);
            in = j < 0 || !piece[j] || piece[j] == its || cls[j] != cls[i];
        }
        inside[i] = in ? cls[i] : uint8_t(0);
    }
};

// Counts the parts of each piece and finds the largest. One item is a region of the second pass.
struct CountParts {
    const Region *parts;
    const int32_t *parent, *piece;
    const Region *pieces;
    int32_t *part_count;    // in, out
    uint64_t *largest_key;  // in, out
    const PictureState *second_states;
    PictureState *states;  // out
    int32_t plane;
    const int32_t *second_overflow;
    int32_t *overflow;  // out

    TFISEG_HD void operator()(int32_t r) const {
        if (*second_overflow) put(overflow, 1);
        const int64_t picture = parts[r].first / plane;
        if (second_states[picture].rescored > merge_budget(plane)) put(&states[picture].is_stopped, 1);
        if (parent[r] != r) return;
        const int32_t its = piece[parts[r].first] - 1;
        if (!is_part(parts[r].area, pieces[its].area)) return;
        fetch_add(part_count + its, 1);
        raise_to(largest_key + its, size_key(parts[r]));
    }
};

// Makes a region of every part, after the pieces.
struct CreateParts {
    const Region *parts;
    const int32_t *parent, *piece;
    const int32_t *part_count;
    const uint64_t *largest_key;
    int32_t capacity;
    Region *regions;       // in, out
    int32_t *part_parent;  // out: each part is a union
    int32_t *largest;      // out, by piece: number of its largest part, from 1
    int32_t *number_of;    // out, by region of the second pass: number of its part, from 1; 0 = none
    Counters *counters;

    TFISEG_HD void operator()(int32_t r) const {
        number_of[r] = 0;
        if (parent[r] != r) return;
        const int32_t its = piece[parts[r].first] - 1;
        if (part_count[its] < 2 || !is_part(parts[r].area, regions[its].area)) return;
        const int32_t slot = fetch_add(&counters->regions, 1);
        if (slot >= capacity) {
            put(&counters->overflow, 1);
            return;
        }
        regions[slot] = parts[r];
        part_parent[slot] = slot;
        number_of[r] = slot + 1;
        if (size_key(parts[r]) == largest_key[its]) largest[its] = slot + 1;
    }
};

// Replaces cut pieces by their parts in the map, and lists the pixels of these pieces that are in no part.
struct MapParts {
    const int32_t *piece, *part_count, *part, *parent, *number_of;  // part: region of the second pass, from 1, 0 = none
    int32_t *map, *other;   // out
    int32_t *distance[2];   // out
    int32_t *list, *count;  // out

    TFISEG_HD void operator()(int32_t i) const {
        if (piece[i] && part_count[piece[i] - 1] > 1) {
            map[i] = part[i] ? number_of[find_root(parent, part[i] - 1)] : 0;
        }
        const bool free = piece[i] && !map[i];
        other[i] = map[i];
        distance[0][i] = distance[1][i] = free ? kUnreached : 0;
        if (free) append(list, count, i);
    }
};

// Parts grow, round by round, until nothing changes; then both maps are the same.
struct GrowthRounds {
    SpreadLabels<Values, int32_t> spread[2];
    const int32_t *list;
    Counters *counters;

    static constexpr int32_t kPhases = 2;

    TFISEG_HD int32_t items(int32_t phase, int32_t) const { return phase ? 1 : counters->overflow ? 0 : counters->rest; }
    // Costs are at least 1 (to_fixed clamps), so a shortest path has fewer steps than the picture has pixels: the second bound is only a guard.
    TFISEG_HD bool has_next(int32_t round) const { return peek(&counters->growth_progress[round % 3]) != 0 && round < spread[0].h * spread[0].w; }

    TFISEG_HD void operator()(int32_t phase, int32_t round, int32_t k) const {
        if (phase) {
            counters->growth_progress[(round + 1) % 3] = 0;
            return;
        }
        const SpreadLabels<Values, int32_t> &step = spread[round & 1];
        const int32_t i = list[k];
        step(i);
        if (step.next_map[i] != step.map[i] || step.next_distance[i] != step.distance[i]) put(&counters->growth_progress[round % 3], 1);
    }
};

// Gives the pixels that no part reaches to the largest part of their piece.
struct AssignRest {
    const int32_t *list, *piece, *distance, *largest;
    int32_t *map;  // out

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t i = list[k];
        if (distance[i] == kUnreached) map[i] = largest[piece[i] - 1];
    }
};

}  // namespace tfiseg
