// A network's maps of numbers: float32 or float16, read as float32.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#include "atomics.h"

namespace tfiseg {

// IEEE half to float, exact; on a CPU by hand, since not every compiler has the type.
TFISEG_HD float half_to_float(uint16_t bits) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 1023u;
    float value;
    if (exponent == 0) {
        value = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24: zero and subnormals
        return sign ? -value : value;
    }
    const uint32_t word = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112u) << 23) | (mantissa << 13);
    std::memcpy(&value, &word, sizeof value);
    return value;
#endif
}

struct Values {
    const void *data;  // NULL: not given
    bool is_half;

    TFISEG_HD float operator[](int64_t i) const {
        return is_half ? half_to_float(static_cast<const uint16_t *>(data)[i]) : static_cast<const float *>(data)[i];
    }
    TFISEG_HD Values operator+(int64_t i) const {
        return {static_cast<const char *>(data) + i * (is_half ? 2 : 4), is_half};
    }
};

// Values that are float16, for loops where deciding it each time costs too much.
struct Halves {
    const uint16_t *data;

    TFISEG_HD float operator[](int64_t i) const { return half_to_float(data[i]); }
    TFISEG_HD Halves operator+(int64_t i) const { return {data + i}; }
};

// Enlarges a map whose cells are `stride` pixels. One item is a pixel of a batch of (h, w).
struct Enlarge {
    Values cells;
    int32_t h, w, stride;
    void *out;  // of the same type

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t x = i % w, row = i / w, y = row % h, cells_h = (h + stride - 1) / stride, cells_w = (w + stride - 1) / stride;
        const int64_t from = (int64_t(row / h) * cells_h + y / stride) * cells_w + x / stride;
        if (cells.is_half) {
            static_cast<uint16_t *>(out)[i] = static_cast<const uint16_t *>(cells.data)[from];
        } else {
            static_cast<float *>(out)[i] = static_cast<const float *>(cells.data)[from];
        }
    }
};

}  // namespace tfiseg
