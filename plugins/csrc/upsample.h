// Full-resolution output of a clustered grid: class = argmax of the bilinearly interpolated logits, instance = that of the
// nearest grid pixel of the same class. The (classes, H, W) array is never made.
//
// Bytes per output pixel: 5 written; the grid is read from cache. Where the four surrounding grid pixels agree on the class, it
// wins at every point between them (interpolation is monotone), so only cells on outlines read every class.
#pragma once
#include "field.h"

namespace tfiseg {

struct GridPosition {
    int32_t low, high;  // grid pixels around, clamped to the grid
    float weight;       // of `high`
    int32_t nearest;    // low or high, whichever is nearer
};

// Half-pixel centres (align_corners=False), as torch and ONNX Resize have it.
TFISEG_HD GridPosition grid_position(int32_t out, int32_t out_size, int32_t size) {
    float p = (float(out) + 0.5f) * (float(size) / float(out_size)) - 0.5f;
    if (p < 0.0f) p = 0.0f;
    int32_t low = int32_t(p);
    if (low > size - 1) low = size - 1;
    const int32_t high = low + 1 < size ? low + 1 : low;
    const float weight = high == low ? 0.0f : p - float(low);
    return {low, high, weight, weight < 0.5f ? low : high};
}

// Labels of grid pixels.
struct GridLabels {
    const int32_t *map;

    // pixels: -1 for none, which has label 0.
    template <int32_t kRows>
    TFISEG_HD void load(const int32_t (&pixels)[kRows], int32_t (&out)[kRows]) const {
        for (int32_t j = 0; j < kRows; ++j) out[j] = pixels[j] < 0 ? 0 : map[pixels[j]];
    }
};

template <class Labels = GridLabels, class Logits = const float *>
struct FullResolution {
    const uint8_t *grid_class;  // (h, w) argmax of the logits
    Labels grid_label;          // (h, w)
    Logits logits;              // (classes, h, w)
    int32_t classes, h, w;

    // Class and grid label of one output pixel.
    TFISEG_HD void operator()(const GridPosition &y, const GridPosition &x, uint8_t &out_class, int32_t &out_label) const {
        const GridPosition rows[1] = {y};
        uint8_t found_class[1];
        int32_t found_label[1];
        column(rows, 1, x, found_class, found_label);
        out_class = found_class[0];
        out_label = found_label[0];
    }

    // Of `count` output pixels of a column that lie between the same two grid rows.
    template <int32_t kRows>
    TFISEG_HD void column(const GridPosition (&y)[kRows], int32_t count, const GridPosition &x, uint8_t (&out_class)[kRows],
                          int32_t (&out_label)[kRows]) const {
        const int32_t low = y[0].low, high = y[0].high;
        const int32_t corner[4] = {low * w + x.low, low * w + x.high, high * w + x.low, high * w + x.high};
        const uint8_t c = grid_class[corner[0]];
        if (grid_class[corner[1]] == c && grid_class[corner[2]] == c && grid_class[corner[3]] == c) {
            int32_t nearest[kRows];
            for (int32_t j = 0; j < kRows; ++j) {
                out_class[j] = c;
                nearest[j] = j < count ? y[j].nearest * w + x.nearest : -1;
            }
            grid_label.load(nearest, out_label);
            return;
        }
        const int64_t plane = int64_t(h) * w;
        float best[kRows] = {};
        int32_t winner[kRows] = {};
        Logits at[4] = {logits + corner[0], logits + corner[1], logits + corner[2], logits + corner[3]};
        for (int32_t k = 0; k < classes; ++k) {
            const float above = (1.0f - x.weight) * at[0][0] + x.weight * at[1][0];
            const float below = (1.0f - x.weight) * at[2][0] + x.weight * at[3][0];
            for (Logits &one : at) one = one + plane;
            for (int32_t j = 0; j < kRows; ++j) {
                const float value = (1.0f - y[j].weight) * above + y[j].weight * below;
                const bool wins = k == 0 || value > best[j];
                best[j] = wins ? value : best[j];
                winner[j] = wins ? k : winner[j];
            }
        }
        float least[kRows];
        int32_t nearest[kRows];
        for (int32_t j = 0; j < kRows; ++j) {
            least[j] = 1e30f;
            nearest[j] = -1;
        }
        for (int32_t gy = low - 1; gy <= low + 2; ++gy) {  // two grid pixels in each direction: farther away, it is another object
            if (gy < 0 || gy >= h) continue;
            for (int32_t gx = x.low - 1; gx <= x.low + 2; ++gx) {
                if (gx < 0 || gx >= w) continue;
                const int32_t there = grid_class[gy * w + gx];
                const float dx = float(gx - x.low) - x.weight, b = dx * dx;
                for (int32_t j = 0; j < kRows; ++j) {
                    const float dy = float(gy - low) - y[j].weight, a = dy * dy;
                    const bool is_nearer = there == winner[j] && a + b < least[j];
                    least[j] = is_nearer ? a + b : least[j];
                    nearest[j] = is_nearer ? gy * w + gx : nearest[j];
                }
            }
        }
        for (int32_t j = 0; j < kRows; ++j) {
            out_class[j] = uint8_t(winner[j]);
            if (j >= count) nearest[j] = -1;
        }
        grid_label.load(nearest, out_label);
    }
};

}  // namespace tfiseg
