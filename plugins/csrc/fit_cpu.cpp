// A camera's frame brought to a network's size on the CPU, in one pass over the frame.
//
// Each result row is a blend of source rows, bytes that lie in a row and vectorise, and then a gather along it; nothing of the frame's size
// is written (ONNX Runtime makes three float copies of it on its way). Not worth threads: 0.7 ms for 1920 x 1080. fit.h has the arithmetic.
#include <algorithm>
#include <new>
#include <vector>

#include "check.h"
#include "fit.h"
#include "launch.h"

namespace tfiseg {
namespace {

std::vector<Taps> taps_of(const FitAxis &axis) {
    std::vector<Taps> all(static_cast<size_t>(axis.out_size));
    for (int32_t i = 0; i < axis.out_size; ++i) all[size_t(i)] = axis.taps(i);
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
    const std::vector<Taps> rows = taps_of({out_h, h}), columns = taps_of({out_w, w});
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
    if (const int32_t status = tfiseg::check_fit(frame, height, width, out, out_height, out_width)) return status;
    try {
        tfiseg::fit(frame, height, width, out, out_height, out_width);
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    } catch (...) {
        return TFISEG_INTERNAL_ERROR;
    }
    return TFISEG_OK;
}
