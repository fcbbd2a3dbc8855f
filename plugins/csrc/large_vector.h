// Vectors in large pages of memory. One for each pixel or edge is tens of megabytes, and where every pixel is a region it is read all
// over: with pages of 4 KiB, most of the time goes into finding and clearing pages.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tfiseg {

template <class T>
struct LargeAllocator {
    using value_type = T;

    LargeAllocator() = default;
    template <class U>
    LargeAllocator(const LargeAllocator<U> &) {}

    T *allocate(size_t n) {
        if (n > std::numeric_limits<size_t>::max() / 2 / sizeof(T)) throw std::bad_alloc();
        const size_t bytes = n * sizeof(T);
        if (bytes < kSmallest) return static_cast<T *>(::operator new(bytes));
        void *memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
        if (!memory) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        madvise(memory, bytes, MADV_HUGEPAGE);  // where the system refuses, pages stay small and the result is the same
#endif
        return static_cast<T *>(memory);
    }

    void deallocate(T *memory, size_t n) {
        if (n * sizeof(T) < kSmallest) {
            ::operator delete(memory);
        } else {
            std::free(memory);
        }
    }

    bool operator==(const LargeAllocator &) const { return true; }
    bool operator!=(const LargeAllocator &) const { return false; }

  private:
    static constexpr size_t kPage = size_t(2) << 20, kSmallest = 2 * kPage;
};

template <class T>
using LargeVector = std::vector<T, LargeAllocator<T>>;

}  // namespace tfiseg
