// Arrays carved out of the caller's workspace, on the CPU. Nothing is zeroed: every phase writes before it reads.
#pragma once
#include <cstdint>
#include <new>

namespace tfiseg {

class Arena {
  public:
    static constexpr int64_t kAlign = 64;

    Arena(void *memory, int64_t bytes) : next_(static_cast<char *>(memory)), left_(bytes) {
        const int64_t skip = (kAlign - int64_t(reinterpret_cast<uintptr_t>(memory) % kAlign)) % kAlign;
        next_ += skip;
        left_ -= skip;
    }

    template <class T>
    T *take(int64_t n) {
        const int64_t bytes = (n * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
        if (bytes > left_) throw std::bad_alloc();  // cpu_workspace_bytes() counted wrong
        T *array = reinterpret_cast<T *>(next_);
        next_ += bytes;
        left_ -= bytes;
        return array;
    }

  private:
    char *next_;
    int64_t left_;
};

}  // namespace tfiseg
