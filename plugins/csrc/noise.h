// Merges basins that are noise (is_noise), in rounds, with the same result as one contact at a time, highest saddle first.
//
// Basins are known by their numbers here, so that few basins fit in the memory that a group of threads shares: a round waits for several
// accesses one after the other, and that memory answers in a tenth of the time.
#pragma once
#include <cstddef>

#include "grid_phases.h"

namespace tfiseg {

// What a round needs of an edge between basins: its first 16 bytes, in one access.
struct alignas(16) BasinContact {
    int32_t a, b;     // basins
    int64_t highest;  // see contact_key
};
static_assert(offsetof(Edge, a) == offsetof(BasinContact, a) && offsetof(Edge, b) == offsetof(BasinContact, b) &&
                  offsetof(Edge, saddle) == offsetof(BasinContact, highest) && sizeof(Edge) % alignof(BasinContact) == 0,
              "an edge must begin as a contact");

// What the rounds know of basins, by number.
struct BasinArrays {
    int32_t *parent;     // the basin that it merged into; else itself
    uint64_t *order;     // of the lower of two basins is lower: the squared distance of the summit, then its inverted pixel
    uint64_t *best[2];   // this round's highest contact (contact_key), and the next one's; 0: none
    uint8_t *is_final;   // its highest contact leads to a higher basin and is no noise
    int32_t *work_count;  // contacts of this round and the next one

    TFISEG_HD bool is_lower(int32_t a, int32_t b) const { return order[a] < order[b]; }
};

// Memory of a group of threads for few basins.
struct SharedBasins {
    static constexpr int32_t kMost = 1408;  // with it, and a tile of AscentLinks, a block has less than 48 KB

    uint64_t order[kMost], best[2][kMost];
    int32_t parent[kMost], work_count[2];
    uint8_t is_final[kMost];

    TFISEG_HD BasinArrays arrays() { return {parent, order, {best[0], best[1]}, is_final, work_count}; }
};

// Every basin begins as one of its own.
struct BeginBasins {
    const int32_t *roots, *squared;
    const uint64_t *best;  // highest contact
    BasinArrays basins;    // out

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t root = roots[k];
        const uint64_t highest = best[k];
        basins.parent[k] = k;
        basins.order[k] = uint64_t(uint32_t(squared[root])) << 32 | (0xFFFFFFFFu - uint32_t(root));
        basins.best[0][k] = highest;
        basins.best[1][k] = 0;
        basins.is_final[k] = 0;
    }
};

// In each round, every basin knows its highest contact. If the contact leads to a higher basin, the basin merges into it if it is noise, and
// is final otherwise: its other contacts are lower, and its height does not change. If the contact leads to a lower basin that is not decided
// yet, it waits. Then the contacts whose lower basin is not final are looked at again. The highest of them all decides something in the next
// round, and the order of threads does not matter. One item is a contact.
struct NoiseRounds {
    const Edge *edges;  // between basins
    int32_t capacity;   // of edges
    BasinContact *work[2];
    BasinArrays basins;
    Counters *counters;

    static constexpr int32_t kPhases = 2;

    TFISEG_HD int32_t items(int32_t, int32_t round) const {
        if (round) return basins.work_count[round & 1];
        return counters->edges[1] < capacity ? counters->edges[1] : capacity;
    }

    // Without contacts, nothing has cleared the count. This round's own count must not be read: a thread ahead clears it.
    TFISEG_HD bool has_next(int32_t round) const {
        if (round == 0 && items(0, 0) == 0) return false;
        return peek(basins.work_count + ((round + 1) & 1)) != 0;
    }

    TFISEG_HD void operator()(int32_t phase, int32_t round, int32_t k) const {
        const BasinContact contact = round ? load_whole<BasinContact>(work[round & 1] + k) : load_whole<BasinContact>(edges + k);
        if (phase == 1) return look(contact, round);
        if (k == 0) basins.work_count[(round + 1) & 1] = 0;
        decide(contact, round);
    }

  private:
    // If this is the highest contact of its lower basin, the basin merges or is final. Others merge meanwhile: whatever a basin merged into is
    // higher still, and the answer is the same.
    TFISEG_HD void decide(const BasinContact &contact, int32_t round) const {
        const int32_t a = find_root(basins.parent, contact.a), b = find_root(basins.parent, contact.b);
        if (a == b) return;
        const bool a_low = basins.is_lower(a, b);
        const int32_t low = a_low ? a : b;
        if (basins.best[round & 1][low] != uint64_t(contact.highest)) return;
        if (is_noise(saddle_of(contact.highest), int64_t(basins.order[low] >> 32))) {
            put(basins.parent + low, a_low ? b : a);
        } else {
            put(basins.is_final + low, uint8_t(1));
        }
    }

    // No basin merges in this phase.
    TFISEG_HD void look(const BasinContact &contact, int32_t round) const {
        const int32_t a = find_and_compress(basins.parent, contact.a), b = find_and_compress(basins.parent, contact.b), next = (round + 1) & 1;
        if (a == b) return;
        for (const int32_t basin : {a, b}) put(basins.best[round & 1] + basin, uint64_t(0));  // for the round after the next
        if (peek(basins.is_final + (basins.is_lower(a, b) ? a : b))) return;
        for (const int32_t basin : {a, b}) raise_to(basins.best[next] + basin, uint64_t(contact.highest));
        work[next][next_place(basins.work_count + next)] = {a, b, contact.highest};
    }
};

}  // namespace tfiseg
