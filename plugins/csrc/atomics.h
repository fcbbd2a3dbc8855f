// Atomic operations with the same names on a CPU and in CUDA. All are relaxed: barriers separate the phases.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define TFISEG_HD __host__ __device__ __forceinline__
#else
#define TFISEG_HD inline __attribute__((always_inline))
#endif

// For nvcc's device code only: other compilers warn about the pragma, also nvcc's host compiler.
#if defined(__CUDA_ARCH__) && defined(__NVCC__)
#define TFISEG_UNROLL _Pragma("unroll")
#define TFISEG_NO_UNROLL _Pragma("unroll 1")
#else
#define TFISEG_UNROLL
#define TFISEG_NO_UNROLL
#endif

namespace tfiseg {

#ifdef __CUDA_ARCH__
template <class T>
TFISEG_HD T peek(const T *p) {
    return *reinterpret_cast<const volatile T *>(p);
}
template <class T>
TFISEG_HD void put(T *p, T v) {
    *reinterpret_cast<volatile T *>(p) = v;
}
TFISEG_HD bool exchange(int32_t *p, int32_t expected, int32_t wanted) { return atomicCAS(p, expected, wanted) == expected; }
// Returns the old value.
TFISEG_HD uint64_t claim(uint64_t *p, uint64_t expected, uint64_t wanted) {
    return atomicCAS(reinterpret_cast<unsigned long long *>(p), static_cast<unsigned long long>(expected), static_cast<unsigned long long>(wanted));
}
TFISEG_HD int32_t fetch_add(int32_t *p, int32_t v) { return atomicAdd(p, v); }
TFISEG_HD void add(int64_t *p, int64_t v) { atomicAdd(reinterpret_cast<unsigned long long *>(p), static_cast<unsigned long long>(v)); }
TFISEG_HD void raise_to(uint64_t *p, uint64_t v) { atomicMax(reinterpret_cast<unsigned long long *>(p), static_cast<unsigned long long>(v)); }
TFISEG_HD void raise_to(int64_t *p, int64_t v) { atomicMax(reinterpret_cast<long long *>(p), static_cast<long long>(v)); }
TFISEG_HD void raise_to(int32_t *p, int32_t v) { atomicMax(p, v); }
TFISEG_HD void lower_to(uint64_t *p, uint64_t v) { atomicMin(reinterpret_cast<unsigned long long *>(p), static_cast<unsigned long long>(v)); }
TFISEG_HD void lower_to(int64_t *p, int64_t v) { atomicMin(reinterpret_cast<long long *>(p), static_cast<long long>(v)); }
TFISEG_HD void lower_to(int32_t *p, int32_t v) { atomicMin(p, v); }
TFISEG_HD void set_bits(uint32_t *p, uint32_t v) { atomicOr(p, v); }
TFISEG_HD int32_t leading_zeros(uint32_t v) { return __clz(int(v)); }
TFISEG_HD int32_t trailing_zeros(uint32_t v) { return __ffs(int(v)) - 1; }
TFISEG_HD int32_t bit_count(uint32_t v) { return __popc(v); }
#else
template <class T>
TFISEG_HD T peek(const T *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
template <class T>
TFISEG_HD void put(T *p, T v) {
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
TFISEG_HD bool exchange(int32_t *p, int32_t expected, int32_t wanted) {
    return __atomic_compare_exchange_n(p, &expected, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
TFISEG_HD uint64_t claim(uint64_t *p, uint64_t expected, uint64_t wanted) {
    __atomic_compare_exchange_n(p, &expected, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
TFISEG_HD int32_t fetch_add(int32_t *p, int32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
TFISEG_HD void add(int64_t *p, int64_t v) { __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
template <class T>
TFISEG_HD void raise_to(T *p, T v) {
    T now = peek(p);
    while (now < v && !__atomic_compare_exchange_n(p, &now, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}
template <class T>
TFISEG_HD void lower_to(T *p, T v) {
    T now = peek(p);
    while (now > v && !__atomic_compare_exchange_n(p, &now, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}
TFISEG_HD void set_bits(uint32_t *p, uint32_t v) { __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
TFISEG_HD int32_t leading_zeros(uint32_t v) { return __builtin_clz(v); }
TFISEG_HD int32_t trailing_zeros(uint32_t v) { return __builtin_ctz(v); }
TFISEG_HD int32_t bit_count(uint32_t v) { return __builtin_popcount(v); }
#endif

// Whether a condition holds in any of the lanes that are here together, so that they can stay together.
TFISEG_HD bool any_lane(bool here) {
#ifdef __CUDA_ARCH__
    return __ballot_sync(__activemask(), here) != 0;
#else
    return here;
#endif
}

// The next place of a list whose order does not matter. Lanes that arrive together take theirs in one atomic operation.
TFISEG_HD int32_t next_place(int32_t *count) {
#ifdef __CUDA_ARCH__
    const uint32_t together = __activemask(), lane = threadIdx.x & 31u;
    const int32_t leader = trailing_zeros(together);
    int32_t base = 0;
    if (int32_t(lane) == leader) base = fetch_add(count, bit_count(together));
    return __shfl_sync(together, base, leader) + bit_count(together & ((1u << lane) - 1u));
#else
    return fetch_add(count, 1);
#endif
}

TFISEG_HD void append(int32_t *list, int32_t *count, int32_t value) { list[next_place(count)] = value; }

}  // namespace tfiseg
