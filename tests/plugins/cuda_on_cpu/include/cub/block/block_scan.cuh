// The one block scan that cluster_cuda.cu uses.
#pragma once
#include "../../cuda_runtime.h"

namespace cub {

template <class T, int Threads>
class BlockScan {
  public:
    struct TempStorage {
        T sums[Threads];
    };

    explicit BlockScan(TempStorage &storage) : storage_(storage) {}

    // No barrier at the end: as with CUB, the caller must synchronize before the storage is used again. CUB's own sum takes far fewer
    // accesses to shared memory, so these are not counted.
    template <int Items>
    __attribute__((no_sanitize("thread"))) void ExclusiveSum(T (&in)[Items], T (&out)[Items], T &total) {
        T mine = 0;
        for (const T value : in) mine += value;
        storage_.sums[threadIdx.x] = mine;
        __syncthreads();
        T sum = 0;
        total = 0;
        for (int thread = 0; thread < Threads; ++thread) {
            if (thread < int(threadIdx.x)) sum += storage_.sums[thread];
            total += storage_.sums[thread];
        }
        for (int k = 0; k < Items; ++k) {
            const T value = in[k];
            out[k] = sum;
            sum += value;
        }
    }

  private:
    TempStorage &storage_;
};

}  // namespace cub
