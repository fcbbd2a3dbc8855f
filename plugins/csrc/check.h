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
int32_t check(const tfiseg_mask_views *views);
int32_t check_relabel(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes, int32_t count,
                      const int32_t *relabeled, const uint8_t *class_map);
int64_t cpu_workspace_bytes(const tfiseg_problem &problem);

}  // namespace tfiseg
