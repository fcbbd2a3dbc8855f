// The part of CUDA's runtime that is needed to compile cluster_cuda.cu and cuda_runner.cu with a C++ compiler, and to run their kernels on
// one CPU thread.
//
// Every CUDA thread is a fiber (fibers.cpp). At barriers, warp operations and atomics, another fiber may continue, in an order that depends
// on a seed. This finds kernels that depend on the order of threads, barriers that some threads do not reach, and invalid launches. It does
// not model weak memory ordering or speed. With instrumented accesses (memory_counts.cpp), it counts the memory transactions of a GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <typeinfo>

#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define TFISEG_SHARED(Type, name) Type &name = cuda_on_cpu::block_memory<Type>()
#define TFISEG_TRACE_PHASE(Phase) cuda_on_cpu::begin_phase(typeid(Phase).name())
#define TFISEG_TRACE_ITEM() cuda_on_cpu::begin_item()
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1) : x(width), y(height), z(depth) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaError_t = int;
using cudaStream_t = void *;
using cudaEvent_t = void *;
using cudaGraph_t = void *;
using cudaGraphExec_t = void *;
enum { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorStreamCaptureUnsupported = 900 };
enum { cudaDevAttrMultiProcessorCount = 16 };
enum { cudaStreamCaptureModeGlobal = 0 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        int cooperative;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute *attrs = nullptr;
    unsigned numAttrs = 0;
};

namespace cuda_on_cpu {

// Adds work to the graph that is being captured, or else runs it now.
void enqueue(std::function<void()> work);
void run_kernel(dim3 grid, dim3 block, bool is_cooperative, const std::function<void()> &kernel);

// Device memory; memory_counts.cpp counts its accesses.
void *allocate(size_t bytes);
void release(void *memory);

// Called by fibers.
void begin_phase(const char *name);
void begin_item();
void *block_memory(const void *type, size_t bytes);
void block_barrier();
void grid_barrier();
void maybe_yield();
unsigned lane_number();
uint64_t value_of_lane(unsigned mask, uint64_t value, unsigned lane);
unsigned lanes_with(unsigned mask, bool value);
void count_atomic(const void *memory, size_t bytes);

// Shared memory of the running block, one object per type; it is not cleared.
template <class T>
T &block_memory() {
    static const char type = 0;
    return *static_cast<T *>(block_memory(&type, sizeof(T)));
}

}  // namespace cuda_on_cpu

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...), const Arguments &...arguments) {
    const dim3 grid = config->gridDim, block = config->blockDim;
    const bool is_cooperative = config->numAttrs > 0 && config->attrs[0].id == cudaLaunchAttributeCooperative && config->attrs[0].val.cooperative;
    if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidConfiguration;
    cuda_on_cpu::enqueue([=] { cuda_on_cpu::run_kernel(grid, block, is_cooperative, [=] { kernel(Parameters(arguments)...); }); });
    return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device);
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Kernel, int, size_t) {
    *blocks = 1;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "an error of the CUDA emulation"; }

template <class T>
cudaError_t cudaMalloc(T **memory, size_t bytes) {
    *memory = static_cast<T *>(cuda_on_cpu::allocate(bytes));
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *memory) {
    cuda_on_cpu::release(memory);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all_bytes) {
    *free_bytes = *all_bytes = size_t(1) << 30;
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready);
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

inline void __syncthreads() { cuda_on_cpu::block_barrier(); }
unsigned __activemask();
inline unsigned __ballot_sync(unsigned mask, int value) { return cuda_on_cpu::lanes_with(mask, value != 0); }
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = cuda_on_cpu::value_of_lane(mask, bits, unsigned(lane) % 32);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
    const unsigned lane = cuda_on_cpu::lane_number();
    return __shfl_sync(mask, value, int(lane < step ? lane : lane - step));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step) {
    const unsigned lane = cuda_on_cpu::lane_number();
    return __shfl_sync(mask, value, int(lane + step > 31 ? lane : lane + step));
}

// Only one fiber runs at a time, so atomic operations are plain ones. Other fibers may run before them.
template <class T, class Operation>
__attribute__((no_sanitize("thread"))) T cuda_on_cpu_atomic(T *memory, const Operation &operation) {
    cuda_on_cpu::maybe_yield();
    cuda_on_cpu::count_atomic(memory, sizeof(T));
    const T old = *memory;
    *memory = operation(old);
    return old;
}
template <class T>
T atomicCAS(T *memory, T expected, T desired) {
    return cuda_on_cpu_atomic(memory, [=](T old) { return old == expected ? desired : old; });
}
template <class T>
T atomicAdd(T *memory, T value) {
    return cuda_on_cpu_atomic(memory, [=](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T *memory, T value) {
    return cuda_on_cpu_atomic(memory, [=](T old) { return value > old ? value : old; });
}
template <class T>
T atomicMin(T *memory, T value) {
    return cuda_on_cpu_atomic(memory, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T *memory, T value) {
    return cuda_on_cpu_atomic(memory, [=](T old) { return T(old | value); });
}

inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
