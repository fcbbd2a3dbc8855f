#pragma once
#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
    void sync() const { cuda_on_cpu::grid_barrier(); }
};

inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
