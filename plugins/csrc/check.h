// Checks of the arguments of the C API; everything behind it trusts them.
#pragma once
#include "tfiseg.h"

namespace tfiseg {

int32_t check(const tfiseg_problem *problem, int32_t device);
int32_t check(const tfiseg_problem *problem, const tfiseg_result *result, int32_t device);
int32_t check_offsets(const tfiseg_problem &problem);  // reads them
int32_t check(const tfiseg_views *views);
int32_t check(const tfiseg_views *views, const tfiseg_pieces *pieces);
int32_t check_fit(const uint8_t *frame, int32_t height, int32_t width, const float *out, int32_t out_height, int32_t out_width);
int32_t check(const tfiseg_mask_refinement *refinement);
int64_t cpu_workspace_bytes(const tfiseg_problem &problem);

}  // namespace tfiseg
