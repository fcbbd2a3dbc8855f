// Counts the memory transactions of the emulated kernels. Kernels are compiled with -fsanitize=thread, and this file replaces its runtime
// (__tsan_read4, ...). The n-th accesses of all lanes of a warp, at one place of the code and for one item, count as one instruction of
// the warp, as on a GPU without divergence. A memory transaction is a sector of 32 bytes that such an instruction accesses.
#include "memory_counts.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_on_cpu {
namespace {

constexpr uintptr_t kSector = 32;
constexpr unsigned kAllBlocks = ~0u;

// Loads of a warp, one after the other: those of shared memory; those whose sectors it has loaded before, since the last barrier, so that
// they are in the L1 cache; and the others.
struct Loads {
    int64_t far = 0, near = 0, shared = 0;

    void add(const Loads &o) { far += o.far, near += o.near, shared += o.shared; }
    void raise(const Loads &o) {
        if (o.cost() > cost()) *this = o;
    }

  private:
    // In latencies of the L1 cache, which are about those of shared memory, too.
    int64_t cost() const { return 7 * far + near + shared; }
};

struct PhaseCounts {
    std::string name;
    int64_t block_barriers = 0, grid_barriers = 0, atomics = 0;
    int64_t shared_instructions = 0;  // loads and stores of shared memory
    int64_t words_loaded = 0;  // loads of 4 bytes by lanes, for example hops along links
    int64_t instructions[2] = {0, 0}, sectors[2] = {0, 0}, ideal[2] = {0, 0};  // loads, stores; ideal: sectors if the bytes were contiguous
    Loads item, warp, all;  // of the slowest item and warp between two barriers, summed over these; of all warps
};

struct Access {
    uintptr_t site, address;
    uint32_t item, occurrence, order;  // order: number of the lane's access since its last barrier
    uint16_t phase;
    uint8_t bytes;
    bool is_store, is_volatile, is_shared;
};

bool is_on = false;
int64_t launches = 0;
std::vector<PhaseCounts> phases;
std::map<std::string, int> numbers;
std::map<uintptr_t, size_t> memories, shared_memories;  // by address
std::vector<Access> accesses;          // of the running warp
struct Lane {
    uint32_t item = 0;   // number of the phase's item
    uint32_t order = 0;  // number of accesses since the last barrier
    std::unordered_map<uintptr_t, uint32_t> occurrences;  // number of accesses for this item, by site
} lanes[32], *lane = nullptr;  // the running lane
int lane_phase = 0;
struct Slowest {
    Loads item, warp;
};
std::map<std::pair<unsigned, int>, Slowest> slowest;  // since the last barrier, by block and phase

bool is_in(const std::map<uintptr_t, size_t> &memories, uintptr_t address) {
    auto after = memories.upper_bound(address);
    if (after == memories.begin()) return false;
    --after;
    return address < after->first + after->second;
}

void record(const void *memory, size_t bytes, bool is_store, const void *site, bool is_volatile = false) {
    if (!is_on || !lane) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory), from = reinterpret_cast<uintptr_t>(site);
    const bool is_shared = is_in(shared_memories, address);
    if (!is_shared && !is_in(memories, address)) return;
    if (!is_shared && !is_store && bytes == 4) ++phases[size_t(lane_phase)].words_loaded;
    accesses.push_back({from, address, lane->item, lane->occurrences[from]++, lane->order++, uint16_t(lane_phase), uint8_t(bytes), is_store,
                        is_volatile, is_shared});
}

bool is_same_instruction(const Access &a, const Access &b) { return a.site == b.site && a.item == b.item && a.occurrence == b.occurrence; }

// Adds the loads of a warp, whose accesses are sorted.
void add_loads(unsigned block) {
    std::unordered_map<uintptr_t, uint32_t> first;  // access to a sector
    for (const Access &a : accesses) {
        if (a.is_store) continue;
        const auto entry = first.emplace(a.address / kSector, a.order).first;
        entry->second = std::min(entry->second, a.order);
    }
    std::map<std::pair<int, uint32_t>, Loads> items;
    for (size_t begin = 0, end; begin < accesses.size(); begin = end) {
        const Access &a = accesses[begin];
        uint32_t order = a.order;
        for (end = begin; end < accesses.size() && is_same_instruction(a, accesses[end]); ++end) order = std::min(order, accesses[end].order);
        if (a.is_store) continue;
        Loads &loads = items[{a.phase, a.item}];
        if (a.is_shared) {
            ++loads.shared;
            continue;
        }
        bool is_near = !a.is_volatile;
        for (size_t k = begin; k < end; ++k) is_near = is_near && first[accesses[k].address / kSector] < order;
        ++(is_near ? loads.near : loads.far);
    }
    std::map<int, Loads> warp;
    for (const auto &[key, loads] : items) {
        warp[key.first].add(loads);
        slowest[{block, key.first}].item.raise(loads);
    }
    for (const auto &[phase, loads] : warp) {
        phases[size_t(phase)].all.add(loads);
        slowest[{block, phase}].warp.raise(loads);
    }
}

// At a barrier of some blocks: the slowest warp of all of them delays it.
void end_interval(unsigned first_block, unsigned end_block) {
    std::map<int, Slowest> found;
    const auto begin = slowest.lower_bound({first_block, 0}), end = slowest.lower_bound({end_block, 0});
    for (auto at = begin; at != end; ++at) {
        found[at->first.second].item.raise(at->second.item);
        found[at->first.second].warp.raise(at->second.warp);
    }
    slowest.erase(begin, end);
    for (const auto &[phase, loads] : found) {
        phases[size_t(phase)].item.add(loads.item);
        phases[size_t(phase)].warp.add(loads.warp);
    }
}

}  // namespace

namespace counts {

bool are_on() { return is_on; }

int phase_of(const char *name) {
    const auto known = numbers.find(name);
    if (known != numbers.end()) return known->second;
    int status = 0;
    char *readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    std::string text = status ? name : readable;
    std::free(readable);
    for (const char *scope : {"tfiseg::(anonymous namespace)::", "tfiseg::"})
        for (size_t at; (at = text.find(scope)) != std::string::npos;) text.erase(at, std::string(scope).size());
    if (phases.empty()) phases.push_back({});
    phases.push_back({});
    phases.back().name = text;
    return numbers[name] = int(phases.size()) - 1;
}

void add_launch() {
    launches += is_on;
    end_interval(0, kAllBlocks);
}

void add_block_barrier(int phase, unsigned block) {
    if (is_on) ++phases[size_t(phase)].block_barriers;
    end_interval(block, block + 1);
}

void add_grid_barrier(int phase) {
    if (is_on) ++phases[size_t(phase)].grid_barriers;
    end_interval(0, kAllBlocks);
}

void add_memory(const void *memory, size_t bytes) { memories[reinterpret_cast<uintptr_t>(memory)] = bytes; }

void add_shared_memory(const void *memory, size_t bytes) { shared_memories[reinterpret_cast<uintptr_t>(memory)] = bytes; }

void clear_shared_memory() { shared_memories.clear(); }

void remove_memory(const void *memory) { memories.erase(reinterpret_cast<uintptr_t>(memory)); }

void end_warp(unsigned block) {
    std::sort(accesses.begin(), accesses.end(), [](const Access &a, const Access &b) {
        if (a.site != b.site) return a.site < b.site;
        if (a.item != b.item) return a.item < b.item;
        return a.occurrence != b.occurrence ? a.occurrence < b.occurrence : a.address < b.address;
    });
    for (size_t begin = 0, end; begin < accesses.size(); begin = end) {
        uintptr_t last_sector = 0, last_address = 0;
        int64_t sectors = 0, bytes = 0;
        for (end = begin; end < accesses.size() && is_same_instruction(accesses[begin], accesses[end]); ++end) {
            const uintptr_t address = accesses[end].address;
            if (address == last_address) continue;
            bytes += accesses[end].bytes;
            last_address = address;
            sectors += address / kSector != last_sector;
            last_sector = address / kSector;
        }
        PhaseCounts &phase = phases[accesses[begin].phase];
        if (accesses[begin].is_shared) {
            ++phase.shared_instructions;
            continue;
        }
        const int kind = accesses[begin].is_store;
        ++phase.instructions[kind];
        phase.sectors[kind] += sectors;
        phase.ideal[kind] += (bytes + int64_t(kSector) - 1) / int64_t(kSector);
    }
    add_loads(block);
    accesses.clear();
    for (Lane &of_warp : lanes) of_warp.order = 0;
}

void begin_lane(int number, int phase) {
    if (!is_on) return;
    lane = &lanes[number];
    lane_phase = phase;
}

void begin_phase(int phase) {
    if (!is_on || !lane) return;
    lane_phase = phase;
    lane->item = 0;
    lane->occurrences.clear();
}

void begin_item() {
    if (!is_on || !lane) return;
    ++lane->item;
    lane->occurrences.clear();
}

void end_lane() { lane = nullptr; }

}  // namespace counts

void count_atomic(const void *memory, size_t) {
    if (is_on && lane && is_in(memories, reinterpret_cast<uintptr_t>(memory))) ++phases[size_t(lane_phase)].atomics;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

// Starts counting at 0, or stops.
void cuda_on_cpu_count(int on) {
    is_on = on != 0;
    launches = 0;
    if (phases.empty()) phases.push_back({});
    for (PhaseCounts &phase : phases) {
        const std::string name = phase.name;
        phase = PhaseCounts();
        phase.name = name;
    }
    slowest.clear();
}

// Writes a line with the launches, then a line for each phase that ran: name, barriers of the grid and of blocks, atomics, loads of 4
// bytes, then instructions, sectors and ideal sectors, of loads and of stores, instructions that access shared memory, then loads from the L2
// cache, the L1 cache and shared memory: of the slowest item and the slowest warp between two barriers, and of all warps. Returns the length of the text, truncated at `size`.
int64_t cuda_on_cpu_report(char *text, int64_t size) {
    end_interval(0, kAllBlocks);
    std::string all = std::to_string(launches) + "\n";
    for (const PhaseCounts &p : phases) {
        if (!(p.instructions[0] + p.instructions[1] + p.shared_instructions + p.atomics + p.grid_barriers + p.block_barriers)) continue;
        all += p.name;
        for (const int64_t count : {p.grid_barriers, p.block_barriers, p.atomics, p.words_loaded, p.instructions[0], p.sectors[0], p.ideal[0],
                                    p.instructions[1], p.sectors[1], p.ideal[1], p.shared_instructions, p.item.far, p.item.near,
                                    p.item.shared, p.warp.far, p.warp.near, p.warp.shared, p.all.far, p.all.near, p.all.shared})
            all += "\t" + std::to_string(count);
        all += "\n";
    }
    std::snprintf(text, size_t(size), "%s", all.c_str());
    return int64_t(all.size());
}

#define TFISEG_ACCESS(size)                                                                                                    \
    void __tsan_read##size(void *memory) { record(memory, size, false, __builtin_return_address(0)); }                         \
    void __tsan_write##size(void *memory) { record(memory, size, true, __builtin_return_address(0)); }                         \
    void __tsan_unaligned_read##size(void *memory) { record(memory, size, false, __builtin_return_address(0)); }               \
    void __tsan_unaligned_write##size(void *memory) { record(memory, size, true, __builtin_return_address(0)); }               \
    void __tsan_volatile_read##size(void *memory) { record(memory, size, false, __builtin_return_address(0), true); }          \
    void __tsan_volatile_write##size(void *memory) { record(memory, size, true, __builtin_return_address(0), true); }
TFISEG_ACCESS(1)
TFISEG_ACCESS(2)
TFISEG_ACCESS(4)
TFISEG_ACCESS(8)
TFISEG_ACCESS(16)
#undef TFISEG_ACCESS
void __tsan_read_range(void *memory, size_t bytes) {
    for (size_t k = 0; k < bytes; k += 8) record(static_cast<char *>(memory) + k, std::min<size_t>(8, bytes - k), false, __builtin_return_address(0));
}
void __tsan_write_range(void *memory, size_t bytes) {
    for (size_t k = 0; k < bytes; k += 8) record(static_cast<char *>(memory) + k, std::min<size_t>(8, bytes - k), true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}

}  // extern "C"
