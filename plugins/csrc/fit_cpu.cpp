// A camera's frame brought to a network's size on the CPU, in one pass over the frame.
//
// What the models' own preprocessing does (export/frame_graph.py: bilinear to twice the size, then means of 2 x 2) is a weighted mean of at
// most four rows and four columns. So each result row is a blend of source rows, bytes that lie in a row and vectorise, and then a
// gather along it; nothing of the frame's size is written (ONNX Runtime makes three float copies of it on its way). Not worth threads: 0.7 ms
// for 1920 x 1080.
#include <algorithm>
#include <new>
#include <vector>

#include "launch.h"
#include "tfiseg.h"

namespace tfiseg {
namespace {

constexpr int32_t kTaps = 4;

struct Taps {
    int32_t at[kTaps] = {};  // each place once; those beyond `count` repeat one at weight 0
    float weight[kTaps] = {};
    int32_t count = 0;

    void add(int32_t place, float w) {
        int32_t k = 0;
        while (k < count && at[k] != place) ++k;
        if (k == count && w > 0.0f) at[count++] = place;
        if (k < count) weight[k] += w;
    }
};

// The two places of the doubled size that a result place is the mean of, each between two source places.
std::vector<Taps> taps_of(int32_t out_size, int32_t size) {
    std::vector<Taps> all(static_cast<size_t>(out_size));
    for (int32_t i = 0; i < out_size; ++i) {
        Taps &taps = all[size_t(i)];
        for (int32_t k = 0; k < 2; ++k) {
            // ONNX Runtime's arithmetic: on a large frame another order of the same operations moves a place by 1e-4 of a pixel
            const float scale = 2.0f * float(out_size) / float(size);
            const float place = std::min(std::max((float(2 * i + k) + 0.5f) / scale - 0.5f, 0.0f), float(size - 1));
            const int32_t low = int32_t(place);
            const float weight = place - float(low);
            taps.add(low, 0.5f * (1.0f - weight));
            taps.add(std::min(low + 1, size - 1), 0.5f * weight);
        }
        for (int32_t k = taps.count; k < kTaps; ++k) taps.at[k] = taps.at[taps.count - 1];
    }
    return all;
}

TFISEG_CLONES void start_row(const uint8_t *source, float weight, float *row, int64_t n) {
    for (int64_t x = 0; x < n; ++x) row[x] = weight * float(source[x]);
}

TFISEG_CLONES void add_row(const uint8_t *source, float weight, float *row, int64_t n) {
    for (int64_t x = 0; x < n; ++x) row[x] += weight * float(source[x]);
}

template <int32_t Count>
void gather(const float *row, const std::vector<Taps> &columns, float *out, int64_t plane) {
    for (size_t x = 0; x < columns.size(); ++x) {
        float sum[3] = {};
        for (int32_t k = 0; k < Count; ++k) {
            const float *pixel = row + int64_t(columns[x].at[k]) * 3;
            for (int32_t c = 0; c < 3; ++c) sum[c] += columns[x].weight[k] * pixel[c];
        }
        for (int32_t c = 0; c < 3; ++c) out[c * plane + int64_t(x)] = sum[c];
    }
}

void fit(const uint8_t *frame, int32_t h, int32_t w, float *out, int32_t out_h, int32_t out_w) {
    const std::vector<Taps> rows = taps_of(out_h, h), columns = taps_of(out_w, w);
    int32_t most = 1;
    for (const Taps &t : columns) most = std::max(most, t.count);
    const auto along = most <= 2 ? gather<2> : most == 3 ? gather<3> : gather<4>;
    const int64_t values = int64_t(w) * 3, plane = int64_t(out_h) * out_w;
    std::vector<float> row(static_cast<size_t>(values));
    for (int64_t y = 0; y < out_h; ++y) {
        const Taps &taps = rows[size_t(y)];
        start_row(frame + taps.at[0] * values, taps.weight[0], row.data(), values);
        for (int32_t k = 1; k < taps.count; ++k) add_row(frame + taps.at[k] * values, taps.weight[k], row.data(), values);
        along(row.data(), columns, out + y * out_w, plane);
    }
}

}  // namespace
}  // namespace tfiseg

extern "C" int32_t tfiseg_fit_frame(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width) {
    if (!frame || !out) return TFISEG_MISSING_POINTER;
    for (const int32_t side : {height, width, out_height, out_width})
        if (side < 1 || side > TFISEG_MAX_OUT_SIDE) return TFISEG_BAD_SHAPE;
    try {
        tfiseg::fit(frame, height, width, out, out_height, out_width);
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    } catch (...) {
        return TFISEG_INTERNAL_ERROR;
    }
    return TFISEG_OK;
}
