// Views of components: squares of the frame in which an instance network looks at them. Which components are worth a look, what their
// views show, and what was results there carried back into the frame. Phases as in grid_phases.h; views_pipeline.h says their order.
//
// All in integers: a cell of a view is a weighted sum of pixels, so that every machine sees the same.
#pragma once
#include "graph_phases.h"

namespace tfiseg {

constexpr int32_t kGrey = 127;      // color outside the picture
constexpr int32_t kLeastSide = 10;  // smaller components have nothing to cut
constexpr int32_t kMarginPx = 16, kMaxZoom = 4;
constexpr int32_t kConvexPercent = 95;  // a component whose area is a larger share of its convex hull gets no view
constexpr int32_t kReach = 8;           // cells: how far from a part a pixel without one still joins it

struct View {
    int32_t x, y, side, class_id, component;
};
static_assert(sizeof(View) == TFISEG_VIEW_COLUMNS * sizeof(int32_t), "as in tfiseg_views");

struct Box {
    int32_t x0, y0, x1, y1;  // x1 and y1 exclusive

    TFISEG_HD int32_t longer() const { return x1 - x0 > y1 - y0 ? x1 - x0 : y1 - y0; }
};

// The side of a view of a box: a quarter more than the box, and a margin.
TFISEG_HD int32_t side_of(const Box &box, int32_t size) {
    const int32_t side = box.longer() * 5 / 4 + kMarginPx, least = (size + kMaxZoom - 1) / kMaxZoom;
    return side > least ? side : least;
}

// Where a view starts along one axis: centered, then shifted into the picture if it fits.
TFISEG_HD int32_t corner_of(int32_t low, int32_t high, int32_t side, int32_t length) {
    const int32_t start = (low + high - side) >> 1;
    if (side > length || start < 0) return side > length ? start : 0;
    return start < length - side ? start : length - side;
}

// A frame, the components of its class map, and the views of them.
struct Scene {
    int32_t h, w, size, most;  // size: side of the rendered views; most: components
    const uint8_t *frame;
    const int32_t *label_map, *count;
    const float *table;
    uint32_t class_bits[8];

    TFISEG_HD int32_t components() const { return *count < most ? *count : most; }
    TFISEG_HD int32_t cells() const { return size * size; }
    TFISEG_HD const float *row(int32_t k) const { return table + int64_t(k) * TFISEG_TABLE_COLUMNS; }
    TFISEG_HD int32_t class_of(int32_t k) const { return int32_t(row(k)[0]); }
    TFISEG_HD Box box_of(int32_t k) const { return {int32_t(row(k)[2]), int32_t(row(k)[3]), int32_t(row(k)[4]), int32_t(row(k)[5])}; }
    TFISEG_HD bool has_selected_class(int32_t k) const { return (class_bits[class_of(k) >> 5] >> (class_of(k) & 31)) & 1u; }
    TFISEG_HD bool is_candidate(int32_t k) const { return has_selected_class(k) && box_of(k).longer() >= kLeastSide; }
    TFISEG_HD View view_of(const Box &box, int32_t class_id, int32_t component) const {
        const int32_t side = side_of(box, size);
        return {corner_of(box.x0, box.x1, side, w), corner_of(box.y0, box.y1, side, h), side, class_id, component};
    }
    // The pixel at a place of a view; -1 outside the picture.
    TFISEG_HD int32_t pixel(const View &view, int32_t y, int32_t x) const {
        y += view.y;
        x += view.x;
        return y >= 0 && y < h && x >= 0 && x < w ? y * w + x : -1;
    }
    TFISEG_HD int32_t label(const View &view, int32_t y, int32_t x) const {
        const int32_t i = pixel(view, y, x);
        return i < 0 ? 0 : label_map[i];
    }
};

// The pixels that a cell of a view covers along one axis, with weights: averaged where the view shrinks, interpolated where it grows.
struct Span {
    int32_t first, count, low, middle, high, total;

    TFISEG_HD int32_t weight(int32_t k) const { return k == 0 ? low : k == count - 1 ? high : middle; }
};

TFISEG_HD Span span_of(int32_t cell, int32_t side, int32_t size) {
    if (side > size) {
        const int32_t begin = cell * side, end = begin + side, first = begin / size, last = (end - 1) / size;
        return {first, last - first + 1, (first + 1) * size - begin, size, end - last * size, side};
    }
    const int32_t unit = 2 * size, most = (side - 1) * unit;
    int32_t at = (2 * cell + 1) * side - size;
    at = at < 0 ? 0 : at > most ? most : at;
    return {at / unit, at % unit ? 2 : 1, unit - at % unit, 0, at % unit, unit};
}

// Calls add(weight, y, x) for each pixel of a cell, y and x relative to the view's corner; returns the sum of weights.
template <class Add>
TFISEG_HD int64_t each_pixel(const View &view, int32_t size, int32_t cell, const Add &add) {
    const Span rows = span_of(cell / size, view.side, size), columns = span_of(cell % size, view.side, size);
    for (int32_t k = 0; k < rows.count; ++k)
        for (int32_t m = 0; m < columns.count; ++m) add(rows.weight(k) * columns.weight(m), rows.first + k, columns.first + m);
    return int64_t(rows.total) * columns.total;
}

// Twice the area of a candidate and of its convex hull: [0] of cells as squares, [1] through the centers of its pixels.
struct Outline {
    int64_t twice[2], twice_hull[2];
};

struct ViewCounters {
    int32_t candidates, measured, cells, columns, halves;
};

struct ClearViews {
    ViewCounters *counters;
    uint32_t *bits;

    TFISEG_HD void operator()(int32_t i) const {
        if (i == 0) *counters = {0, 0, 0, 0, 0};
        bits[i] = 0;
    }
};

// Makes a view of each component that is large enough, largest first. One item is a component.
struct FindCandidates {
    Scene scene;
    int32_t room;
    View *views;        // out
    Outline *outlines;  // out: all 0
    ViewCounters *counters;

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t n = scene.components();
        if (k >= n || !scene.is_candidate(k)) return;
        const float area = scene.row(k)[6];
        int32_t rank = 0;
        for (int32_t j = 0; j < n; ++j) {
            const float other = scene.row(j)[6];
            if ((other > area || (other == area && j < k)) && scene.is_candidate(j)) ++rank;
        }
        fetch_add(&counters->candidates, 1);
        if (rank >= room) return;
        views[rank] = scene.view_of(scene.box_of(k), scene.class_of(k), k + 1);
        outlines[rank] = {{0, 0}, {0, 0}};
    }
};

struct CountWork {
    int32_t room, size;
    ViewCounters *counters;

    TFISEG_HD void operator()(int32_t) const {
        counters->measured = counters->candidates < room ? counters->candidates : room;
        counters->columns = counters->measured * size;
        counters->cells = counters->columns * size;
        counters->halves = counters->measured * 4;
    }
};

// Renders the component of each view, connected as in the frame: where the view shrinks, every cell that the component touches.
struct FindOwnCells {
    Scene scene;
    const View *views;
    uint8_t *own;  // out, 0/1

    TFISEG_HD void operator()(int32_t i) const {
        const View view = views[i / scene.cells()];
        int64_t sum = 0;
        const int64_t total = each_pixel(view, scene.size, i % scene.cells(), [&](int32_t weight, int32_t y, int32_t x) {
            sum += scene.label(view, y, x) == view.component ? weight : 0;
        });
        own[i] = view.side > scene.size ? sum > 0 : 2 * sum >= total;
    }
};

// The part of a component in one column: low to high (exclusive) and a sum.
struct Column {
    int32_t low, high, sum;
};

// MeasureColumns of the cells of a view; and for views that enlarge those of its pixels, whose sum is twice the area between the centres of
// this column and the next.
struct MeasureColumns {
    Scene scene;
    const View *views;
    const uint8_t *own;
    Column *of_cells, *of_pixels;  // out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t size = scene.size, x = i % size;
        const View view = views[i / size];
        const uint8_t *column = own + int64_t(i / size) * scene.cells() + x;
        Column of = {size, 0, 0};
        for (int32_t y = 0; y < size; ++y)
            if (column[y * size]) extend(of, y, 1);
        of_cells[i] = of;
        if (x >= view.side || view.side >= size) return;
        of = {size, 0, 0};
        int32_t previous = 0;
        for (int32_t y = 0; y < view.side; ++y) {
            const bool here = scene.label(view, y, x) == view.component;
            const int32_t now = here + (x + 1 < view.side && scene.label(view, y, x + 1) == view.component);
            if (here) extend(of, y, 0);
            of.sum += previous + now > 2 ? previous + now - 2 : 0;
            previous = now;
        }
        of_pixels[i] = of;
    }

    TFISEG_HD static void extend(Column &of, int32_t y, int32_t add) {
        if (y < of.low) of.low = y;
        of.high = y + 1;
        of.sum += add;
    }
};

// Half of the convex hull of points with ascending x: the lower half (of y times sign).
class Chain {
  public:
    TFISEG_HD Chain(int32_t *memory, int32_t sign) : points_(memory), sign_(sign) {}

    TFISEG_HD void add(int32_t x, int32_t y) {
        y *= sign_;
        if (n_ && points_[2 * n_ - 2] == x) {
            if (points_[2 * n_ - 1] <= y) return;
            --n_;
        }
        while (n_ >= 2 && !turns(points_ + 2 * n_ - 4, x, y)) --n_;
        points_[2 * n_] = x;
        points_[2 * n_ + 1] = y;
        ++n_;
    }

    // Twice the area between the chain and the axis.
    TFISEG_HD int64_t below() const {
        int64_t sum = 0;
        for (int32_t k = 0; k + 1 < n_; ++k) {
            const int32_t *p = points_ + 2 * k;
            sum += int64_t(p[2] - p[0]) * (p[1] + p[3]);
        }
        return sum * sign_;
    }

  private:
    TFISEG_HD static bool turns(const int32_t *p, int32_t x, int32_t y) {
        return int64_t(p[2] - p[0]) * (y - p[3]) > int64_t(p[3] - p[1]) * (x - p[2]);
    }

    int32_t *points_, sign_, n_ = 0;
};

// Measures convex hulls. One item is half of a hull: of a candidate's cells or pixels, lower or upper.
struct HullHalves {
    const View *views;
    const Column *of_cells, *of_pixels;
    int32_t size;
    int32_t *memory;    // 2 (size + 1) for each item: there is one corner for each x
    Outline *outlines;  // in, out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t k = i >> 2, centres = (i >> 1) & 1, sign = i & 1 ? 1 : -1, n = centres ? views[k].side : size;
        if (centres && n >= size) return;
        const Column *columns = (centres ? of_pixels : of_cells) + int64_t(k) * size;
        Chain chain(memory + int64_t(i) * 2 * (size + 1), sign);
        int64_t twice = 0;
        for (int32_t x = 0; x < n; ++x) {
            const Column of = columns[x];
            twice += centres ? of.sum : 2 * of.sum;
            if (of.low >= of.high) continue;
            const int32_t y = sign > 0 ? of.low : of.high - centres;
            chain.add(x, y);
            if (!centres) chain.add(x + 1, y);
        }
        add(&outlines[k].twice_hull[centres], -sign * chain.below());
        if (sign > 0) outlines[k].twice[centres] = twice;
    }
};

// Selects the candidates that are not convex: in a convex one, there is nothing to cut. Pixels count as squares. Where a view enlarges its
// component, the hull through the centers of the pixels decides as well: the corners of pixels make steps, which are not dents.
struct SelectInformativeViews {
    const View *views;
    const Outline *outlines;
    int32_t size;
    uint32_t *bits;  // in, out

    TFISEG_HD void operator()(int32_t k) const {
        const bool shows_nothing = !outlines[k].twice[0];
        if (shows_nothing || is_convex(outlines[k], 0) || (views[k].side < size && is_convex(outlines[k], 1))) return;
        set_bits(bits + (k >> 5), 1u << (k & 31));
    }

  private:
    TFISEG_HD static bool is_convex(const Outline &of, int32_t kind) { return 100 * of.twice[kind] > kConvexPercent * of.twice_hull[kind]; }
};

// Makes one view of all components of a class with several, unless a component's own view is about as large. One item is a class.
struct ClassViews {
    Scene scene;
    View *views;     // out
    uint32_t *bits;  // in, out

    TFISEG_HD void operator()(int32_t c) const {
        int32_t its = 0, largest = 0;
        Box all = {scene.w, scene.h, 0, 0};
        for (int32_t k = 0; k < scene.components(); ++k) {
            if (scene.class_of(k) != c || !scene.has_selected_class(k)) continue;
            const Box box = scene.box_of(k);
            all = {box.x0 < all.x0 ? box.x0 : all.x0, box.y0 < all.y0 ? box.y0 : all.y0, box.x1 > all.x1 ? box.x1 : all.x1,
                   box.y1 > all.y1 ? box.y1 : all.y1};
            ++its;
            if (scene.is_candidate(k) && side_of(box, scene.size) > largest) largest = side_of(box, scene.size);
        }
        if (its < 2 || !largest) return;
        views[c] = scene.view_of(all, c, 0);
        if (4 * int64_t(largest) < 3 * int64_t(views[c].side)) set_bits(bits + (c >> 5), 1u << (c & 31));
    }
};

// Lists the views to render: the selected candidates, then classes, then empty views up to `count`.
struct ListViews {
    const View *views;  // of candidates, then of classes
    int32_t room, count, size;
    const uint32_t *bits;
    const int32_t *prefix_count;
    View *list;      // out
    int32_t *source;  // out: which candidate; -1: none

    TFISEG_HD int32_t words() const { return ((room + 31) >> 5) + 8; }
    TFISEG_HD int32_t items() const { return room + 256 > count ? room + 256 : count; }

    TFISEG_HD void operator()(int32_t i) const {
        if (i < count && i >= prefix_count[counts_of(words())]) {
            list[i] = {0, 0, size, 0, 0};
            source[i] = -1;
        }
        if (i >= room + 256) return;
        const int32_t bit = i < room ? i : i - room, word = (i < room ? 0 : (room + 31) >> 5) + (bit >> 5);
        if (!(bits[word] >> (bit & 31) & 1u)) return;
        const int32_t slot = bits_before(bits, prefix_count, 32 * int64_t(word) + (bit & 31));
        if (slot >= count) return;
        list[slot] = views[i];
        source[slot] = i < room ? i : -1;
    }
};

// Renders the views.
struct RenderViews {
    Scene scene;
    const View *views;
    const int32_t *source;
    const uint8_t *own_of;         // of candidates
    uint8_t *images, *masks, *own;  // out; own: or null

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t k = i / scene.cells(), cell = i % scene.cells();
        const View view = views[k];
        uint8_t *colour = images + int64_t(i) * 3;
        if (own) own[i] = source[k] < 0 ? uint8_t(0) : own_of[int64_t(source[k]) * scene.cells() + cell];
        if (!view.class_id) {
            colour[0] = colour[1] = colour[2] = uint8_t(kGrey);
            masks[i] = 0;
            return;
        }
        int64_t sum[3] = {0, 0, 0}, its = 0;
        const int64_t total = each_pixel(view, scene.size, cell, [&](int32_t weight, int32_t y, int32_t x) {
            const int32_t at = scene.pixel(view, y, x);
            for (int32_t c = 0; c < 3; ++c) sum[c] += int64_t(weight) * (at < 0 ? kGrey : scene.frame[int64_t(at) * 3 + c]);
            const int32_t label = at < 0 ? 0 : scene.label_map[at];
            its += label && scene.class_of(label - 1) == view.class_id ? weight : 0;
        });
        for (int32_t c = 0; c < 3; ++c) colour[c] = uint8_t((2 * sum[c] + total) / (2 * total));
        masks[i] = 2 * its >= total;
    }
};

// The parts of a view's component, and their numbers in the frame: the largest part keeps the component's number.
struct Partition {
    int32_t parts, largest, base;  // parts 0: not cut

    TFISEG_HD int32_t number_of(int32_t part, int32_t component) const {
        return part == largest || !part ? component : base + part - (part > largest);
    }
};

struct PartResults {
    const int32_t *labels, *counts, *regions;
    const float *tables;
    int32_t most, least_regions;

    TFISEG_HD int32_t parts(const View *views, int32_t k) const {
        return views[k].component && counts[k] > 1 && regions[k] >= least_regions ? counts[k] : 0;
    }
};

struct ClearPieces {
    int32_t *view_of;
    Counters *counters;
    PictureState *state;
    uint32_t *bits;
    int32_t components, bit_words;

    TFISEG_HD void operator()(int32_t i) const {
        if (i == 0) {
            *counters = Counters();
            *state = PictureState();
        }
        if (i < components) view_of[i] = -1;
        if (i < bit_words) bits[i] = 0;
    }
};

// Numbers the parts of all views. One item is a view.
struct PartitionViews {
    Scene scene;
    const View *views;
    PartResults results;
    int32_t count;
    Partition *partitions;  // out
    int32_t *view_of;   // in, out: by component; -1: not cut
    Counters *counters;

    TFISEG_HD void operator()(int32_t k) const {
        int32_t base = scene.components() > 0 ? scene.components() : 0;
        for (int32_t j = 0; j < k; ++j) base += results.parts(views, j) ? results.parts(views, j) - 1 : 0;
        const int32_t parts = results.parts(views, k);
        const float *table = results.tables + int64_t(k) * results.most * TFISEG_TABLE_COLUMNS;
        int32_t largest = 0;
        for (int32_t part = 1; part < parts; ++part)
            if (table[part * TFISEG_TABLE_COLUMNS + 6] > table[largest * TFISEG_TABLE_COLUMNS + 6]) largest = part;
        partitions[k] = {parts, largest + 1, base};
        if (parts) view_of[views[k].component - 1] = k;
        if (k == count - 1) counters->regions = base + (parts ? parts - 1 : 0);
    }
};

// Makes a region for each piece. One item is a piece.
struct CreatePieces {
    Scene scene;
    const View *views;
    const Partition *partitions;
    int32_t count;
    Region *regions;              // out
    int32_t *parent, *component;  // out

    TFISEG_HD void operator()(int32_t i) const {
        int32_t its = i + 1;
        for (int32_t k = 0; k < count; ++k)
            if (partitions[k].parts && i >= partitions[k].base && i < partitions[k].base + partitions[k].parts - 1) its = views[k].component;
        regions[i] = kEmptyRegion;
        regions[i].class_id = scene.class_of(its - 1);
        parent[i] = i;
        component[i] = its;
    }
};

// Finds the piece of each pixel: the part with the most weight among the four cells around it, or the nearest part.
struct PlacePieces {
    Scene scene;
    const View *views;
    const Partition *partitions;
    const int32_t *view_of, *labels;
    int32_t *pieces;  // out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t component = scene.label_map[i];
        if (!component || !scene.has_selected_class(component - 1)) {
            pieces[i] = 0;
            return;
        }
        const int32_t k = view_of[component - 1];
        pieces[i] = k < 0 ? component : partitions[k].number_of(part_at(k, i / scene.w, i % scene.w), component);
    }

  private:
    TFISEG_HD int32_t part_at(int32_t k, int32_t y, int32_t x) const {
        const View view = views[k];
        const int32_t *cells = labels + int64_t(k) * scene.cells();
        const Place rows = place(y - view.y, view.side, scene.size), columns = place(x - view.x, view.side, scene.size);
        const int32_t *row = cells + rows.cell * scene.size, *next = cells + rows.next * scene.size;
        const int32_t a = row[columns.cell], b = row[columns.next], c = next[columns.cell], d = next[columns.next];
        const int64_t ab = int64_t(rows.weight), cd = int64_t(rows.next_weight);
        const int64_t weight_a = ab * columns.weight, weight_b = ab * columns.next_weight, weight_c = cd * columns.weight,
                      weight_d = cd * columns.next_weight;
        const auto weight_of = [&](int32_t part) {
            return (part == a ? weight_a : 0) + (part == b ? weight_b : 0) + (part == c ? weight_c : 0) + (part == d ? weight_d : 0);
        };
        int32_t best = 0;
        int64_t most = 0;
        const auto consider = [&](int32_t part) {
            const int64_t weight = weight_of(part);
            if (!part || weight < most || (weight == most && part >= best)) return;
            best = part;
            most = weight;
        };
        consider(a);
        consider(b);
        consider(c);
        consider(d);
        return best ? best : nearest(cells, rows.nearest(), columns.nearest());
    }

    // Two cells along one axis, and their weights.
    struct Place {
        int32_t cell, next, weight, next_weight;

        TFISEG_HD int32_t nearest() const { return next_weight > weight ? next : cell; }
    };

    TFISEG_HD static Place place(int32_t at, int32_t side, int32_t size) {
        const int32_t unit = 2 * side, scaled = (2 * at + 1) * size - side, cell = scaled < 0 ? -1 : scaled / unit, part = scaled - cell * unit;
        return {cell < 0 ? 0 : cell, cell + 1 < size ? cell + 1 : size - 1, unit - part, part};
    }

    TFISEG_HD int32_t nearest(const int32_t *cells, int32_t y, int32_t x) const {
        for (int32_t reach = 1; reach <= kReach; ++reach)
            for (int32_t dy = -reach; dy <= reach; ++dy)
                for (int32_t dx = -reach; dx <= reach; dx += dy == -reach || dy == reach ? 1 : 2 * reach) {
                    const int32_t v = y + dy, u = x + dx;
                    if (v < 0 || v >= scene.size || u < 0 || u >= scene.size) continue;
                    if (const int32_t part = cells[v * scene.size + u]) return part;
                }
        return 0;
    }
};

// Copies the score of its component to each row of the table.
struct PieceRows {
    Scene scene;
    const int32_t *unions, *number, *component;
    float *table;           // in, out
    int32_t *component_of;  // out

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t r = unions[k];
        if (!number[r]) return;
        table[int64_t(number[r] - 1) * TFISEG_TABLE_COLUMNS + 1] = scene.row(component[r] - 1)[1];
        component_of[number[r] - 1] = component[r];
    }
};

}  // namespace tfiseg
