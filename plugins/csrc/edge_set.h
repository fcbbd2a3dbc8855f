// Edges between regions, or between basins before there are regions, found by a hash table that all threads share.
#pragma once
#include <initializer_list>

#include "merge.h"

namespace tfiseg {

constexpr uint64_t kNoKey = ~uint64_t(0);

// The highest contact between two basins: its saddle, then its pixel pair, inverted so that the first one is the highest of equal ones.
TFISEG_HD int64_t contact_key(int32_t saddle, int32_t pixel, int32_t direction) {
    return int64_t(saddle) << 32 | int64_t(0xFFFFFFFFu - (uint32_t(pixel) * 4u + uint32_t(direction)));
}
TFISEG_HD int64_t saddle_of(int64_t contact_key) { return contact_key >> 32; }

// First all pairs are entered (`enter`), then their evidence is summed (`at`). Slots hold keys and places; edges are dense, in the order of
// entry, on which nothing depends.
struct EdgeSet {
    uint64_t *keys;
    int32_t *places;
    int32_t slots;  // a power of two, at least twice the edges
    Edge *edges;
    uint64_t *pairs;  // by place: the smallest pair of regions in it, by their first pixels, which orders edges with the same score
    int32_t *count;
    int32_t capacity;
    const Region *regions;
    uint64_t *best_score, *best_pair;  // by region: reset for regions that have an edge
    int32_t *overflow;

    TFISEG_HD static int32_t slots_for(int32_t edges) {
        int32_t slots = 64;
        while (slots < 2 * edges) slots *= 2;
        return slots;
    }

    // The region with the smaller first pixel comes first.
    TFISEG_HD uint64_t key(int32_t a, int32_t b) const {
        return regions[a].first < regions[b].first ? key_of(a, b) : key_of(b, a);
    }

    // Of basins, which are numbered from the table's end so that no key is also one of regions.
    TFISEG_HD static uint64_t basin_key(int32_t a, int32_t b) {
        return kBasins | (a < b ? key_of(a, b) : key_of(b, a));
    }

    TFISEG_HD void enter(int32_t region_a, int32_t region_b) const {
        const uint64_t first_a = uint64_t(regions[region_a].first), first_b = uint64_t(regions[region_b].first);
        enter(region_a, region_b, first_a < first_b ? first_a << 32 | first_b : first_b << 32 | first_a);
    }

    // pair: kNoKey where absorb_pair() follows.
    TFISEG_HD void enter(int32_t region_a, int32_t region_b, uint64_t pair) const {
        const int32_t place = create(key(region_a, region_b));
        if (place < 0) return;
        pairs[place] = pair;
        for (const int32_t r : {region_a, region_b}) {  // by several threads, all with the same values
            put(best_score + r, uint64_t(0));
            put(best_pair + r, kNoKey);
        }
    }
    TFISEG_HD void enter_basins(int32_t a, int32_t b) const { create(basin_key(a, b)); }

    // Place of an edge that was entered; -1 if there was no room.
    TFISEG_HD int32_t at(int32_t region_a, int32_t region_b) const { return find(key(region_a, region_b)); }
    TFISEG_HD int32_t at_basins(int32_t a, int32_t b) const { return find(basin_key(a, b)); }

    TFISEG_HD void absorb(int32_t place, const Edge &o) const {
        Edge *e = edges + place;
        if (peek(&e->saddle) < o.saddle) raise_to(&e->saddle, o.saddle);
        add(&e->contact, o.contact);
        if (o.boundary_sum) add(&e->boundary_sum, o.boundary_sum);
        if (o.affinity_count) add(&e->affinity_sum, o.affinity_sum);
        if (o.affinity_count) add(&e->affinity_count, o.affinity_count);
    }

    TFISEG_HD void absorb_pair(int32_t place, uint64_t pair) const { lower_to(pairs + place, pair); }

  private:
    static constexpr uint64_t kBasins = uint64_t(1) << 63;

    TFISEG_HD static uint64_t key_of(int32_t first, int32_t second) { return uint64_t(uint32_t(first)) << 32 | uint32_t(second); }

    TFISEG_HD int32_t slot_of(uint64_t key) const { return int32_t((key * 0x9E3779B97F4A7C15ull) >> 33) & (slots - 1); }

    // Place of a new edge; -1 if it was there already, or if there is no room.
    TFISEG_HD int32_t create(uint64_t wanted) const {
        int32_t slot = slot_of(wanted);
        for (int32_t tries = 0; tries < slots; ++tries, slot = (slot + 1) & (slots - 1)) {
            uint64_t there = peek(keys + slot);
            if (there == kNoKey) there = claim(keys + slot, kNoKey, wanted);
            if (there == wanted) return -1;
            if (there != kNoKey) continue;
            const int32_t place = fetch_add(count, 1);
            places[slot] = place;
            if (place >= capacity) break;
            edges[place] = Edge();
            edges[place].a = int32_t((wanted & ~kBasins) >> 32);
            edges[place].b = int32_t(uint32_t(wanted));
            return place;
        }
        put(overflow, 1);
        return -1;
    }

    TFISEG_HD int32_t find(uint64_t wanted) const {
        int32_t slot = slot_of(wanted);
        for (int32_t tries = 0; tries < slots; ++tries, slot = (slot + 1) & (slots - 1)) {
            const uint64_t there = keys[slot];
            const int32_t place = places[slot];  // of whatever is there: loaded together, since nearly always it is this edge
            if (there == wanted) return place < capacity ? place : -1;
            if (there == kNoKey) break;
        }
        return -1;
    }
};

}  // namespace tfiseg
