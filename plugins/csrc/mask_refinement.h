// Mask refinement: outlines of instances move to where an instance network predicts them. Phases as in grid_phases.h;
// mask_refinement_pipeline.h gives their order, plugins/reference_mask_refinement.py the rule.
//
// All in integers: probabilities have 16 bits, positions between cells 8, so that every machine and every order of threads agrees.
#pragma once
#include "views.h"

namespace tfiseg {

constexpr int32_t kReachNumerator = 3, kReachDenominator = 20;  // outlines move by 15 % of the component's longer side
constexpr int32_t kLeastReachPx = 8;
constexpr int32_t kPositionBits = 24;  // of positions in a foreground map
constexpr int32_t kWeightBits = 8;     // of weights between two cells
// The thresholds in units of probability(): 65535 * 2^16 is 1.
constexpr uint32_t kRemoveBelow = uint32_t(65535ull * 65536 * 2 / 5), kAddAbove = uint32_t(65535ull * 65536 * 3 / 5);
constexpr uint32_t kCertain = 0xFFFFFFFFu;  // of pixels of components without a view: above every probability
constexpr int32_t kLabelBits = 24, kViewBits = 16;  // of a claim
constexpr int32_t kMostLabels = (1 << kLabelBits) - 1, kMostViews = (1 << kViewBits) - 1;
static_assert(kMostViews == TFISEG_MAX_REFINEMENT_VIEWS, "as in tfiseg_mask_refinement");

// A view's component, and the part of the frame in which its outline may move.
struct Zone {
    int32_t view_x, view_y, component, class_id, reach;
    int32_t x0, y0, x1, y1;        // empty if the view is not used
    int32_t map_side;              // of the foreground map
    int64_t first_value, step;     // its first value; cells per pixel, with kPositionBits
    int32_t first_item, row_items;  // of ZonePixels

    TFISEG_HD bool contains(int32_t y, int32_t x) const { return x >= x0 && x < x1 && y >= y0 && y < y1; }
};

// Places a pixel along one axis of a foreground map: between two cells, with the weight of the second one.
struct CellPosition {
    int32_t cell, next;
    uint32_t next_weight;
};

TFISEG_HD CellPosition cell_position(int32_t at, const Zone &zone) {
    const int64_t position = at * zone.step + (zone.step >> 1) - (int64_t(1) << (kPositionBits - 1));
    const int32_t cell = int32_t(position >> kPositionBits), last = zone.map_side - 1;
    const uint32_t weight = uint32_t(position >> (kPositionBits - kWeightBits)) & ((1u << kWeightBits) - 1u);
    return {cell < 0 ? 0 : cell > last ? last : cell, cell + 1 < 0 ? 0 : cell + 1 > last ? last : cell + 1, weight};
}

struct RefinementCounters {
    int32_t items, values, claims, restored;  // restored: pixels to visit; 0 if no instance lost all pixels
};

// The instances of a frame, the components of its class map, and views of components.
struct RefinementScene {
    Grid grid;  // one picture
    const int32_t *label_map, *count;
    int32_t max_instances;
    const int32_t *component_map, *component_count;
    const float *component_table;
    int32_t max_components;
    const View *views;
    const int32_t *map_sides;
    int32_t view_count, max_map_side;
    const uint16_t *foreground;  // 16 bits
    const Zone *zones;
    const int32_t *view_of;  // by component; view_count: none
    const uint8_t *cls;      // class of a pixel's component; 0: no component, or no instance

    TFISEG_HD int32_t instances() const { return *count < max_instances ? (*count < 0 ? 0 : *count) : max_instances; }
    TFISEG_HD int32_t components() const {
        return *component_count < max_components ? (*component_count < 0 ? 0 : *component_count) : max_components;
    }
    TFISEG_HD const float *row(int32_t component) const { return component_table + int64_t(component - 1) * TFISEG_TABLE_COLUMNS; }
    TFISEG_HD int32_t class_of(int32_t component) const {
        const float c = row(component)[0];
        return c > 0.0f && c < 255.0f ? int32_t(c) : 0;
    }
    TFISEG_HD int32_t component_at(int32_t i) const { return cls[i] ? component_map[i] : 0; }
    TFISEG_HD int32_t label_at(int32_t i) const { return label_map[i] > 0 && label_map[i] <= instances() ? label_map[i] : 0; }
    TFISEG_HD int32_t map_side(int32_t k) const { return map_sides[k] < 1 ? 1 : map_sides[k] < max_map_side ? map_sides[k] : max_map_side; }

    // Probability that a pixel of a zone belongs to its component, interpolated.
    TFISEG_HD uint32_t probability(const Zone &zone, const CellPosition &row, int32_t x) const {
        const CellPosition column = cell_position(x - zone.view_x, zone);
        const uint16_t *map = foreground + zone.first_value;
        const uint16_t *upper = map + row.cell * zone.map_side, *lower = map + row.next * zone.map_side;
        constexpr uint32_t kWhole = 1u << kWeightBits;
        const uint32_t left = kWhole - column.next_weight, right = column.next_weight;
        const uint32_t above = upper[column.cell] * left + upper[column.next] * right, below = lower[column.cell] * left + lower[column.next] * right;
        return above * (kWhole - row.next_weight) + below * row.next_weight;
    }
    TFISEG_HD uint32_t probability(const Zone &zone, int32_t y, int32_t x) const { return probability(zone, cell_position(y - zone.view_y, zone), x); }
};

// Gives each pixel its class, and everything in the workspace its start value.
struct FindInstanceClasses {
    RefinementScene scene;
    uint8_t *cls;      // out
    uint8_t *removed;  // out: 0
    uint64_t *claims;  // out: 0
    int32_t *view_of;  // out: view_count
    int32_t *has_foreground, *has_core;  // out: 0, of each view and of each instance
    RefinementCounters *counters;
    Counters *numbering_counters;
    PictureState *state;
    uint32_t *bits;  // out: 0
    int32_t bit_words;

    TFISEG_HD int32_t items() const {
        const int32_t counts[] = {scene.max_components, scene.max_instances, scene.view_count, bit_words};
        int32_t most = scene.grid.pixels();
        for (const int32_t n : counts) most = most < n ? n : most;
        return most;
    }

    TFISEG_HD void operator()(int32_t i) const {
        if (i == 0) {
            *counters = {0, 0, 0, 0};
            *numbering_counters = Counters();
            numbering_counters->regions = scene.instances();
            numbering_counters->overflow = *scene.count < 0;
            *state = PictureState();
        }
        if (i < scene.max_components) view_of[i] = scene.view_count;
        if (i < scene.view_count) has_foreground[i] = 0;
        if (i < scene.max_instances) has_core[i] = 0;
        if (i < bit_words) bits[i] = 0;
        if (i >= scene.grid.pixels()) return;
        const int32_t component = scene.component_map[i];
        const bool has_instance = component > 0 && component <= scene.components() && scene.label_at(i);
        cls[i] = has_instance ? uint8_t(scene.class_of(component)) : uint8_t(0);
        removed[i] = 0;
        claims[i] = 0;
    }
};

// Finds the view of each component: the first one in the list.
struct FindViews {
    RefinementScene scene;
    int32_t *view_of;  // in, out

    TFISEG_HD void operator()(int32_t k) const {
        const View view = scene.views[k];
        if (view.class_id && view.side > 0 && view.component > 0 && view.component <= scene.components()) lower_to(view_of + view.component - 1, k);
    }
};

// Makes the zone of each view, all but its place in the lists of values and items.
struct MakeZones {
    RefinementScene scene;
    Zone *zones;  // out

    TFISEG_HD void operator()(int32_t k) const {
        const View view = scene.views[k];
        Zone zone = {view.x, view.y, 0, 0, 0, 0, 0, 0, 0, scene.map_side(k), 0, 0, 0, 0};
        const bool is_used = view.class_id && view.side > 0 && view.component > 0 && view.component <= scene.components() &&
                             scene.view_of[view.component - 1] == k;
        if (is_used) {
            const float *row = scene.row(view.component);
            const Box box = {int32_t(row[2]), int32_t(row[3]), int32_t(row[4]), int32_t(row[5])};
            zone.component = view.component;
            zone.class_id = scene.class_of(view.component);
            zone.step = (int64_t(zone.map_side) << kPositionBits) / view.side;
            const int32_t reach = box.longer() * kReachNumerator / kReachDenominator;
            zone.reach = reach > kLeastReachPx ? reach : kLeastReachPx;
            zone.x0 = largest(box.x0 - zone.reach, view.x, 0);
            zone.y0 = largest(box.y0 - zone.reach, view.y, 0);
            zone.x1 = -largest(-box.x1 - zone.reach, -view.x - view.side, -scene.grid.w);
            zone.y1 = -largest(-box.y1 - zone.reach, -view.y - view.side, -scene.grid.h);
            if (zone.x1 <= zone.x0 || zone.y1 <= zone.y0 || !zone.class_id) zone.x1 = zone.x0 = zone.y1 = zone.y0 = 0;
        }
        zones[k] = zone;
    }

    TFISEG_HD static int32_t largest(int32_t a, int32_t b, int32_t c) { return a > b ? (a > c ? a : c) : b > c ? b : c; }
};

// The pixels of all zones. One item is a few neighboring pixels of a row.
struct ZonePixels {
    static constexpr int32_t kPixels = 8;

    const Zone *zones;
    int32_t view_count;

    // Calls f(k, y, x_begin, x_end) for an item.
    template <class F>
    TFISEG_HD void item(int32_t i, const F &f) const {
        int32_t low = 0, high = view_count;  // the last zone that starts at or before item i
        while (high - low > 1) {
            const int32_t middle = (low + high) >> 1;
            (zones[middle].first_item <= i ? low : high) = middle;
        }
        const Zone &zone = zones[low];
        const int32_t at = i - zone.first_item, y = zone.y0 + at / zone.row_items, x = zone.x0 + at % zone.row_items * kPixels;
        f(low, y, x, x + kPixels < zone.x1 ? x + kPixels : zone.x1);
    }
};

// Gives each zone its place in the lists of values and items. One item for all.
struct PlaceZones {
    int32_t view_count;
    Zone *zones;  // in, out
    RefinementCounters *counters;

    TFISEG_HD void operator()(int32_t) const {
        int32_t items = 0, values = 0;
        for (int32_t k = 0; k < view_count; ++k) {
            Zone &zone = zones[k];
            zone.first_value = values;
            zone.first_item = items;
            zone.row_items = (zone.x1 - zone.x0 + ZonePixels::kPixels - 1) / ZonePixels::kPixels;
            items += zone.row_items * (zone.y1 - zone.y0);
            values += zone.map_side * zone.map_side;
        }
        counters->items = items;
        counters->values = values;
    }
};

struct RoundForeground {
    Values foreground;
    uint16_t *rounded;  // out

    TFISEG_HD void operator()(int32_t i) const { rounded[i] = uint16_t(to_fixed(foreground[i])); }
};

// Where the class changes along rows: as the second half of FindClassChanges.
struct FindRowChanges {
    Grid grid;
    const uint8_t *cls;
    uint32_t *rows;  // out: (h, row_words)

    TFISEG_HD int32_t items() const { return grid.h * grid.row_words(); }

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t begin = k % grid.row_words() * 32;
        const uint8_t *line = cls + int64_t(k / grid.row_words()) * grid.w;
        rows[k] = grid.w % 32 ? FindClassChanges::changes(line, 1, begin, grid.w) : FindClassChanges::changes(line, begin);
    }
};

// The last change of class at or before a position of a row, as change_before; at least the word of `least` is searched, -1: none there.
TFISEG_HD int32_t near_change_before(const uint32_t *words, int32_t at, int32_t least) {
    int32_t b = at >> 5;
    uint32_t word = words[b] & (0xFFFFFFFFu >> (31 - (at & 31)));
    while (!word) {
        if (b * 32 <= least) return -1;
        word = words[--b];
    }
    return b * 32 + 31 - leading_zeros(word);
}

// The first change behind a position, as change_after; at least up to the word of `most`.
TFISEG_HD int32_t near_change_after(const uint32_t *words, int32_t at, int32_t most) {
    int32_t b = at >> 5;
    uint32_t word = words[b] & ~(0xFFFFFFFFu >> (31 - (at & 31)));
    while (!word) {
        if (b * 32 + 31 >= most) return -1;
        word = words[++b];
    }
    return b * 32 + trailing_zeros(word);
}

// Finds the pixels that components lose: those near the outline whose probability is low.
struct FindRemovedPixels {
    RefinementScene scene;
    const uint32_t *rows;
    int32_t *has_foreground;  // out, by view
    uint8_t *removed;         // out

    TFISEG_HD void operator()(int32_t item) const {
        const ZonePixels pixels = {scene.zones, scene.view_count};
        pixels.item(item, [this](int32_t k, int32_t y, int32_t x_begin, int32_t x_end) {
            const Zone &zone = scene.zones[k];
            const CellPosition row = cell_position(y - zone.view_y, zone);
            bool is_foreground = false;
            for (int32_t x = x_begin, i = y * scene.grid.w + x_begin; x < x_end; ++x, ++i) {
                if (scene.component_at(i) != zone.component) continue;
                if (scene.probability(zone, row, x) > kRemoveBelow) {
                    is_foreground = true;
                } else if (!is_interior(zone, y, x)) {
                    removed[i] = 1;
                }
            }
            if (is_foreground && !peek(has_foreground + k)) put(has_foreground + k, 1);
        });
    }

  private:
    // Whether the component fills the square within reach of a pixel, as far as it is inside the frame.
    TFISEG_HD bool is_interior(const Zone &zone, int32_t y, int32_t x) const {
        for (int32_t d = 0; d <= zone.reach; ++d)
            if (!fills(zone, y - d, x) || !fills(zone, y + d, x)) return false;
        return true;
    }

    TFISEG_HD bool fills(const Zone &zone, int32_t y, int32_t x) const {
        const Grid &grid = scene.grid;
        if (y < 0 || y >= grid.h) return true;
        if (scene.component_at(y * grid.w + x) != zone.component) return false;
        const uint32_t *words = rows + int64_t(y) * grid.row_words();
        const int32_t least = x > zone.reach ? x - zone.reach : 0, most = x + zone.reach < grid.w ? x + zone.reach : grid.w - 1;
        const int32_t after = near_change_after(words, x, most);
        return near_change_before(words, x, least) <= least && (after < 0 || after > most);
    }
};

// The nearest pixel of a class within reach (a square), by rows from the middle outwards. Of equally near ones the first: rows above come before
// rows below, pixels on the left before those on the right.
struct NearestOfClass {
    Grid grid;
    const uint8_t *cls;
    const uint32_t *rows;

    // Returns -1 if there is none.
    TFISEG_HD int32_t operator()(int32_t class_id, int32_t reach, int32_t y, int32_t x) const {
        int64_t best = 2 * int64_t(reach) * reach + 1;
        int32_t nearest = -1;
        for (int32_t d = 0; d <= reach && int64_t(d) * d < best; ++d)
            for (int32_t side = 0; side < (d ? 2 : 1); ++side) {
                const int32_t v = side ? y + d : y - d;
                if (v >= 0 && v < grid.h) search_row(class_id, reach, v, x, int64_t(d) * d, best, nearest);
            }
        return nearest;
    }

  private:
    TFISEG_HD void search_row(int32_t class_id, int32_t reach, int32_t v, int32_t x, int64_t square, int64_t &best, int32_t &nearest) const {
        const int32_t start = v * grid.w;
        const uint32_t *words = rows + int64_t(v) * grid.row_words();
        const auto take = [&](int32_t u) {  // whether the search in this direction ends
            const int64_t distance = square + int64_t(u - x) * (u - x);
            if (distance >= best || u - x > reach || x - u > reach) return true;
            if (cls[start + u] != class_id) return false;
            best = distance;
            nearest = start + u;
            return true;
        };
        if (take(x)) return;
        const int32_t across = int32_t(std::sqrt(float(best - square))) + 1;  // farther pixels are not nearer, whatever the rounding
        const int32_t limit = across < reach ? across : reach;
        const int32_t least = x > limit ? x - limit : 0, most = x + limit < grid.w ? x + limit : grid.w - 1;
        for (int32_t u = near_change_before(words, x, least) - 1; u >= 0; u = near_change_before(words, u, least) - 1)
            if (take(u)) break;
        for (int32_t u = near_change_after(words, x, most); u >= 0; u = near_change_after(words, u, most))
            if (take(u)) break;
    }
};

// A claim of a pixel by a component: higher for higher probabilities (of 24 bits), then for earlier views.
TFISEG_HD uint64_t make_claim(uint32_t probability, int32_t view, int32_t label) {
    return uint64_t(probability >> 8) << (kViewBits + kLabelBits) | uint64_t(kMostViews - view) << kLabelBits | uint32_t(label);
}
TFISEG_HD int32_t claiming_view(uint64_t claim) { return kMostViews - int32_t(claim >> kLabelBits & uint32_t(kMostViews)); }
TFISEG_HD int32_t claimed_label(uint64_t claim) { return int32_t(claim & kMostLabels); }

// Claims pixels outside of components: likely ones that are within reach of the component, and not nearer to another one of its class.
struct ClaimPixels {
    RefinementScene scene;
    const uint32_t *rows;
    const int32_t *has_foreground;
    uint64_t *claims;  // in, out

    TFISEG_HD void operator()(int32_t item) const {
        const ZonePixels pixels = {scene.zones, scene.view_count};
        pixels.item(item, [this](int32_t k, int32_t y, int32_t x_begin, int32_t x_end) {
            if (!has_foreground[k]) return;
            const Zone &zone = scene.zones[k];
            const CellPosition row = cell_position(y - zone.view_y, zone);
            const NearestOfClass nearest = {scene.grid, scene.cls, rows};
            for (int32_t x = x_begin, i = y * scene.grid.w + x_begin; x < x_end; ++x, ++i) {
                const int32_t owner = scene.component_at(i);
                if (owner == zone.component) continue;
                const uint32_t probability = scene.probability(zone, row, x);
                if (probability <= kAddAbove || (owner && probability <= owned_probability(owner, y, x))) continue;
                const int32_t from = nearest(zone.class_id, zone.reach, y, x);
                if (from >= 0 && scene.component_map[from] == zone.component)
                    raise_to(claims + i, make_claim(probability, k, scene.label_map[from]));
            }
        });
    }

  private:
    // Probability of a pixel in the view of its own component.
    TFISEG_HD uint32_t owned_probability(int32_t component, int32_t y, int32_t x) const {
        const int32_t k = scene.view_of[component - 1];
        return k < scene.view_count && scene.zones[k].contains(y, x) ? scene.probability(scene.zones[k], y, x) : kCertain;
    }
};

struct ListClaims {
    const uint64_t *claims;
    int32_t *link, *list;  // out
    uint8_t *touches;      // out: 0, of claimed pixels
    RefinementCounters *counters;

    TFISEG_HD void operator()(int32_t i) const {
        if (!claims[i]) return;
        link[i] = i;
        touches[i] = 0;
        append(list, &counters->claims, i);
    }
};

// Unites neighboring pixels that one component claims. One item is a claimed pixel.
struct UniteClaims {
    Grid grid;
    const uint64_t *claims;
    const int32_t *list;
    int32_t *link;  // in, out

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t i = list[k], view = claiming_view(claims[i]);
        for (int32_t d = 0; d < 4; ++d) {
            const int32_t j = grid.later_neighbour(i, d);
            if (j >= 0 && claims[j] && claiming_view(claims[j]) == view) unite(link, i, j);
        }
    }
};

// Finds the islands of claimed pixels that touch a pixel which their component keeps.
struct FindTouchingIslands {
    RefinementScene scene;
    const uint64_t *claims;
    const uint8_t *removed;
    const int32_t *list;
    int32_t *link;     // in, out
    uint8_t *touches;  // in, out, at the islands' roots

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t i = list[k], component = scene.zones[claiming_view(claims[i])].component;
        for (int32_t dy = -1; dy <= 1; ++dy)
            for (int32_t dx = -1; dx <= 1; ++dx) {
                const int32_t j = scene.grid.offset(i, dy, dx);
                if (j < 0 || claims[j] || removed[j] || scene.component_at(j) != component) continue;
                put(touches + find_and_compress(link, i), uint8_t(1));
                return;
            }
    }
};

// Writes the label of each pixel, with the numbers of the given instances.
struct MoveOutlines {
    RefinementScene scene;
    const uint64_t *claims;
    const uint8_t *removed, *touches;
    const int32_t *has_foreground, *link;
    int32_t *moved;     // out
    int32_t *has_core;  // out, by instance: 1 if it keeps one of its pixels

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t label = scene.label_at(i);
        int32_t next = label;
        if (claims[i] && touches[find_root(link, i)]) {
            next = claimed_label(claims[i]);
        } else if (removed[i] && has_foreground[scene.view_of[scene.component_map[i] - 1]]) {
            next = 0;
        }
        moved[i] = next;
        if (next && next == label && !peek(has_core + label - 1)) put(has_core + label - 1, 1);
    }
};

// Whether an instance lost all of its pixels, and its region. One item is an instance.
struct CreateInstanceRegions {
    RefinementScene scene;
    const float *table;  // of the instances
    const int32_t *has_core;
    RefinementCounters *counters;
    Region *regions;  // out
    int32_t *parent;  // out

    TFISEG_HD void operator()(int32_t k) const {
        regions[k] = kEmptyRegion;
        regions[k].class_id = int32_t(table[int64_t(k) * TFISEG_TABLE_COLUMNS]);
        parent[k] = k;
        if (!has_core[k]) put(&counters->restored, scene.grid.pixels());
    }
};

// Gives instances that lost all pixels their mask back.
struct RestoreInstances {
    RefinementScene scene;
    const int32_t *has_core;
    int32_t *moved;  // in, out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t label = scene.label_at(i);
        if (label && !has_core[label - 1]) moved[i] = label;
    }
};

// Copies the score of its instance to each row of the table.
struct InstanceRows {
    const float *from;
    const int32_t *unions, *number;
    float *table;          // in, out
    int32_t *instance_of;  // out, from 1

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t r = unions[k];
        if (!number[r]) return;
        table[int64_t(number[r] - 1) * TFISEG_TABLE_COLUMNS + 1] = from[int64_t(r) * TFISEG_TABLE_COLUMNS + 1];
        instance_of[number[r] - 1] = r + 1;
    }
};

}  // namespace tfiseg
