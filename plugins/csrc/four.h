// Several values in one access to memory.
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

// All: the address must be a multiple of the size. nvcc takes a copy of bytes apart; other compilers need one, for aliasing.
template <class T>
TFISEG_HD T load_whole(const void *from) {
#ifdef __NVCC__
    return *static_cast<const T *>(from);
#else
    T value;
    std::memcpy(&value, __builtin_assume_aligned(from, sizeof value), sizeof value);
    return value;
#endif
}

template <class T>
TFISEG_HD Four<T> load_four(const T *from) {
    return load_whole<Four<T>>(from);
}

// Whether rows of w values are whole blocks, so that a block is loaded in one access. gpu_chains.py counts the loads of such rows alone.
TFISEG_HD bool are_whole_blocks(int32_t w, int32_t block) {
#ifdef TFISEG_WHOLE_BLOCKS
    return true;
#else
    return w % block == 0;
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

// Of memory that others read or write meanwhile. In CUDA, each of the four is old or new, as with `peek` and `put`.
TFISEG_HD Four<int32_t> peek_four(const int32_t *from) {
#ifdef __CUDA_ARCH__
    return load_four(from);
#else
    return {peek(from), peek(from + 1), peek(from + 2), peek(from + 3)};
#endif
}

TFISEG_HD void put_four(int32_t *to, const Four<int32_t> &values) {
#ifdef __CUDA_ARCH__
    store_four(to, values);
#else
    for (int32_t k = 0; k < 4; ++k) put(to + k, values[k]);
#endif
}

}  // namespace tfiseg
