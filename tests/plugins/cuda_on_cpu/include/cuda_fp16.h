// The part of half precision that values.h needs.
#pragma once
#include <cstring>

struct __half {
    _Float16 value;
};

inline float __half2float(__half half) { return float(half.value); }

inline __half __ushort_as_half(unsigned short bits) {
    __half half;
    std::memcpy(&half.value, &bits, sizeof bits);
    return half;
}
