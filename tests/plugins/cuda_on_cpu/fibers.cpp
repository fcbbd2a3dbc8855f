// Runs CUDA threads as fibers on one CPU thread, see include/cuda_runtime.h.
#undef _FORTIFY_SOURCE  // its longjmp() refuses to enter another stack
#include <csetjmp>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <cstdio>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "memory_counts.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 96 << 10;
constexpr unsigned kWarp = 32;

enum class State { kReady, kAtBlockBarrier, kAtGridBarrier, kAtActiveMask, kAtExchange, kDone };

// A stack, which is used for one CUDA thread after another.
struct Fiber {
    jmp_buf place;                // where it continues. swapcontext() would call the kernel
    const void *frame = nullptr;  // of the stack there
    State state = State::kReady;
    unsigned thread = 0, block = 0;
    size_t index = 0;            // index in the fibers of this launch
    const void *site = nullptr;  // the instruction where it waits; lanes at one site converge
    unsigned mask = 0;           // result of an active mask, or lanes of an exchange
    uint64_t value = 0;          // its value in an exchange
    int phase = 0;               // see memory_counts.h
};

struct Settings {
    std::mt19937 random{1};
    unsigned yield_every = 0;  // mean number of atomic operations between yields; 0: no yields
    bool converges = true;     // lanes of a warp that wait at one instruction continue together
    int processors = 132;
} settings;

int64_t launches = 0;
std::map<std::pair<unsigned, const void *>, std::vector<char>> shared_memory;  // by block and type
std::vector<Fiber> fibers;  // the first `running` ones are in use
std::vector<std::unique_ptr<char[]>> stacks;
size_t running = 0;
unsigned block_threads = 0;
std::vector<size_t> ready;                // fibers that may run
std::vector<unsigned> at_barrier, ended;  // number of threads, by running block
std::vector<unsigned> at_warp_operation;  // number of lanes, by warp
size_t at_grid_barrier = 0, all_ended = 0, warps_waiting = 0;
Fiber *current = nullptr;
jmp_buf scheduler;
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

void switch_to(jmp_buf &from, jmp_buf &to) {
    if (!_setjmp(from)) _longjmp(to, 1);
}

void enter() {
    for (;;) {
        switch_to(current->place, scheduler);
        (*kernel_body)();
        current->state = State::kDone;
        ++all_ended;
        ++ended[current->index / block_threads];
    }
}

void add_fiber() {
    fibers.emplace_back();
    // stacks that begin at multiples of a large power of 2 would share few lines of the cache
    const size_t skipped = fibers.size() % 64 * 320;
    stacks.emplace_back(new char[kStackBytes]);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks.back().get();
    context.uc_stack.ss_size = kStackBytes - skipped;
    makecontext(&context, enter, 0);
    current = &fibers.back();
    if (!_setjmp(scheduler)) setcontext(&context);
}

size_t warps_of_block() { return (block_threads + kWarp - 1) / kWarp; }

size_t warp_of(size_t fiber) { return fiber / block_threads * warps_of_block() + fiber % block_threads / kWarp; }

void make_ready(size_t k) {
    fibers[k].state = State::kReady;
    ready.push_back(k);
}

void leave_warp_operation(size_t k) {
    warps_waiting -= --at_warp_operation[warp_of(k)] == 0;
    make_ready(k);
}

// Runs other fibers until the scheduler makes this one ready again.
void wait_in(State state) {
    Fiber *fiber = current;
    fiber->state = state;
    const size_t block = fiber->index / block_threads;
    if (state == State::kReady) ready.push_back(fiber->index);
    if (state == State::kAtBlockBarrier) ++at_barrier[block];
    if (state == State::kAtGridBarrier) ++at_grid_barrier;
    if (state == State::kAtActiveMask || state == State::kAtExchange) warps_waiting += at_warp_operation[warp_of(fiber->index)]++ == 0;
    fiber->frame = __builtin_frame_address(0);
    switch_to(fiber->place, scheduler);
}

Fiber &lane_of(const Fiber &fiber, unsigned lane) { return fibers[fiber.index - fiber.thread % kWarp + lane]; }

void start(unsigned first_block, unsigned blocks, unsigned threads) {
    running = size_t(blocks) * threads;
    shared_memory.clear();
    counts::clear_shared_memory();
    block_threads = threads;
    at_barrier.assign(blocks, 0);
    ended.assign(blocks, 0);
    at_warp_operation.assign(blocks * warps_of_block(), 0);
    at_grid_barrier = all_ended = warps_waiting = 0;
    ready.clear();
    while (fibers.size() < running) add_fiber();
    for (size_t k = 0; k < running; ++k) {
        Fiber &fiber = fibers[k];
        fiber.state = State::kReady;
        fiber.thread = unsigned(k % threads);
        fiber.block = first_block + unsigned(k / threads);
        fiber.index = k;
        fiber.phase = 0;
        ready.push_back(k);
    }
}

// Releases lanes of [begin, end) that wait for their active mask: the mask has all lanes at one site. The site with the fewest lanes is
// first, because on a GPU, too, lanes in a branch return to the other lanes before these continue.
bool release_active_mask(size_t begin, size_t end) {
    unsigned fewest = 0;
    for (size_t k = begin; k < end; ++k) {
        if (fibers[k].state != State::kAtActiveMask) continue;
        unsigned mask = 0;
        for (size_t j = begin; j < end; ++j) {
            const bool is_included = j == k || (settings.converges && fibers[j].state == State::kAtActiveMask && fibers[j].site == fibers[k].site);
            if (is_included) mask |= 1u << (j - begin);
        }
        if (!fewest || __builtin_popcount(mask) < __builtin_popcount(fewest)) fewest = mask;
    }
    for (size_t j = begin; j < end; ++j) {
        if (!(fewest >> (j - begin) & 1u)) continue;
        fibers[j].mask = fewest;
        leave_warp_operation(j);
    }
    return fewest != 0;
}

// Releases lanes of [begin, end) at a warp operation if all lanes of its mask wait there.
bool release_exchange(size_t begin, size_t end) {
    for (size_t first = begin; first < end; ++first) {
        const Fiber &first_lane = fibers[first];
        if (first_lane.state != State::kAtExchange) continue;
        unsigned waiting = 0;
        for (size_t k = begin; k < end; ++k) {
            const Fiber &fiber = fibers[k];
            if (fiber.state == State::kAtExchange && fiber.site == first_lane.site && fiber.mask == first_lane.mask) waiting |= 1u << (k - begin);
        }
        if (waiting != first_lane.mask) continue;
        for (size_t k = begin; k < end; ++k)
            if (waiting >> (k - begin) & 1u) leave_warp_operation(k);
        return true;
    }
    return false;
}

bool release_warp(size_t warp) {
    if (!at_warp_operation[warp]) return false;
    const size_t block = warp / warps_of_block() * block_threads, begin = block + warp % warps_of_block() * kWarp;
    const size_t end = std::min(begin + kWarp, block + block_threads);
    return release_active_mask(begin, end) || release_exchange(begin, end);
}

bool release_warps() {
    bool is_released = false;
    for (size_t warp = 0; warps_waiting && warp < at_warp_operation.size(); ++warp) is_released = release_warp(warp) || is_released;
    return is_released;
}

bool release_block_barriers() {
    bool is_released = false;
    for (size_t block = 0; block < at_barrier.size(); ++block) {
        if (at_barrier[block] && ended[block]) fail("some threads of a block ended, others wait at a barrier");
        if (at_barrier[block] < block_threads) continue;
        at_barrier[block] = 0;
        const size_t first = block * block_threads;
        for (size_t k = first; k < first + block_threads; ++k) make_ready(k);
        counts::add_block_barrier(fibers[first].phase, unsigned(block));
        is_released = true;
    }
    return is_released;
}

bool release_grid_barrier() {
    if (at_grid_barrier < running) return false;
    at_grid_barrier = 0;
    for (size_t k = 0; k < running; ++k) make_ready(k);
    counts::add_grid_barrier(fibers[0].phase);
    return true;
}

void run_lanes(const std::vector<size_t> &order) {
    const size_t ahead = 4;  // most of the time, thousands of stacks are in use, more than fit into a cache
    for (size_t k = 0; k < order.size(); ++k) {
        if (k + 2 * ahead < order.size()) __builtin_prefetch(&fibers[order[k + 2 * ahead]].frame);
        if (k + ahead < order.size()) __builtin_prefetch(fibers[order[k + ahead]].frame);
        Fiber *fiber = &fibers[order[k]];
        become(fiber);
        counts::begin_lane(int(fiber->thread % kWarp), fiber->phase);
        switch_to(scheduler, fiber->place);
        counts::end_lane();
    }
}

// For counting, runs each warp until all of its lanes are at a barrier.
void run_warps(std::vector<size_t> order) {
    std::sort(order.begin(), order.end());
    for (size_t begin = 0, end; begin < order.size(); begin = end) {
        const size_t warp = warp_of(order[begin]);
        for (end = begin; end < order.size() && warp_of(order[end]) == warp;) ++end;
        std::vector<size_t> lanes(order.begin() + std::ptrdiff_t(begin), order.begin() + std::ptrdiff_t(end));
        do {
            run_lanes(lanes);
            lanes.clear();
        } while (release_warp(warp) && (lanes.swap(ready), true));
        counts::end_warp(unsigned(warp / warps_of_block()));
    }
}

void run_blocks(unsigned first_block, unsigned blocks, unsigned threads) {
    start(first_block, blocks, threads);
    std::vector<size_t> order;
    while (all_ended < running) {
        if (ready.empty() && !release_warps() && !release_block_barriers() && !release_grid_barrier()) fail("deadlock: no thread can continue");
        order.clear();
        order.swap(ready);
        if (counts::are_on()) {
            run_warps(order);
        } else {
            std::shuffle(order.begin(), order.end(), settings.random);
            run_lanes(order);
        }
    }
    current = nullptr;
}

using Graph = std::vector<std::function<void()>>;
Graph *captured = nullptr;

}  // namespace

void run_kernel(dim3 grid, dim3 block, bool is_cooperative, const std::function<void()> &kernel) {
    ++launches;
    counts::add_launch();
    kernel_body = &kernel;
    gridDim = grid;
    blockDim = block;
    if (is_cooperative) return run_blocks(0, grid.x, block.x);
    const unsigned group = settings.yield_every ? 4 : 1;  // several blocks at once, so that they interleave
    std::vector<unsigned> first((grid.x + group - 1) / group);
    for (size_t k = 0; k < first.size(); ++k) first[k] = unsigned(k) * group;
    std::shuffle(first.begin(), first.end(), settings.random);
    for (const unsigned b : first) run_blocks(b, std::min(group, grid.x - b), block.x);
}

void enqueue(std::function<void()> work) {
    if (captured) {
        captured->push_back(std::move(work));
    } else {
        work();
    }
}

void begin_phase(const char *name) {
    if (!counts::are_on()) return;
    current->phase = counts::phase_of(name);
    counts::begin_phase(current->phase);
}

void begin_item() { counts::begin_item(); }

void *block_memory(const void *type, size_t bytes) {
    std::vector<char> &memory = shared_memory[{current->block, type}];
    if (memory.empty()) {
        memory.assign(bytes, char(0xCD));
        counts::add_shared_memory(memory.data(), bytes);
    }
    return memory.data();
}

void *allocate(size_t bytes) {
    constexpr size_t kAlign = 256;  // like cudaMalloc
    void *memory = std::aligned_alloc(kAlign, (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign);
    std::memset(memory, 0xCD, bytes);
    counts::add_memory(memory, bytes);
    return memory;
}

void release(void *memory) {
    counts::remove_memory(memory);
    std::free(memory);
}

void block_barrier() { wait_in(State::kAtBlockBarrier); }

void grid_barrier() { wait_in(State::kAtGridBarrier); }

void maybe_yield() {
    if (current && settings.yield_every && settings.random() % settings.yield_every == 0) wait_in(State::kReady);
}

// Waits until all lanes have set their value, and then until all lanes have read the values.
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

unsigned lane_number() { return current->thread % kWarp; }

uint64_t value_of_lane(unsigned mask, uint64_t value, unsigned lane) {
    static const char kSite = 0;
    return exchange(mask, value, &kSite, [=](const Fiber &fiber) { return lane_of(fiber, lane).value; });
}

unsigned lanes_with(unsigned mask, bool value) {
    static const char kSite = 0;
    return exchange(mask, value, &kSite, [=](const Fiber &fiber) {
        unsigned lanes = 0;
        for (unsigned lane = 0; lane < kWarp; ++lane)
            if ((mask >> lane & 1u) && lane_of(fiber, lane).value) lanes |= 1u << lane;
        return lanes;
    });
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

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
    enqueue([=] { std::memset(to, value, bytes); });
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

// Sets how the following kernels run, see Settings.
void cuda_on_cpu_configure(unsigned seed, unsigned yield_every, int converges, int processors) {
    settings.random.seed(seed);
    settings.yield_every = yield_every;
    settings.converges = converges != 0;
    settings.processors = processors;
}

int64_t cuda_on_cpu_launches() { return launches; }

}  // extern "C"
