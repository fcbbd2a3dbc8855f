// The operator and its views on a GPU: an executor that launches the phases of pipeline.h and views_pipeline.h as kernels on the
// caller's stream.
//
// Nothing is allocated, synchronized or read back; the device itself reads how much work a later phase has. About 20 launches per
// call; moving cuts adds 7 and two for each pixel of its width, a second pass 25.
// Loops whose end is decided on the device (merging in rounds) run in one kernel: in a single block where the grid is small, so that a
// barrier costs nanoseconds, else in as many blocks as fit at once, in a cooperative launch.
// Bytes moved per grid pixel, classes apart: about 60 (4 distances: 9, links: 12, contacts: 8, regions: 13, labels: 9, ...).
#include <cooperative_groups.h>

#include <cub/block/block_scan.cuh>

#include <atomic>

#include "check.h"
#include "views_pipeline.h"

namespace tfiseg {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kBlocksPerProcessor = 8;  // of loops over what was counted on the device
constexpr int32_t kScanThreads = 1024;
#ifndef TFISEG_PIXELS_PER_BLOCK
#define TFISEG_PIXELS_PER_BLOCK (1 << 16)  // tests take less, so that small grids use several blocks
#endif
constexpr int64_t kPixelsPerBlock = TFISEG_PIXELS_PER_BLOCK;  // of the grid, for a block of a loop's kernel
constexpr int32_t kWordsPerThread = 8;

// What a phase takes: int32_t or int64_t.
template <class Phase, class Index>
Index argument(void (Phase::*)(Index) const);
template <class Phase>
using IndexOf = decltype(argument(&Phase::operator()));

template <class Phase>
__global__ void __launch_bounds__(kThreads) each_kernel(const __grid_constant__ Phase phase, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i < n) phase(IndexOf<Phase>(i));
}

template <class Phase>
__global__ void __launch_bounds__(kThreads) each_counted_kernel(const __grid_constant__ Phase phase, const int32_t *count, int64_t most) {
    const int64_t n = *count < most ? *count : most;
    for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads) phase(IndexOf<Phase>(i));
}

template <class Phases>
__global__ void __launch_bounds__(Phases::kThreads) rounds_kernel(const __grid_constant__ Phases phases) {
    const auto barrier = [] {
        if (gridDim.x == 1) {
            __syncthreads();
        } else {
            cooperative_groups::this_grid().sync();
        }
    };
    const int32_t first = int32_t(blockIdx.x * Phases::kThreads + threadIdx.x), step = int32_t(gridDim.x) * Phases::kThreads;
    for (int32_t round = 0;; ++round) {
        for (int32_t phase = 0; phase < Phases::kPhases; ++phase) {
            const int32_t n = phases.items(phase, round);
            for (int32_t k = first; k < n; k += step) phases(phase, round, k);
            barrier();
        }
        if (!phases.has_next(round)) return;
    }
}

// One block: exclusive sums of bit counts. prefix_count has words + 1 entries.
__global__ void __launch_bounds__(kScanThreads) prefix_sum_kernel(const uint32_t *bits, int32_t *prefix_count, int64_t words) {
    using Scan = cub::BlockScan<int32_t, kScanThreads>;
    __shared__ typename Scan::TempStorage storage;
    int32_t done = 0;
    for (int64_t tile = 0; tile < words; tile += int64_t(kScanThreads) * kWordsPerThread) {
        const int64_t start = tile + int64_t(threadIdx.x) * kWordsPerThread;
        int32_t counts[kWordsPerThread], total;
        for (int32_t k = 0; k < kWordsPerThread; ++k) counts[k] = start + k < words ? __popc(bits[start + k]) : 0;
        Scan(storage).ExclusiveSum(counts, counts, total);
        for (int32_t k = 0; k < kWordsPerThread; ++k)
            if (start + k < words) prefix_count[start + k] = done + counts[k];
        done += total;
        __syncthreads();  // before storage is used again
    }
    if (threadIdx.x == 0) prefix_count[words] = done;
}

class Cuda {
  public:
    explicit Cuda(cudaStream_t stream) : stream_(stream) {
        int device = 0;
        keep(cudaGetDevice(&device));
        keep(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device));
    }

    cudaError_t status() const { return status_; }

    template <class Phase>
    void each(int64_t n, const Phase &phase) {
        if (status_ == cudaSuccess && n > 0) launch(each_kernel<Phase>, blocks_of(n), kThreads, false, phase, n);
    }

    template <class Phase>
    void each_counted(const int32_t *count, int64_t most, const Phase &phase) {
        if (status_ == cudaSuccess && most > 0)
            launch(each_counted_kernel<Phase>, std::min<int64_t>(blocks_of(most), kBlocksPerProcessor * processors_), kThreads, false, phase, count, most);
    }

    template <class Phases>
    void rounds(int64_t pixels, const Phases &phases) {
        int64_t blocks = std::max<int64_t>(1, pixels / kPixelsPerBlock);
        if (status_ == cudaSuccess && blocks > 1) {  // a cooperative kernel must be resident as a whole
            int resident = 1;
            keep(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, rounds_kernel<Phases>, Phases::kThreads, 0));
            blocks = std::min(blocks, int64_t(resident) * processors_);
        }
        if (status_ == cudaSuccess) launch(rounds_kernel<Phases>, blocks, Phases::kThreads, blocks > 1, phases);
    }

    void prefix_sum(const uint32_t *bits, int32_t *prefix_count, int64_t words) {
        if (status_ == cudaSuccess) launch(prefix_sum_kernel, 1, kScanThreads, false, bits, prefix_count, words);
    }

  private:
    void keep(cudaError_t status) {
        if (status_ == cudaSuccess) status_ = status;
    }

    static int64_t blocks_of(int64_t n) { return (n + kThreads - 1) / kThreads; }

    template <class... Parameters, class... Arguments>
    void launch(void (*kernel)(Parameters...), int64_t blocks, int32_t threads, bool cooperative, const Arguments &...arguments) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(static_cast<unsigned>(blocks));
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.stream = stream_;
        config.attrs = &attribute;
        config.numAttrs = cooperative ? 1 : 0;
        keep(cudaLaunchKernelEx(&config, kernel, arguments...));
    }

    cudaStream_t stream_;
    cudaError_t status_ = cudaSuccess;
    int processors_ = 1;
};

}  // namespace
}  // namespace tfiseg

extern "C" int32_t tfiseg_cluster_cuda(const tfiseg_problem *problem, tfiseg_result *result, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(problem, result, TFISEG_ON_CUDA)) return status;
    Cuda executor(static_cast<cudaStream_t>(stream));
    cluster_on(executor, *problem, *result);
    return executor.status() == cudaSuccess ? TFISEG_OK : TFISEG_CUDA_ERROR;
}

extern "C" int32_t tfiseg_cut_views_cuda(const tfiseg_views *views, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(views)) return status;
    Cuda executor(static_cast<cudaStream_t>(stream));
    cut_views_on(executor, *views);
    return executor.status() == cudaSuccess ? TFISEG_OK : TFISEG_CUDA_ERROR;
}

extern "C" int32_t tfiseg_place_pieces_cuda(const tfiseg_views *views, const tfiseg_pieces *pieces, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(views, pieces)) return status;
    Cuda executor(static_cast<cudaStream_t>(stream));
    place_pieces_on(executor, *views, *pieces);
    return executor.status() == cudaSuccess ? TFISEG_OK : TFISEG_CUDA_ERROR;
}
