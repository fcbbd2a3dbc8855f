// Runs CUDA threads as fibers on one CPU thread: see include/cuda_runtime.h.
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 96 << 10;
constexpr unsigned kWarp = 32;

enum class State { kReady, kAtBlockBarrier, kAtGridBarrier, kAtActiveMask, kAtExchange, kDone };

struct Fiber {
    ucontext_t context;
    State state = State::kReady;
    unsigned thread = 0, block = 0;
    size_t index = 0;            // among the fibers that run at once
    const void *site = nullptr;  // the instruction that it waits at: lanes at one converge
    unsigned mask = 0;           // of an active mask: the answer; of an exchange: the lanes that must take part
    uint64_t value = 0;          // that it gives to an exchange
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

struct Settings {
    std::mt19937 random{1};
    unsigned yield_every = 0;  // one in so many atomic operations lets others run; 0: none
    bool converges = true;     // lanes of a warp that wait at one instruction go on together
    int processors = 132;
} settings;

int64_t launches = 0;
std::vector<std::unique_ptr<Fiber>> fibers;  // the first `running` of them
size_t running = 0;
Fiber *current = nullptr;
ucontext_t scheduler;
const std::function<void()> *kernel_body = nullptr;

[[noreturn]] void fail(const char *reason) {
    std::fprintf(stderr, "cuda_on_cpu: %s\n", reason);
    std::abort();
}

void become(Fiber *fiber) {
    current = fiber;
    threadIdx = dim3(fiber->thread, 0, 0);
    blockIdx = dim3(fiber->block, 0, 0);
}

void enter() {
    (*kernel_body)();
    current->state = State::kDone;
    swapcontext(&current->context, &scheduler);
}

// Lets others run until the scheduler makes this fiber ready again.
void wait_in(State state) {
    Fiber *fiber = current;
    fiber->state = state;
    swapcontext(&fiber->context, &scheduler);
    become(fiber);
}

Fiber &lane_of(const Fiber &fiber, unsigned lane) { return *fibers[fiber.index - fiber.thread % kWarp + lane]; }

void start(unsigned first_block, unsigned blocks, unsigned threads) {
    running = size_t(blocks) * threads;
    while (fibers.size() < running) fibers.push_back(std::make_unique<Fiber>());
    for (size_t k = 0; k < running; ++k) {
        Fiber &fiber = *fibers[k];
        fiber.state = State::kReady;
        fiber.thread = unsigned(k % threads);
        fiber.block = first_block + unsigned(k / threads);
        fiber.index = k;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
}

// Lanes [begin, end) that wait for their active mask: those at the site of the first get one another.
bool release_active_mask(size_t begin, size_t end) {
    for (size_t k = begin; k < end; ++k) {
        if (fibers[k]->state != State::kAtActiveMask) continue;
        unsigned mask = 0;
        for (size_t j = begin; j < end; ++j) {
            const bool joins = j == k || (settings.converges && fibers[j]->state == State::kAtActiveMask && fibers[j]->site == fibers[k]->site);
            if (joins) mask |= 1u << (j - begin);
        }
        for (size_t j = begin; j < end; ++j) {
            if (!(mask >> (j - begin) & 1u)) continue;
            fibers[j]->mask = mask;
            fibers[j]->state = State::kReady;
        }
        return true;
    }
    return false;
}

// Lanes [begin, end) that wait at a warp operation go on when all of its mask are there.
bool release_exchange(size_t begin, size_t end) {
    unsigned waiting = 0, mask = 0;
    const void *site = nullptr;
    for (size_t k = begin; k < end; ++k) {
        if (fibers[k]->state != State::kAtExchange) continue;
        if (waiting && (fibers[k]->site != site || fibers[k]->mask != mask)) fail("lanes of a warp are at different operations");
        waiting |= 1u << (k - begin);
        site = fibers[k]->site;
        mask = fibers[k]->mask;
    }
    if (!waiting || (waiting & mask) != mask) return false;
    for (size_t k = begin; k < end; ++k)
        if (fibers[k]->state == State::kAtExchange) fibers[k]->state = State::kReady;
    return true;
}

bool release_warps(unsigned threads) {
    bool is_released = false;
    for (size_t block = 0; block < running; block += threads)
        for (size_t begin = block; begin < block + threads; begin += kWarp) {
            const size_t end = std::min(begin + kWarp, block + threads);
            is_released = release_active_mask(begin, end) || release_exchange(begin, end) || is_released;
        }
    return is_released;
}

bool release_block_barriers(unsigned threads) {
    bool is_released = false;
    for (size_t block = 0; block < running; block += threads) {
        const auto count = [&](State state) {
            return std::count_if(fibers.begin() + std::ptrdiff_t(block), fibers.begin() + std::ptrdiff_t(block + threads),
                                 [state](const std::unique_ptr<Fiber> &fiber) { return fiber->state == state; });
        };
        const std::ptrdiff_t waiting = count(State::kAtBlockBarrier);
        if (waiting && count(State::kDone)) fail("some threads of a block ended, others wait at a barrier");
        if (waiting < std::ptrdiff_t(threads)) continue;
        for (size_t k = block; k < block + threads; ++k) fibers[k]->state = State::kReady;
        is_released = true;
    }
    return is_released;
}

bool release_grid_barrier() {
    for (size_t k = 0; k < running; ++k)
        if (fibers[k]->state != State::kAtGridBarrier) return false;
    for (size_t k = 0; k < running; ++k) fibers[k]->state = State::kReady;
    return true;
}

void run_blocks(unsigned first_block, unsigned blocks, unsigned threads) {
    start(first_block, blocks, threads);
    std::vector<size_t> order(running);
    std::iota(order.begin(), order.end(), size_t(0));
    for (;;) {
        std::shuffle(order.begin(), order.end(), settings.random);
        bool has_run = false, are_done = true;
        for (const size_t k : order) {
            Fiber *fiber = fibers[k].get();
            if (fiber->state == State::kReady) {
                become(fiber);
                swapcontext(&scheduler, &fiber->context);
                has_run = true;
            }
            are_done = are_done && fiber->state == State::kDone;
        }
        if (are_done) break;
        if (!has_run && !release_warps(threads) && !release_block_barriers(threads) && !release_grid_barrier())
            fail("deadlock: no thread can go on");
    }
    current = nullptr;
}

using Graph = std::vector<std::function<void()>>;
Graph *captured = nullptr;

}  // namespace

void run_kernel(dim3 grid, dim3 block, bool is_cooperative, const std::function<void()> &kernel) {
    ++launches;
    kernel_body = &kernel;
    gridDim = grid;
    blockDim = block;
    if (is_cooperative) return run_blocks(0, grid.x, block.x);
    const unsigned together = settings.yield_every ? 4 : 1;  // several blocks at once, so that they mix
    std::vector<unsigned> first((grid.x + together - 1) / together);
    for (size_t k = 0; k < first.size(); ++k) first[k] = unsigned(k) * together;
    std::shuffle(first.begin(), first.end(), settings.random);
    for (const unsigned b : first) run_blocks(b, std::min(together, grid.x - b), block.x);
}

void enqueue(std::function<void()> work) {
    if (captured) {
        captured->push_back(std::move(work));
    } else {
        work();
    }
}

void block_barrier() { wait_in(State::kAtBlockBarrier); }

void grid_barrier() { wait_in(State::kAtGridBarrier); }

void maybe_yield() {
    if (current && settings.yield_every && settings.random() % settings.yield_every == 0) wait_in(State::kReady);
}

// Twice: until all have given their value, and until all have read.
template <class Read>
auto exchange(unsigned mask, uint64_t value, const void *site, const Read &read) {
    static const char kReading = 0;
    Fiber *fiber = current;
    fiber->value = value;
    fiber->mask = mask;
    fiber->site = site;
    wait_in(State::kAtExchange);
    const auto result = read(*fiber);
    fiber->site = &kReading;
    wait_in(State::kAtExchange);
    return result;
}

bool all_lanes_equal(unsigned mask, uint64_t value) {
    static const char kSite = 0;
    return exchange(mask, value, &kSite, [=](const Fiber &fiber) {
        for (unsigned lane = 0; lane < kWarp; ++lane)
            if ((mask >> lane & 1u) && lane_of(fiber, lane).value != value) return false;
        return true;
    });
}

uint64_t value_of_lane(unsigned mask, uint64_t value, int lane_xor) {
    static const char kSite = 0;
    return exchange(mask, value, &kSite, [=](const Fiber &fiber) { return lane_of(fiber, fiber.thread % kWarp ^ unsigned(lane_xor)).value; });
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

__attribute__((noinline)) unsigned __activemask() {
    Fiber *fiber = current;
    fiber->site = __builtin_return_address(0);
    wait_in(State::kAtActiveMask);
    return fiber->mask;
}

cudaError_t cudaDeviceGetAttribute(int *value, int, int) {
    *value = settings.processors;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    if (captured) return cudaErrorStreamCaptureUnsupported;
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    enqueue([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    if (captured) return cudaErrorStreamCaptureUnsupported;
    std::memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
    captured = new Graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = captured;
    captured = nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long) {
    *ready = graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
    for (const std::function<void()> &work : *static_cast<Graph *>(ready)) work();
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    delete static_cast<Graph *>(ready);
    return cudaSuccess;
}

using TimePoint = std::chrono::steady_clock::time_point;

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new TimePoint;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    *static_cast<TimePoint *>(event) = std::chrono::steady_clock::now();
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    *ms = std::chrono::duration<float, std::milli>(*static_cast<TimePoint *>(end) - *static_cast<TimePoint *>(begin)).count();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete static_cast<TimePoint *>(event);
    return cudaSuccess;
}

extern "C" {

// How the following kernels run: see Settings.
void cuda_on_cpu_configure(unsigned seed, unsigned yield_every, int converges, int processors) {
    settings.random.seed(seed);
    settings.yield_every = yield_every;
    settings.converges = converges != 0;
    settings.processors = processors;
}

int64_t cuda_on_cpu_launches() { return launches; }

}  // extern "C"
