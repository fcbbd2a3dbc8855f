// The operator, its views, mask refinement and preprocessing on a GPU: executors that run the sections and phases of pipeline.h,
// views_pipeline.h, mask_refinement_pipeline.h and fit.h on the caller's stream.
//
// Nothing is allocated, synchronized or read back; the device itself reads how much work a phase has. A section is one cooperative launch:
// all of its blocks are resident, and a barrier of the grid separates phases. Where the device counts few items, one block works alone,
// with its own barrier, and the others wait at the next barrier of the grid. docs/benchmarks/gpu.md counts launches, barriers and bytes.
#include <cooperative_groups.h>

#include <cub/block/block_scan.cuh>

#include <atomic>

#include "check.h"
#include "fit.h"
#include "mask_refinement_pipeline.h"
#include "mask_views.h"

// Memory that the threads of a block share; and where a thread begins a phase and an item of it. Tests on a CPU define both.
#ifndef TFISEG_SHARED
#define TFISEG_SHARED(Type, name) __shared__ Type name
#endif
#ifndef TFISEG_TRACE_PHASE
#define TFISEG_TRACE_PHASE(Phase)
#define TFISEG_TRACE_ITEM()
#endif

namespace tfiseg {
namespace {

#ifndef TFISEG_THREADS
#define TFISEG_THREADS 512  // tests take fewer, so that small grids use several blocks
#endif
constexpr int32_t kThreads = TFISEG_THREADS;  // of a block that runs a section
constexpr int32_t kPhaseThreads = 256;        // of a block that runs one phase
constexpr int32_t kTileThreads = kThreads < 256 ? kThreads : 256;  // of a block that runs a tile
constexpr int32_t kCountsPerThread = 8;

// What a phase takes: int32_t or int64_t.
template <class Phase, class Index>
Index argument(void (Phase::*)(Index) const);
template <class Phase>
using IndexOf = decltype(argument(&Phase::operator()));

// Runs a section's phases in every thread of a grid. The barrier before a phase is made up for only when the next one begins, so that a
// kernel does not end with one.
class GridExecutor {
  public:
    template <class Phase>
    __device__ void each(int64_t n, const Phase &phase) {
        settle();
        TFISEG_TRACE_PHASE(Phase);
        for (int64_t i = first(); i < n; i += step()) {
            TFISEG_TRACE_ITEM();
            phase(IndexOf<Phase>(i));
        }
    }

    template <class Phase>
    __device__ void each_counted(const int32_t *count, int64_t most, const Phase &phase) {
        settle();
        TFISEG_TRACE_PHASE(Phase);
        const int64_t n = *count < most ? *count : most;
        for (int64_t i = first(); i < n; i += step()) {
            TFISEG_TRACE_ITEM();
            phase(IndexOf<Phase>(i));
        }
    }

    template <class Phases>
    __device__ void rounds(const Phases &phases) {
        for (int32_t round = 0;; ++round) {
            for (int32_t phase = 0; phase < Phases::kPhases; ++phase) {
                settle();
                TFISEG_TRACE_PHASE(Phases);
                const int32_t n = phases.items(phase, round);
                is_settled_ = n == 0;  // as most phases of a last round
                for (int64_t k = first(); k < n; k += step()) {
                    TFISEG_TRACE_ITEM();
                    phases(phase, round, int32_t(k));
                }
            }
            settle();
            is_settled_ = true;  // has_next only reads what the last phase wrote
            if (!phases.has_next(round)) return;
        }
    }

    template <class Phase>
    __device__ void tiles(int64_t n, const Phase &phase) {
        TFISEG_SHARED(typename Phase::Shared, shared);
        settle();
        TFISEG_TRACE_PHASE(Phase);
        for (int64_t tile = is_solo_ ? 0 : blockIdx.x; tile < n; tile += is_solo_ ? 1 : gridDim.x)
            for (int32_t k = 0; k < Phase::kSteps; ++k) {
                for (int32_t item = int32_t(threadIdx.x); item < Phase::kItems; item += kThreads) {
                    TFISEG_TRACE_ITEM();
                    phase(shared, tile, k, item);
                }
                __syncthreads();
            }
    }

    // In one block. Large arrays are summed in tiles.
    __device__ void exclusive_sum(int32_t *counts, int64_t n) {
        using Scan = cub::BlockScan<int32_t, kThreads>;
        TFISEG_SHARED(typename Scan::TempStorage, storage);
        settle();
        TFISEG_TRACE_PHASE(Scan);
        if (blockIdx.x != 0) return;
        int32_t done = 0;
        for (int64_t tile = 0; tile < n; tile += int64_t(kThreads) * kCountsPerThread) {
            const int64_t start = tile + int64_t(threadIdx.x) * kCountsPerThread;
            int32_t sums[kCountsPerThread], total;
            for (int32_t k = 0; k < kCountsPerThread; ++k) sums[k] = start + k < n ? counts[start + k] : 0;
            Scan(storage).ExclusiveSum(sums, sums, total);
            for (int32_t k = 0; k < kCountsPerThread; ++k)
                if (start + k < n) counts[start + k] = done + sums[k];
            done += total;
            if (tile + int64_t(kThreads) * kCountsPerThread < n) __syncthreads();  // before storage is used again
        }
        if (threadIdx.x == 0) counts[n] = done;
    }

    template <class Body>
    __device__ void solo(DeviceCounts counts, int32_t most, const Body &body) {
        const bool is_begun = begin_solo(counts, most, most);
        if (!is_begun || blockIdx.x == 0) body();  // one call: two copies of all phases would take several times as long to compile
        if (is_begun) end_solo();
    }

    template <class Shared, class Body>
    __device__ void solo_sharing(DeviceCounts counts, int32_t most, const Body &body) {
        TFISEG_SHARED(Shared, shared);
        if (!begin_solo(counts, most, Shared::kMost < most ? Shared::kMost : most)) return body(static_cast<Shared *>(nullptr));
        if (blockIdx.x == 0) body(&shared);
        end_solo();
    }

  private:
    // The barrier that separates the next phase from the last one.
    __device__ void settle() {
        if (!is_settled_) {
            if (is_solo_ || gridDim.x == 1) {
                __syncthreads();
            } else {
                cooperative_groups::this_grid().sync();
            }
        }
        is_settled_ = false;
    }

    // Whether one block is to work alone. The counts must not grow meanwhile: every block reads them on its own.
    __device__ bool begin_solo(DeviceCounts counts, int32_t first_most, int32_t second_most) {
        settle();
        is_settled_ = true;
        const int32_t first = *counts.first, second = counts.second ? *counts.second : 0;
        if (is_solo_ || first > first_most || second > second_most) return false;
        is_solo_ = true;
        return true;
    }

    __device__ void end_solo() {
        is_solo_ = false;
        is_settled_ = false;
    }

    __device__ int64_t first() const { return is_solo_ ? int64_t(threadIdx.x) : int64_t(blockIdx.x) * kThreads + threadIdx.x; }
    __device__ int64_t step() const { return is_solo_ ? int64_t(kThreads) : int64_t(gridDim.x) * kThreads; }

    bool is_settled_ = true, is_solo_ = false;
};

template <class Section>
__global__ void __launch_bounds__(kThreads, Section::kGroups) section_kernel(const __grid_constant__ Section section) {
    GridExecutor run;
    section(run);
}

template <class Phase>
__global__ void __launch_bounds__(kPhaseThreads) each_kernel(const __grid_constant__ Phase phase, int64_t n) {
    TFISEG_TRACE_PHASE(Phase);
    const int64_t i = int64_t(blockIdx.x) * kPhaseThreads + threadIdx.x;
    if (i < n) phase(IndexOf<Phase>(i));
}

// One block for each tile. Unlike a section, it needs no barrier of the grid, so blocks wait for none of another kernel to end.
template <class Phase>
__global__ void __launch_bounds__(kTileThreads) tiles_kernel(const __grid_constant__ Phase phase) {
    TFISEG_SHARED(typename Phase::Shared, shared);
    for (int32_t step = 0; step < Phase::kSteps; ++step) {
        if (step > 0) __syncthreads();
        TFISEG_TRACE_PHASE(Phase);
        for (int32_t item = int32_t(threadIdx.x); item < Phase::kItems; item += kTileThreads) {
            TFISEG_TRACE_ITEM();
            phase(shared, int64_t(blockIdx.x), step, item);
        }
    }
}

// Launches sections and phases.
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
        if (status_ == cudaSuccess && n > 0) launch(each_kernel<Phase>, (n + kPhaseThreads - 1) / kPhaseThreads, kPhaseThreads, false, phase, n);
    }

    template <class Phase>
    void tiles(int64_t n, const Phase &phase) {
        if (status_ == cudaSuccess) launch(tiles_kernel<Phase>, n, kTileThreads, false, phase);
    }

    // items: of its largest phases.
    template <class Section>
    void section(int64_t items, const Section &section) {
        int64_t blocks = std::max<int64_t>(1, (items + kThreads - 1) / kThreads);
        int resident = 1;  // a cooperative kernel must be resident as a whole
        if (status_ == cudaSuccess) keep(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, section_kernel<Section>, kThreads, 0));
        blocks = std::min(blocks, int64_t(resident) * processors_);
        if (status_ == cudaSuccess) launch(section_kernel<Section>, blocks, kThreads, blocks > 1, section);
    }

  private:
    void keep(cudaError_t status) {
        if (status_ == cudaSuccess) status_ = status;
    }

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

// Enqueues work(executor) on the caller's stream.
template <class Work>
int32_t enqueue(void *stream, const Work &work) {
    Cuda executor(static_cast<cudaStream_t>(stream));
    work(executor);
    return executor.status() == cudaSuccess ? TFISEG_OK : TFISEG_CUDA_ERROR;
}

}  // namespace
}  // namespace tfiseg

extern "C" int32_t tfiseg_cluster_cuda(const tfiseg_problem *problem, tfiseg_result *result, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(problem, result, TFISEG_ON_CUDA)) return status;
    return enqueue(stream, [&](Cuda &executor) { cluster_on(executor, *problem, *result); });
}

extern "C" int32_t tfiseg_cut_views_cuda(const tfiseg_views *views, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(views)) return status;
    return enqueue(stream, [&](Cuda &executor) { cut_views_on(executor, *views); });
}

extern "C" int32_t tfiseg_place_pieces_cuda(const tfiseg_views *views, const tfiseg_pieces *pieces, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(views, pieces)) return status;
    return enqueue(stream, [&](Cuda &executor) { place_pieces_on(executor, *views, *pieces); });
}

extern "C" int32_t tfiseg_fit_frame_cuda(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width,
                                         void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check_fit(frame, height, width, out, out_height, out_width)) return status;
    return enqueue(stream, [&](Cuda &executor) {
        const FitTiles fit(frame, height, width, out, out_height, out_width);
        executor.tiles(fit.tiles(), fit);
    });
}

extern "C" int32_t tfiseg_refine_masks_cuda(const tfiseg_mask_refinement *refinement, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(refinement)) return status;
    return enqueue(stream, [&](Cuda &executor) { refine_masks_on(executor, *refinement); });
}

extern "C" int32_t tfiseg_relabel_cuda(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes,
                                       int32_t count, int32_t *relabeled, uint8_t *class_map, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check_relabel(label_map, height, width, numbers, classes, count, relabeled, class_map)) return status;
    return enqueue(stream, [&](Cuda &executor) {
        executor.each(int64_t(height) * width, Relabel{label_map, numbers, classes, count, relabeled, class_map});
    });
}

extern "C" int32_t tfiseg_cut_mask_views_cuda(const tfiseg_mask_views *views, void *stream) {
    using namespace tfiseg;
    if (const int32_t status = check(views)) return status;
    return enqueue(stream, [&](Cuda &executor) { cut_mask_views_on(executor, *views); });
}
