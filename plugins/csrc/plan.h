// Which arrays of the operator on a GPU lie where in the caller's workspace.
#pragma once
#include <algorithm>

#include "noise.h"
#include "parts.h"
#include "sharpen.h"
#include "tfiseg.h"

namespace tfiseg {

// Arrays carved out of the caller's workspace. Without memory, it only counts the bytes.
class Carver {
  public:
    explicit Carver(void *memory) {
        base_ = reinterpret_cast<uintptr_t>(memory);
        at_ = base_ ? (base_ + kAlign - 1) / kAlign * kAlign : kAlign;
    }

    template <class T>
    T *take(int64_t n) {
        T *taken = reinterpret_cast<T *>(at_);
        at_ += uintptr_t((n * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign);
        most_ = std::max(most_, at_);
        return taken;
    }

    uintptr_t mark() const { return at_; }
    void back_to(uintptr_t mark) { at_ = mark; }
    int64_t bytes() const { return int64_t(most_ - base_); }

    static constexpr int64_t kAlign = 256;

  private:
    uintptr_t base_, at_, most_ = 0;
};

// Grids up to this many pixels have room for every possible region and edge; larger grids for one per four pixels, many times
// what a photograph needs. Where that is not enough, the count says so (TFISEG_COUNT_OVERFLOW).
constexpr int64_t kFullRoomPixels = 1 << 18;

inline int64_t room_for(int64_t worst, int64_t pixels) { return std::min(worst, std::max(pixels / 4, kFullRoomPixels)); }

// In the memory of regions, place_basins() puts 17 bytes for each pixel and some for alignment, also on the smallest grids.
constexpr int32_t kLeastRegions = 16;

struct Plan {
    Grid grid;
    Output out;
    bool has_scores, is_geometric, has_edges, has_contacts;
    int32_t region_room, edge_room, key_slots, bit_words;
    int64_t bytes;

    Counters *counters;
    Settings *settings;
    PictureState *states;
    uint8_t *semantic, *cls;
    uint16_t *fixed_scores;
    void *boundary;  // enlarged
    int32_t *squared, *link, *map, *roots;
    Region *regions;
    int32_t *parent, *last_merge_round, *number, *unions;
    int64_t *grid_area, *grid_score_sum;
    uint64_t *keys, *best_score, *best_pair;
    int32_t *places;
    uint32_t *bits;
    int32_t *prefix_count;
    // the following share memory: one group of phases after the other
    uint32_t *columns, *rows;
    int16_t *column, *sites;
    int32_t *contacts;
    BasinContact *work[2];
    BasinArrays basins = {};
    Edge *edges[2];  // between regions; between basins at first, and in every other round
    double *scores[2];
    uint64_t *pairs[2];
    uint8_t *band;
    int32_t *other, *distance[2], *band_pixels;
    int32_t *piece, *interior_area, *part_count, *largest_part;
    uint64_t *largest_key;
    uint8_t *inside;
    void *second;  // memory of the second pass's plan

    Plan(const tfiseg_problem &p, void *workspace) {
        grid = {p.batch, p.height, p.width};
        out = {p.out_height, p.out_width};
        has_scores = p.scores || p.logits;
        is_geometric = !p.displacement;
        has_edges = is_geometric || p.boundary || p.affinity;
        has_contacts = is_geometric || needs_contacts(p);
        const int64_t n = grid.pixels();
        // a piece has at most kPartShares parts, and at least kInteriorPixels pixels
        region_room = int32_t(room_for(p.part_rule ? n + n * kPartShares / kInteriorPixels + 1 : n, n));
        const int64_t touching = is_geometric ? 1 : has_contacts ? 4 : 0;
        const int64_t pairs_of_pixel = touching + (p.affinity ? p.affinity_channels : 0);
        edge_room = has_edges ? int32_t(room_for(n * pairs_of_pixel, n)) : 0;
        key_slots = has_edges ? EdgeSet::slots_for(edge_room) : 0;
        bit_words = int32_t(out.words() * p.batch);

        Carver carver(workspace);
        counters = carver.take<Counters>(1);
        settings = carver.take<Settings>(1);
        states = carver.take<PictureState>(p.batch);
        semantic = p.logits ? carver.take<uint8_t>(n) : nullptr;
        cls = carver.take<uint8_t>(n);
        fixed_scores = has_scores ? carver.take<uint16_t>(n) : nullptr;
        boundary = p.boundary && p.boundary_stride > 1 ? carver.take<char>(n * (p.value_type == TFISEG_FLOAT16 ? 2 : 4)) : nullptr;
        squared = is_geometric ? carver.take<int32_t>(n) : nullptr;
        link = carver.take<int32_t>(n);
        map = carver.take<int32_t>(n);
        roots = carver.take<int32_t>(n);
        regions = carver.take<Region>(std::max(region_room, kLeastRegions));
        parent = carver.take<int32_t>(region_room);
        last_merge_round = carver.take<int32_t>(region_room);
        number = carver.take<int32_t>(region_room);
        unions = carver.take<int32_t>(region_room);
        grid_area = p.logits ? carver.take<int64_t>(region_room) : nullptr;
        grid_score_sum = p.logits ? carver.take<int64_t>(region_room) : nullptr;
        best_score = has_edges ? carver.take<uint64_t>(region_room) : nullptr;
        best_pair = has_edges ? carver.take<uint64_t>(region_room) : nullptr;
        keys = carver.take<uint64_t>(key_slots);
        places = carver.take<int32_t>(key_slots);
        bits = carver.take<uint32_t>(bit_words);
        prefix_count = carver.take<int32_t>(counts_of(bit_words) + 1);
        const uintptr_t shared = carver.mark();
        columns = carver.take<uint32_t>(int64_t(grid.pictures) * grid.column_words() * grid.w);
        rows = carver.take<uint32_t>(int64_t(grid.pictures) * grid.h * grid.row_words());
        column = carver.take<int16_t>(n);
        sites = carver.take<int16_t>(int64_t(grid.pictures) * grid.h * ((grid.w + RowSamples::kStride - 1) / RowSamples::kStride));
        carver.back_to(shared);
        edges[1] = carver.take<Edge>(edge_room);
        const uintptr_t after_basin_edges = carver.mark();
        contacts = carver.take<int32_t>(has_contacts ? n : 0);
        for (int32_t k : {0, 1}) work[k] = carver.take<BasinContact>(is_geometric ? edge_room : 0);
        if (is_geometric) place_basins(carver, n);
        carver.back_to(after_basin_edges);
        edges[0] = carver.take<Edge>(edge_room);
        for (int32_t k : {0, 1}) scores[k] = carver.take<double>(edge_room);
        for (int32_t k : {0, 1}) pairs[k] = carver.take<uint64_t>(edge_room);
        carver.back_to(shared);
        if (p.sharpen || p.part_rule) {
            band = carver.take<uint8_t>(n);
            other = carver.take<int32_t>(n);
            for (int32_t k : {0, 1}) distance[k] = carver.take<int32_t>(n);
            band_pixels = carver.take<int32_t>(n);
        }
        if (p.part_rule) {  // together with band_pixels
            piece = carver.take<int32_t>(n);
            interior_area = carver.take<int32_t>(region_room);
            part_count = carver.take<int32_t>(region_room);
            largest_part = carver.take<int32_t>(region_room);
            largest_key = carver.take<uint64_t>(region_room);
            inside = carver.take<uint8_t>(n);
            second = reinterpret_cast<void *>(carver.mark());
            carver.take<char>(Plan(second_pass_problem(p, inside), second).bytes);
        }
        bytes = carver.bytes();
    }

    // Every pixel may be a basin. Regions are created only when the basins' order, next contacts and ends are no longer used.
    void place_basins(Carver &carver, int64_t n) {
        basins.best[0] = carver.take<uint64_t>(n);
        basins.parent = contacts;  // the list is used up before
        basins.work_count = counters->work;
        Carver among(regions);
        basins.order = among.take<uint64_t>(n);
        basins.best[1] = among.take<uint64_t>(n);
        basins.is_final = among.take<uint8_t>(n);
    }

    TFISEG_HD EdgeSet edge_set(int32_t k) const {
        EdgeSet set = {};
        set.keys = keys;
        set.places = places;
        set.slots = key_slots;
        set.edges = edges[k];
        set.pairs = pairs[k];
        set.count = &counters->edges[k];
        set.capacity = edge_room;
        set.regions = regions;
        set.best_score = best_score;
        set.best_pair = best_pair;
        set.overflow = &counters->overflow;
        return set;
    }
};

}  // namespace tfiseg
