// Counts launches, barriers and memory transactions of the emulated kernels by phase, after cuda_on_cpu_count(1).
#pragma once
#include <cstddef>

namespace cuda_on_cpu::counts {

bool are_on();
int phase_of(const char *name);  // returns the number of a phase with this typeid name
void add_launch();
void add_block_barrier(int phase, unsigned block);
void add_grid_barrier(int phase);
void add_memory(const void *memory, size_t bytes);  // accesses to this memory are counted
void remove_memory(const void *memory);
void add_shared_memory(const void *memory, size_t bytes);  // of a block that runs
void clear_shared_memory();
void begin_lane(int lane, int phase);
void begin_phase(int phase);  // of the running lane
void begin_item();
void end_lane();
void end_warp(unsigned block);  // adds the accesses of a warp's lanes to the counts

}  // namespace cuda_on_cpu::counts
