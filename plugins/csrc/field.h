// Per-pixel (and per-row, per-column) functors: class map -> squared distances -> ascent links -> basins.
//
// The same code runs on a CPU (launch.h) and in CUDA kernels. None of it allocates, synchronizes or depends on the order in which
// pixels are visited: every output is a function of the inputs alone.
#pragma once
#include <cstdint>

#include "atomics.h"

namespace tfiseg {

constexpr int16_t kFarColumn = 30000;     // no pixel of another class in this column
constexpr int32_t kFarSquared = 1 << 26;   // no pixel of another class in the picture: above 2 * 4096^2

// Distance up or down to the nearest pixel of another class, in one column. Range of columns: a CUDA thread takes one, a CPU
// thread many, so that the inner loop runs along memory. Bytes: 2 x (1 read + 2 written) per pixel.
struct ColumnDistance {
    const uint8_t *cls;
    int16_t *distance;  // out
    int32_t h, w;

    TFISEG_HD void operator()(int32_t x_begin, int32_t x_end) const {
        for (int32_t x = x_begin; x < x_end; ++x) distance[x] = kFarColumn;
        for (int32_t y = 1; y < h; ++y) step(y, y - 1, x_begin, x_end, false);
        // the pixel below already has the smaller of both ways, and a way through this pixel is longer than its own
        for (int32_t y = h - 2; y >= 0; --y) step(y, y + 1, x_begin, x_end, true);
    }

    TFISEG_HD void step(int32_t y, int32_t from, int32_t x_begin, int32_t x_end, bool again) const {
        const uint8_t *here = cls + int64_t(y) * w, *there = cls + int64_t(from) * w;
        int16_t *g = distance + int64_t(y) * w;
        const int16_t *previous = distance + int64_t(from) * w;
        for (int32_t x = x_begin; x < x_end; ++x) {
            const int16_t next = int16_t(previous[x] + 1), far = next < kFarColumn ? next : kFarColumn;
            const int16_t d = here[x] == there[x] ? far : int16_t(1);
            g[x] = again && g[x] < d ? g[x] : d;
        }
    }
};

// Exact squared Euclidean distance to the nearest pixel of another class, one row: the lower envelope of parabolas inside each
// run of one class (Meijster, Roerdink, Hesselink 2000). The picture's border is no object border. scratch: 3 * (w + 2) per row.
struct RowDistance {
    const uint8_t *cls;  // 0 = not countable: left at distance 0
    const int16_t *column;
    int32_t *squared;  // out
    int32_t h, w;

    TFISEG_HD void operator()(int32_t y, int32_t *scratch) const {
        const uint8_t *c = cls + int64_t(y) * w;
        for (int32_t x0 = 0; x0 < w;) {
            int32_t x1 = x0 + 1;
            while (x1 < w && c[x1] == c[x0]) ++x1;
            if (c[x0] == 0) {
                int32_t *out = squared + int64_t(y) * w;
                for (int32_t x = x0; x < x1; ++x) out[x] = 0;
            } else {
                run(y, x0, x1, scratch, scratch + w + 2, scratch + 2 * (w + 2));
            }
            x0 = x1;
        }
    }

    // site, from: the envelope's parabolas, by their apex and the first pixel that each is lowest at; rise: apex heights.
    TFISEG_HD void run(int32_t y, int32_t x0, int32_t x1, int32_t *site, int32_t *from, int32_t *rise) const {
        const int16_t *g = column + int64_t(y) * w;
        int32_t *out = squared + int64_t(y) * w;
        int32_t top = -1;
        if (x0 > 0) {  // the pixel before the run is of another class
            top = 0;
            site[0] = x0 - 1;
            rise[0] = 0;
            from[0] = x0;
        }
        const int32_t last = x1 < w ? x1 : x1 - 1;
        for (int32_t u = x0; u <= last; ++u) {
            const int32_t gu = u < x1 ? g[u] : 0;
            if (gu >= kFarColumn) continue;
            const int32_t r = gu * gu;
            while (top >= 0) {
                const int32_t at = from[top], a = at - site[top], b = at - u;
                if (a * a + rise[top] <= b * b + r) break;
                --top;
            }
            if (top < 0) {
                top = 0;
                site[0] = u;
                rise[0] = r;
                from[0] = x0;
            } else {
                const int32_t s = site[top];
                const int32_t start = 1 + ((u - s) * (u + s) + r - rise[top]) / (2 * (u - s));
                if (start < x1) {
                    ++top;
                    site[top] = u;
                    rise[top] = r;
                    from[top] = start;
                }
            }
        }
        if (top < 0) {
            for (int32_t x = x0; x < x1; ++x) out[x] = kFarSquared;
            return;
        }
        for (int32_t end = x1; top >= 0; --top) {
            const int32_t s = site[top], r = rise[top], begin = from[top];
            for (int32_t x = begin; x < end; ++x) out[x] = (x - s) * (x - s) + r;
            end = begin;
        }
    }
};

// Link of every countable pixel to the 3 x 3 neighbour of its class with the largest distance; ties go to the smallest index, so
// (distance, -index) grows strictly along links and there is no cycle.
struct Ascent {
    const uint8_t *cls;
    const int32_t *squared;
    int32_t *link;  // out: index of the linked pixel; own index at a summit; written for countable pixels only
    int32_t h, w;

    // All nine pixels are inside the picture and of one class: branch-free, so that a compiler vectorises a run of it.
    TFISEG_HD void inside(int32_t i) const {
        int32_t best = squared[i - w - 1], offset = -w - 1;
        take(i, -w, best, offset);
        take(i, -w + 1, best, offset);
        take(i, -1, best, offset);
        take(i, 0, best, offset);
        take(i, 1, best, offset);
        take(i, w - 1, best, offset);
        take(i, w, best, offset);
        take(i, w + 1, best, offset);
        link[i] = i + offset;
    }

    // A pixel with no other class within its 3 x 3 neighbours has a squared distance above 2.
    TFISEG_HD static bool is_inside(int32_t squared_distance) { return squared_distance > 2; }

    // Any pixel: number i of the arrays, at (y, x) of its picture.
    TFISEG_HD void outline(int32_t i, int32_t y, int32_t x) const {
        int32_t best = -1, offset = 0;
        for (int32_t dy = -1; dy <= 1; ++dy)
            for (int32_t dx = -1; dx <= 1; ++dx) {
                const bool in = y + dy >= 0 && y + dy < h && x + dx >= 0 && x + dx < w;
                if (in && cls[i + dy * w + dx] == cls[i]) take(i, dy * w + dx, best, offset);
            }
        link[i] = i + offset;
    }

    TFISEG_HD void take(int32_t i, int32_t step, int32_t &best, int32_t &offset) const {
        const bool higher = squared[i + step] > best;
        best = higher ? squared[i + step] : best;
        offset = higher ? step : offset;
    }
};

// The target of a displacement: round(position + vector), clamped to the picture. If the target is of another class, the vector is halved, up
// to three times; a pixel that finds no target stays where it is.
template <class Field = const float *>
struct GivenTarget {
    const uint8_t *cls;
    Field dy, dx;
    int32_t h, w;

    TFISEG_HD static int32_t clamp_round(float v, int32_t limit) {
        const float top = float(limit - 1);
        float r = v + 0.5f;  // half up, by truncation once it is not negative
        r = r > 0.0f ? r : 0.0f;
        return int32_t(r < top ? r : top);
    }

    // The target without a check of its class: branch-free.
    TFISEG_HD int32_t first(int32_t y, int32_t x) const {
        const int32_t i = y * w + x;
        return clamp_round(float(y) + dy[i], h) * w + clamp_round(float(x) + dx[i], w);
    }

    TFISEG_HD int32_t operator()(int32_t y, int32_t x) const {
        const int32_t i = y * w + x;
        float vy = dy[i], vx = dx[i];
        for (int32_t k = 0; k < 4; ++k) {
            const int32_t t = clamp_round(float(y) + vy, h) * w + clamp_round(float(x) + vx, w);
            if (cls[t] == cls[i]) return t;
            vy *= 0.5f;
            vx *= 0.5f;
        }
        return i;
    }

    TFISEG_HD bool is_centre(int32_t i, float radius_squared) const {
        const float a = dy[i] * dy[i], b = dx[i] * dx[i];
        return a + b < radius_squared;
    }
};

// Union-find over pixels, safe from any number of threads at once (Komura 2015; Playne and Hawick 2018): of two roots the larger
// index goes under the smaller.
TFISEG_HD int32_t find_root(const int32_t *link, int32_t i) {
    int32_t next = peek(link + i);
    while (next != i) {
        i = next;
        next = peek(link + i);
    }
    return i;
}

// As find_root; then links every pixel on the way to the root, which keeps the whole pass linear.
TFISEG_HD int32_t find_and_compress(int32_t *link, int32_t i) {
    const int32_t root = find_root(link, i);
    while (i != root) {
        const int32_t next = peek(link + i);
        if (next == root) break;  // as most often: a store saved
        put(link + i, root);
        i = next;
    }
    return root;
}

TFISEG_HD void unite(int32_t *link, int32_t a, int32_t b) {
    a = find_root(link, a);
    b = find_root(link, b);
    while (a != b) {
        if (a < b) {
            const int32_t t = a;
            a = b;
            b = t;
        }
        if (exchange(link + a, a, b)) return;
        a = find_root(link, a);
    }
}

// Basins whose summit stands less than one pixel above the saddle that joins them to a higher one are the raster's noise:
// sqrt(peak) - sqrt(saddle) < 1, in integers.
TFISEG_HD bool is_noise(int64_t saddle, int64_t peak) {
    const int64_t rise = peak - saddle - 1;
    return rise < 0 || rise * rise < 4 * saddle;
}

}  // namespace tfiseg
