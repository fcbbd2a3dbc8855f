// Counts launches, barriers and memory transactions of the emulated kernels, by phase. Off unless cuda_on_cpu_count(1) was called.
#pragma once
#include <cstddef>

namespace cuda_on_cpu::counts {

bool are_on();
int phase_of(const char *name);  // the number of a phase; the name is typeid's
void add_launch();
void add_block_barrier(int phase);
void add_grid_barrier(int phase);
void add_memory(const void *memory, size_t bytes);  // whose accesses count
void remove_memory(const void *memory);
void begin_lane(int lane, int phase);
void begin_phase(int phase);  // of the lane that runs
void begin_item();
void end_lane();
void end_warp();  // adds up what the lanes of a warp did

}  // namespace cuda_on_cpu::counts
