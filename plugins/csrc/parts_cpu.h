// Growth of parts over their pieces on the CPU: nearest pixels first, from a queue with one list for each possible cost of a step.
#pragma once
#include <algorithm>
#include <vector>

#include "parts.h"

namespace tfiseg {

// Fill the pixels `free` of a map, which are 0, with the nearest label of their piece (ties: the label whose first pixel comes first). Pixels
// that no label reaches stay 0. distance: scratch, one for each pixel.
inline void grow_parts(int32_t h, int32_t w, const int32_t *piece, const float *boundary, const Region *regions, const std::vector<int32_t> &free,
                 int32_t *map, int32_t *distance) {
    std::vector<int32_t> ring[kBoundaryCost + 2];
    std::fill_n(distance, int64_t(h) * w, 0);
    for (const int32_t i : free) distance[i] = kUnreached;
    size_t waiting = 0;
    const auto offer = [&](int32_t i, int32_t from, int32_t label) {
        const int32_t way = from + crossing_cost(boundary[i]);
        int32_t &known = distance[i];
        if (way > known || (way == known && !(regions[label - 1].first < regions[map[i] - 1].first))) return;
        if (way < known) {
            ring[way % (kBoundaryCost + 2)].push_back(i);
            ++waiting;
        }
        known = way;
        map[i] = label;
    };
    for (const int32_t i : free)
        around(i, h, w, [&](int32_t j) {
            if (piece[j] == piece[i] && distance[j] == 0) offer(i, 0, map[j]);
        });
    std::vector<int32_t> now;
    for (int32_t way = 1; waiting; ++way) {
        now.swap(ring[way % (kBoundaryCost + 2)]);
        waiting -= now.size();
        for (const int32_t i : now) {
            if (distance[i] != way) continue;  // a shorter way was found later
            around(i, h, w, [&](int32_t j) {
                if (piece[j] == piece[i]) offer(j, way, map[i]);
            });
        }
        now.clear();
    }
}

}  // namespace tfiseg
