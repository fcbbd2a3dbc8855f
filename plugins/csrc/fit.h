// A camera's frame brought to a network's size: the arithmetic, which the CPU and the GPU share, and the phase that a GPU runs.
//
// What the models' own preprocessing does (export/frame_graph.py: bilinear to twice the size, then means of 2 x 2) is a weighted mean of at
// most four rows and four columns. Both devices first blend the rows, in ascending order, and then the columns: equal bit for bit.
#pragma once
#include <cstdint>

#include "four.h"

namespace tfiseg {

constexpr int32_t kTaps = 4;

// The source places of a result place, along one axis. No default values: a GPU keeps one in shared memory.
struct Taps {
    int32_t at[kTaps];  // ascending, each place once; those from `count` on repeat the last one at weight 0, which adds nothing
    float weight[kTaps];
    int32_t count;

    // Loops over taps are unrolled, so that all indices are known and a GPU keeps the arrays in registers.
    TFISEG_HD void add(int32_t place, float w) {
        bool is_known = false;
        TFISEG_UNROLL
        for (int32_t k = 0; k < kTaps; ++k)
            if (k < count && at[k] == place) {
                weight[k] += w;
                is_known = true;
            }
        if (is_known || !(w > 0.0f)) return;
        TFISEG_UNROLL
        for (int32_t k = 0; k < kTaps; ++k)
            if (k >= count) {
                at[k] = place;
                weight[k] = k == count ? w : 0.0f;
            }
        ++count;
    }
};

struct FitAxis {
    int32_t out_size, size;
    float scale;  // of the doubled size

    FitAxis(int32_t out_size, int32_t size) : out_size(out_size), size(size), scale(2.0f * float(out_size) / float(size)) {}

    // The two places of the doubled size that result place i is the mean of, each between two source places.
    TFISEG_HD Taps taps(int32_t i) const {
        Taps taps = {};
        TFISEG_UNROLL
        for (int32_t k = 0; k < 2; ++k) {
            // ONNX Runtime's arithmetic: on a large frame another order of the same operations moves a place by 1e-4 of a pixel
            const float unclamped = (float(2 * i + k) + 0.5f) / scale - 0.5f, last = float(size - 1);
            const float place = unclamped < 0.0f ? 0.0f : unclamped > last ? last : unclamped;
            const int32_t low = int32_t(place);
            const float weight = place - float(low);
            taps.add(low, 0.5f * (1.0f - weight));
            taps.add(low + 1 < size ? low + 1 : size - 1, 0.5f * weight);
        }
        return taps;
    }
};

// A tile is part of a result row. Its rows are blended into shared memory, from bytes that neighboring threads read side by side; then each
// thread gathers the columns of one pixel. Frames so much wider than the result that a tile does not fit there are read byte by byte.
struct FitTiles {
    static constexpr int32_t kSteps = 3, kColumns = 256, kLeastColumns = 32, kStagedBytes = 3072, kItems = kStagedBytes / 4;

    struct Shared {
        Taps rows;
        int64_t row_at[kTaps];  // byte of the frame where each begins; no pointers, since a GPU would not know to which memory they point
        int32_t y, x0;       // of the tile's first pixel
        int32_t begin, end;  // bytes of the source rows that the tile needs; begin is a multiple of 4
        alignas(16) float values[kStagedBytes];
    };

    const uint8_t *frame;
    float *out;
    FitAxis rows, columns;
    int32_t tile_columns, tiles_per_row;
    bool is_staged, has_words;  // has_words: source rows begin at multiples of 4 bytes, and end at them

    FitTiles(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width)
        : frame(frame), out(out), rows(out_height, height), columns(out_width, width) {
        const int32_t least = (out_width + kColumns - 1) / kColumns;  // tiles of a row, all of about one size
        tile_columns = up((out_width + least - 1) / least);
        while (!fits() && tile_columns > kLeastColumns) tile_columns = up(tile_columns / 2);
        is_staged = fits();
        if (!is_staged) tile_columns = kColumns;
        tiles_per_row = (out_width + tile_columns - 1) / tile_columns;
        has_words = reinterpret_cast<uintptr_t>(frame) % 4 == 0 && width % 4 == 0;
    }

    int64_t tiles() const { return int64_t(tiles_per_row) * rows.out_size; }

    TFISEG_HD void operator()(Shared &shared, int64_t tile, int32_t step, int32_t item) const {
        if (step == 0) {
            if (item == 0) {
                shared.y = int32_t(tile) / tiles_per_row;
                const Taps taps = rows.taps(shared.y);
                TFISEG_UNROLL
                for (int32_t k = 0; k < kTaps; ++k) shared.row_at[k] = int64_t(taps.at[k]) * columns.size * 3;
                shared.rows = taps;
            } else if (item == 1) {
                shared.x0 = int32_t(tile) % tiles_per_row * tile_columns;
                bounds(shared.x0, shared.begin, shared.end);
            }
        } else if (step == 1) {
            if (is_staged && shared.begin + 4 * item < shared.end) store_four(shared.values + 4 * item, blend_four(shared, shared.begin + 4 * item));
        } else if (item < tile_columns && shared.x0 + item < columns.out_size) {
            gather(shared, shared.y, shared.x0 + item);
        }
    }

  private:
    // A warp's 32 stores of a tile's row begin at a multiple of 32.
    static int32_t up(int32_t columns) { return (columns + kLeastColumns - 1) / kLeastColumns * kLeastColumns; }

    TFISEG_HD void bounds(int32_t x0, int32_t &begin, int32_t &end) const {
        const int32_t x1 = x0 + tile_columns < columns.out_size ? x0 + tile_columns : columns.out_size;
        begin = columns.taps(x0).at[0] * 3 / 4 * 4;
        end = columns.taps(x1 - 1).at[kTaps - 1] * 3 + 3;
    }

    bool fits() const {
        for (int32_t x0 = 0; x0 < columns.out_size; x0 += tile_columns) {
            int32_t begin, end;
            bounds(x0, begin, end);
            if (end - begin > kStagedBytes) return false;
        }
        return true;
    }

    // One byte of the blended rows.
    TFISEG_HD float blend(const Shared &shared, int32_t at) const {
        float sum = 0.0f;
        TFISEG_NO_UNROLL
        for (int32_t k = 0; k < shared.rows.count; ++k) sum += shared.rows.weight[k] * float(frame[shared.row_at[k] + at]);
        return sum;
    }

    // Four bytes of them, from a multiple of 4 on.
    TFISEG_HD Four<float> blend_four(const Shared &shared, int32_t at) const {
        const Taps &taps = shared.rows;
        Four<float> sums = {};
        if (has_words) {
            Four<uint8_t> bytes[kTaps] = {};  // all loaded before the first is needed
            TFISEG_UNROLL
            for (int32_t k = 0; k < kTaps; ++k)
                if (k < taps.count) bytes[k] = load_four(frame + shared.row_at[k] + at);
            TFISEG_UNROLL
            for (int32_t k = 0; k < kTaps; ++k)
                if (k < taps.count)
                    for (int32_t j = 0; j < 4; ++j) sums[j] += taps.weight[k] * float(bytes[k][j]);
        } else {
            for (int32_t j = 0; j < 4; ++j)
                if (at + j < columns.size * 3) sums[j] = blend(shared, at + j);
        }
        return sums;
    }

    TFISEG_HD void gather(const Shared &shared, int32_t y, int32_t x) const {
        const Taps taps = columns.taps(x);
        float sums[3] = {};
        TFISEG_UNROLL
        for (int32_t k = 0; k < kTaps; ++k)
            if (k < taps.count)
                for (int32_t c = 0; c < 3; ++c) {
                    const int32_t at = taps.at[k] * 3 + c;
                    sums[c] += taps.weight[k] * (is_staged ? shared.values[at - shared.begin] : blend(shared, at));
                }
        const int64_t plane = int64_t(rows.out_size) * columns.out_size, pixel = int64_t(y) * columns.out_size + x;
        for (int32_t c = 0; c < 3; ++c) out[c * plane + pixel] = sums[c];
    }
};

}  // namespace tfiseg
