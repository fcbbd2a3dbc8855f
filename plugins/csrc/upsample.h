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

template <class WriteLabels = const int32_t *, class Logits = const float *>
struct FullResolution {
    const uint8_t *grid_class;  // (h, w) argmax of the logits
    WriteLabels grid_label;          // (h, w)
    Logits logits;              // (classes, h, w)
    int32_t classes, h, w;

    // Class and grid label of one output pixel.
    TFISEG_HD void operator()(const GridPosition &y, const GridPosition &x, uint8_t &out_class, int32_t &out_label) const {
        const int32_t corner[4] = {y.low * w + x.low, y.low * w + x.high, y.high * w + x.low, y.high * w + x.high};
        const uint8_t c = grid_class[corner[0]];
        const int32_t nearest = y.nearest * w + x.nearest;
        if (grid_class[corner[1]] == c && grid_class[corner[2]] == c && grid_class[corner[3]] == c) {
            out_class = c;
            out_label = grid_label[nearest];
            return;
        }
        const int64_t plane = int64_t(h) * w;
        float best = 0.0f;
        int32_t winner = -1;
        for (int32_t k = 0; k < classes; ++k) {
            const Logits l = logits + k * plane;
            const float above = (1.0f - x.weight) * l[corner[0]] + x.weight * l[corner[1]];
            const float below = (1.0f - x.weight) * l[corner[2]] + x.weight * l[corner[3]];
            const float value = (1.0f - y.weight) * above + y.weight * below;
            if (winner < 0 || value > best) {
                best = value;
                winner = k;
            }
        }
        out_class = uint8_t(winner);
        out_label = 0;
        float least = 1e30f;
        for (int32_t gy = y.low - 1; gy <= y.low + 2; ++gy) {  // two grid pixels in each direction: farther away, it is another object
            if (gy < 0 || gy >= h) continue;
            for (int32_t gx = x.low - 1; gx <= x.low + 2; ++gx) {
                if (gx < 0 || gx >= w || grid_class[gy * w + gx] != winner) continue;
                const float dy = float(gy - y.low) - y.weight, dx = float(gx - x.low) - x.weight;
                const float a = dy * dy, b = dx * dx;
                if (a + b < least) {
                    least = a + b;
                    out_label = grid_label[gy * w + gx];
                }
            }
        }
    }
};

}  // namespace tfiseg
