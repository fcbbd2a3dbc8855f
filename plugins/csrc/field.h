// Per-pixel (and per-row, per-column) functors: class map -> squared distances -> ascent links -> basins.
//
// The same lines run on a CPU (launch.h) and in CUDA kernels. None allocates, synchronises or depends on the order in which
// pixels are visited: every output is a function of the inputs alone.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define TFISEG_HD __host__ __device__ __forceinline__
#else
#define TFISEG_HD inline __attribute__((always_inline))
#endif

namespace tfiseg {

constexpr uint16_t kFarColumn = 30000;     // no pixel of another class in this column
constexpr int32_t kFarSquared = 1 << 26;   // no pixel of another class in the picture: above 2 * 4096^2

// Distance up or down to the nearest pixel of another class, in one column. Range of columns: a CUDA thread takes one, a CPU
// thread many, so that the inner loop runs along memory. Bytes: 2 x (1 read + 2 written) per pixel.
struct ColumnDistance {
    const uint8_t *cls;
    uint16_t *down;  // out: the distance
    int32_t h, w;

    TFISEG_HD void operator()(int32_t x_begin, int32_t x_end) const {
        for (int32_t x = x_begin; x < x_end; ++x) down[x] = kFarColumn;
        for (int32_t y = 1; y < h; ++y) {
            const uint8_t *here = cls + int64_t(y) * w, *above = here - w;
            uint16_t *g = down + int64_t(y) * w;
            const uint16_t *g_above = g - w;
            for (int32_t x = x_begin; x < x_end; ++x) {
                const uint16_t next = g_above[x] < kFarColumn ? uint16_t(g_above[x] + 1) : kFarColumn;
                g[x] = here[x] == above[x] ? next : uint16_t(1);
            }
        }
        for (int32_t y = h - 2; y >= 0; --y) {
            const uint8_t *here = cls + int64_t(y) * w, *below = here + w;
            uint16_t *g = down + int64_t(y) * w;
            const uint16_t *g_below = g + w;
            for (int32_t x = x_begin; x < x_end; ++x) {
                // g_below is already the smaller of both ways; a way up that went through this pixel is longer than g's own
                const uint16_t next = g_below[x] < kFarColumn ? uint16_t(g_below[x] + 1) : kFarColumn;
                const uint16_t up = here[x] == below[x] ? next : uint16_t(1);
                g[x] = up < g[x] ? up : g[x];
            }
        }
    }
};

// Exact squared Euclidean distance to the nearest pixel of another class, one row: the lower envelope of parabolas inside each
// run of one class (Meijster, Roerdink, Hesselink 2000). The picture's border is no object border. scratch: 2 * w per row.
struct RowDistance {
    const uint8_t *cls;      // 0 = not countable: left at distance 0
    const uint16_t *column;
    int32_t *squared;  // out
    int32_t h, w;

    TFISEG_HD static int32_t height(int32_t x, int32_t site, int32_t g) { return (x - site) * (x - site) + g * g; }

    TFISEG_HD void operator()(int32_t y, int32_t *site, int32_t *from) const {
        const uint8_t *c = cls + int64_t(y) * w;
        const uint16_t *g = column + int64_t(y) * w;
        int32_t *out = squared + int64_t(y) * w;
        int32_t x0 = 0;
        while (x0 < w) {
            int32_t x1 = x0 + 1;
            while (x1 < w && c[x1] == c[x0]) ++x1;
            if (c[x0] == 0) {
                for (int32_t x = x0; x < x1; ++x) out[x] = 0;
            } else {
                run(g, out, x0, x1, site, from);
            }
            x0 = x1;
        }
    }

    TFISEG_HD void run(const uint16_t *g, int32_t *out, int32_t x0, int32_t x1, int32_t *site, int32_t *from) const {
        int32_t top = -1;
        const int32_t first = x0 > 0 ? x0 - 1 : x0, last = x1 < w ? x1 : x1 - 1;
        for (int32_t u = first; u <= last; ++u) {
            const int32_t gu = (u < x0 || u >= x1) ? 0 : g[u];
            if (gu >= kFarColumn) continue;
            while (top >= 0 && height(from[top], site[top], ground(g, site[top], x0, x1)) > height(from[top], u, gu)) --top;
            if (top < 0) {
                top = 0;
                site[0] = u;
                from[0] = x0;
            } else {
                const int32_t s = site[top], gs = ground(g, s, x0, x1);
                const int32_t start = 1 + (u * u - s * s + gu * gu - gs * gs) / (2 * (u - s));
                if (start < x1) {
                    ++top;
                    site[top] = u;
                    from[top] = start;
                }
            }
        }
        if (top < 0) {
            for (int32_t x = x0; x < x1; ++x) out[x] = kFarSquared;
            return;
        }
        for (int32_t end = x1; top >= 0; --top) {
            const int32_t s = site[top], gs = ground(g, s, x0, x1), begin = from[top];
            for (int32_t x = begin; x < end; ++x) out[x] = height(x, s, gs);
            end = begin;
        }
    }

    TFISEG_HD static int32_t ground(const uint16_t *g, int32_t site, int32_t x0, int32_t x1) {
        return (site < x0 || site >= x1) ? 0 : g[site];
    }
};

// Link of every countable pixel to the 3 x 3 neighbour of its class with the largest distance; ties go to the smallest index, so
// (distance, -index) grows strictly along links and there is no cycle.
struct Ascent {
    const uint8_t *cls;
    const int32_t *squared;
    int32_t *link;  // out: index of the linked pixel; own index at a summit and off the countable classes
    int32_t h, w;

    // inside the picture; branch-free, so that a compiler vectorises a row of it
    TFISEG_HD void interior(int32_t i) const {
        const uint8_t c = cls[i];
        int32_t best = -1, offset = 0;
        visit(i, -w - 1, c, best, offset);
        visit(i, -w, c, best, offset);
        visit(i, -w + 1, c, best, offset);
        visit(i, -1, c, best, offset);
        visit(i, 0, c, best, offset);
        visit(i, 1, c, best, offset);
        visit(i, w - 1, c, best, offset);
        visit(i, w, c, best, offset);
        visit(i, w + 1, c, best, offset);
        link[i] = i + (c ? offset : 0);
    }

    TFISEG_HD void border(int32_t y, int32_t x) const {
        const int32_t i = y * w + x;
        const uint8_t c = cls[i];
        int32_t best = -1, offset = 0;
        for (int32_t dy = -1; dy <= 1; ++dy)
            for (int32_t dx = -1; dx <= 1; ++dx)
                if (y + dy >= 0 && y + dy < h && x + dx >= 0 && x + dx < w) visit(i, dy * w + dx, c, best, offset);
        link[i] = i + (c ? offset : 0);
    }

    TFISEG_HD void visit(int32_t i, int32_t step, uint8_t c, int32_t &best, int32_t &offset) const {
        const int32_t height = cls[i + step] == c ? squared[i + step] : -1;
        const bool higher = height > best;
        best = higher ? height : best;
        offset = higher ? step : offset;
    }
};

// Where a given displacement leads: round(position + vector), inside the picture. A target off the own class is approached by
// halves of the way; a pixel that finds none stays where it is.
struct GivenTarget {
    const uint8_t *cls;
    const float *dy, *dx;
    int32_t h, w;

    TFISEG_HD static int32_t clamp_round(float v, int32_t limit) {
        const float r = v + 0.5f;  // v >= -0.5 after the clamp below: truncation rounds half up
        return r <= 0.0f ? 0 : (r >= float(limit) ? limit - 1 : int32_t(r));
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

// Union-find over pixels, root = smallest index, safe from any number of threads at once (Komura 2015; Playne and Hawick 2018).
#ifdef __CUDA_ARCH__
TFISEG_HD int32_t peek(const int32_t *p) { return *reinterpret_cast<const volatile int32_t *>(p); }
TFISEG_HD bool exchange(int32_t *p, int32_t expected, int32_t wanted) { return atomicCAS(p, expected, wanted) == expected; }
TFISEG_HD void put(int32_t *p, int32_t v) { *reinterpret_cast<volatile int32_t *>(p) = v; }
#else
TFISEG_HD int32_t peek(const int32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
TFISEG_HD void put(int32_t *p, int32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
TFISEG_HD bool exchange(int32_t *p, int32_t expected, int32_t wanted) {
    return __atomic_compare_exchange_n(p, &expected, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
#endif

TFISEG_HD int32_t find_root(const int32_t *link, int32_t i) {
    int32_t next = peek(link + i);
    while (next != i) {
        i = next;
        next = peek(link + i);
    }
    return i;
}

// As find_root; every pixel of the way then points at the root, which keeps the whole pass linear.
TFISEG_HD int32_t find_and_compress(int32_t *link, int32_t i) {
    const int32_t root = find_root(link, i);
    while (i != root) {
        const int32_t next = peek(link + i);
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
