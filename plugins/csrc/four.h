// Four neighboring values in one access to memory.
#pragma once
#include <cstring>

#include "atomics.h"

namespace tfiseg {

template <class T>
struct alignas(4 * sizeof(T)) Four {
    T values[4];

    TFISEG_HD T &operator[](int32_t k) { return values[k]; }
    TFISEG_HD const T &operator[](int32_t k) const { return values[k]; }
};

// Both: the address must be a multiple of the size. nvcc takes a copy of bytes apart; other compilers need one, for aliasing.
template <class T>
TFISEG_HD Four<T> load_four(const T *from) {
#ifdef __NVCC__
    return *reinterpret_cast<const Four<T> *>(from);
#else
    Four<T> values;
    std::memcpy(&values, __builtin_assume_aligned(from, sizeof values), sizeof values);
    return values;
#endif
}

template <class T>
TFISEG_HD void store_four(T *to, const Four<T> &values) {
#ifdef __NVCC__
    *reinterpret_cast<Four<T> *>(to) = values;
#else
    std::memcpy(__builtin_assume_aligned(to, sizeof values), &values, sizeof values);
#endif
}

}  // namespace tfiseg
