// Moves cuts onto the boundary: TFISeg's last step, semantic-aware propagation, with a few local iterations.
//
// A cut between two unions runs along a ridge of the mask's shape. In a band around the cut, labels are released and spread again from both
// sides, step by step, slower where the boundary is likely; the new cut is where the two fronts meet. Distances are integers, and ties go
// to the union with the smaller first pixel, so the order of threads does not matter. As in grid_phases.h, one struct is one phase, called
// once per item in any order; the CPU calls the same phases. Bytes moved per call: 14 per pixel, and about 40 per pixel of the band and step.
#pragma once
#include "field.h"
#include "merge.h"
#include "values.h"

namespace tfiseg {

constexpr int32_t kBoundaryCost = 10;  // crossing a certain boundary costs as much as this many pixels
constexpr int32_t kUnreached = 1 << 30;

// Calls f(j) for each of a pixel's four neighbors (up, left, right, down) in the picture.
template <class F>
TFISEG_HD void around(int32_t i, int32_t h, int32_t w, const F &f) {
    const int32_t row = i / w, x = i - row * w, y = row % h;
    if (y > 0) f(i - w);
    if (x > 0) f(i - 1);
    if (x + 1 < w) f(i + 1);
    if (y + 1 < h) f(i + w);
}

// Replaces region + 1 by union + 1 in the map, and clears the band.
struct MapUnions {
    const int32_t *parent;
    int32_t *map;    // in, out
    uint8_t *band;   // out: 0

    TFISEG_HD void operator()(int32_t i) const {
        band[i] = 0;
        if (map[i]) map[i] = find_root(parent, map[i] - 1) + 1;
    }
};

// Marks the pixels within `width` of a pixel of their class that touches another union of that class.
struct MarkBand {
    int32_t h, w, width;
    const uint8_t *cls;
    const int32_t *map;
    uint8_t *band;  // out: 1; several may write it

    TFISEG_HD void operator()(int32_t i) const {
        if (!map[i]) return;
        bool cut = false;
        around(i, h, w, [&](int32_t j) { cut = cut || (map[j] && map[j] != map[i] && cls[j] == cls[i]); });
        if (!cut) return;
        const int32_t row = i / w, x = i - row * w, y = row % h;
        for (int32_t dy = -width; dy <= width; ++dy) {
            if (y + dy < 0 || y + dy >= h) continue;
            for (int32_t dx = -width; dx <= width; ++dx) {
                if (dy * dy + dx * dx > width * width + width || x + dx < 0 || x + dx >= w) continue;
                const int32_t j = i + dy * w + dx;
                if (map[j] && cls[j] == cls[i]) put(band + j, uint8_t(1));
            }
        }
    }
};

// Finds unions that have a core, that is, a pixel outside the band. Unions without a core keep all of their pixels.
struct FindCores {
    const int32_t *map;
    const uint8_t *band;
    int32_t *has_core;  // in: 0 for every region; out: 1

    TFISEG_HD void operator()(int32_t i) const {
        if (map[i] && !band[i] && !peek(has_core + map[i] - 1)) put(has_core + map[i] - 1, 1);
    }
};

// Releases the band's pixels, and calls append(i) for each.
template <class Append>
struct ReleaseBand {
    const int32_t *map;
    const uint8_t *band;
    const int32_t *has_core;
    int32_t *other;        // out: map
    int32_t *distance[2];  // out
    Append append;

    TFISEG_HD void operator()(int32_t i) const {
        const bool free = map[i] && band[i] && has_core[map[i] - 1];
        other[i] = map[i];
        distance[0][i] = distance[1][i] = free ? kUnreached : 0;
        if (free) append(i);
    }
};

// The cost of a step onto a pixel.
TFISEG_HD int32_t crossing_cost(float boundary) { return 1 + ((to_fixed(boundary) * kBoundaryCost + (1 << 15)) >> 16); }

// One step: each released pixel takes the nearest union of its kind among its neighbors and itself.
template <class Boundary, class Kind = uint8_t>
struct SpreadLabels {
    int32_t h, w;
    const Kind *kind;
    Boundary boundary;
    const Region *regions;  // of which `first` orders unions
    const int32_t *map, *distance;
    int32_t *next_map, *next_distance;  // out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t cost = crossing_cost(boundary[i]);
        int32_t best = distance[i], winner = map[i];
        around(i, h, w, [&](int32_t j) {
            if (!map[j] || kind[j] != kind[i] || distance[j] == kUnreached) return;
            const int32_t there = distance[j] + cost;
            if (there > best || (there == best && !(regions[map[j] - 1].first < regions[winner - 1].first))) return;
            best = there;
            winner = map[j];
        });
        next_distance[i] = best;
        next_map[i] = winner;
    }
};

}  // namespace tfiseg
