// The parts of the C API that belong to no device: version, status texts, checks.
#include "check.h"
#include "mask_refinement_pipeline.h"
#include "mask_views.h"

namespace tfiseg {

int32_t check(const tfiseg_problem *p, int32_t device) {
    if (!p || p->struct_size != sizeof(tfiseg_problem)) return TFISEG_BAD_STRUCT_SIZE;
    const bool cuda = device == TFISEG_ON_CUDA;
    const auto side = [](int32_t s, int32_t most) { return s >= 1 && s <= most; };
    if (p->batch < 1 || !side(p->height, TFISEG_MAX_SIDE) || !side(p->width, TFISEG_MAX_SIDE)) return TFISEG_BAD_SHAPE;
    if (!side(p->out_height, TFISEG_MAX_OUT_SIDE) || !side(p->out_width, TFISEG_MAX_OUT_SIDE)) return TFISEG_BAD_SHAPE;
    if (cuda && int64_t(p->batch) * p->height * p->width > TFISEG_MAX_CUDA_PIXELS) return TFISEG_BAD_SHAPE;
    if (!p->class_map == !p->logits || !p->things || !p->split) return TFISEG_MISSING_POINTER;
    if (p->class_map && (p->out_height != p->height || p->out_width != p->width)) return TFISEG_BAD_SHAPE;
    if (p->logits && (p->classes < 2 || p->classes > 255)) return TFISEG_BAD_SHAPE;
    if (p->boundary && !side(p->boundary_stride, TFISEG_MAX_SIDE)) return TFISEG_BAD_PARAMETER;
    if (p->affinity && (!p->affinity_offsets_yx || !side(p->affinity_stride, TFISEG_MAX_SIDE))) return TFISEG_BAD_PARAMETER;
    if (p->affinity && !side(p->affinity_channels, TFISEG_MAX_AFFINITY_CHANNELS)) return TFISEG_BAD_PARAMETER;
    if (cuda && p->affinity && p->affinity_channels > TFISEG_MAX_CUDA_AFFINITY_CHANNELS) return TFISEG_BAD_PARAMETER;
    if (p->evidence_hidden < 0 || p->evidence_hidden > TFISEG_MAX_EVIDENCE_HIDDEN) return TFISEG_BAD_PARAMETER;
    if (!p->evidence_hidden != !p->evidence_rule || (p->evidence_rule && !p->affinity)) return TFISEG_BAD_PARAMETER;
    if (p->part_hidden < 0 || p->part_hidden > TFISEG_MAX_EVIDENCE_HIDDEN) return TFISEG_BAD_PARAMETER;
    if (!p->part_hidden != !p->part_rule || (p->part_rule && !(p->affinity && p->boundary))) return TFISEG_BAD_PARAMETER;
    if (p->sharpen < 0 || p->sharpen > TFISEG_MAX_SHARPEN || (p->sharpen && !p->boundary)) return TFISEG_BAD_PARAMETER;
    if (p->value_type != TFISEG_FLOAT32 && !(cuda && p->value_type == TFISEG_FLOAT16)) return TFISEG_BAD_PARAMETER;
    if (p->max_instances < 1 || p->max_instances > TFISEG_MAX_INSTANCES || p->threads < 1) return TFISEG_BAD_PARAMETER;
    return TFISEG_OK;
}

int32_t check_offsets(const tfiseg_problem &p) {
    const auto is_long = [](int32_t cells) { return cells < -TFISEG_MAX_SIDE || cells > TFISEG_MAX_SIDE; };
    const int32_t *offsets = p.affinity_offsets_yx;
    return p.affinity && std::any_of(offsets, offsets + 2 * p.affinity_channels, is_long) ? TFISEG_BAD_PARAMETER : TFISEG_OK;
}

int32_t check(const tfiseg_problem *p, const tfiseg_result *r, int32_t device) {
    if (const int32_t status = check(p, device)) return status;
    if (const int32_t status = check_offsets(*p)) return status;
    if (!r || r->struct_size != sizeof(tfiseg_result)) return TFISEG_BAD_STRUCT_SIZE;
    if (!r->label_map || !r->count || !r->table || !r->workspace) return TFISEG_MISSING_POINTER;
    return r->workspace_bytes < tfiseg_workspace_size(p, device) ? TFISEG_SMALL_WORKSPACE : TFISEG_OK;
}

namespace {

constexpr int32_t kMostParts = 1024;
constexpr int64_t kMostCells = 1 << 30;  // of candidates

bool in_range(const tfiseg_views &v, int32_t max_parts) {
    const auto within = [](int32_t value, int32_t least, int32_t most) { return value >= least && value <= most; };
    const bool each = within(v.height, 1, TFISEG_MAX_OUT_SIDE) && within(v.width, 1, TFISEG_MAX_OUT_SIDE) && within(v.view_count, 1, TFISEG_MAX_VIEWS) &&
                      within(v.view_side, 8, TFISEG_MAX_VIEW_SIDE) && within(v.max_components, 1, TFISEG_MAX_INSTANCES) && within(max_parts, 1, kMostParts);
    // the product only of sides in range: others might overflow
    return each && int64_t(kCandidatesPerView) * v.view_count * v.view_side * v.view_side <= kMostCells;
}

int32_t check(const tfiseg_views *v, int32_t max_parts) {
    if (!v || v->struct_size != sizeof(tfiseg_views)) return TFISEG_BAD_STRUCT_SIZE;
    if (!in_range(*v, max_parts)) return TFISEG_BAD_VIEWS;
    for (const void *given : {static_cast<const void *>(v->frame), static_cast<const void *>(v->label_map), static_cast<const void *>(v->count),
                              static_cast<const void *>(v->table), static_cast<const void *>(v->wanted), static_cast<const void *>(v->views),
                              static_cast<const void *>(v->images), static_cast<const void *>(v->masks), static_cast<const void *>(v->own),
                              static_cast<const void *>(v->workspace)})
        if (!given) return TFISEG_BAD_VIEWS;
    if (v->threads < 1) return TFISEG_BAD_VIEWS;
    return v->workspace_bytes < tfiseg_views_workspace_size(v, max_parts) ? TFISEG_SMALL_WORKSPACE : TFISEG_OK;
}

}  // namespace

int32_t check(const tfiseg_views *v) { return check(v, 1); }

int32_t check(const tfiseg_views *v, const tfiseg_pieces *p) {
    if (!p || p->struct_size != sizeof(tfiseg_pieces)) return TFISEG_BAD_STRUCT_SIZE;
    if (!p->labels || !p->counts || !p->regions || !p->tables || !p->label_map || !p->count || !p->table || !p->component_of) return TFISEG_BAD_VIEWS;
    return check(v, p->max_parts);
}

int32_t check_fit(const uint8_t *frame, int32_t height, int32_t width, const float *out, int32_t out_height, int32_t out_width) {
    if (!frame || !out) return TFISEG_MISSING_POINTER;
    for (const int32_t side : {height, width, out_height, out_width})
        if (side < 1 || side > TFISEG_MAX_OUT_SIDE) return TFISEG_BAD_SHAPE;
    return TFISEG_OK;
}

namespace {

bool in_range(const tfiseg_mask_refinement &r) {
    const auto within = [](int32_t value, int32_t least, int32_t most) { return value >= least && value <= most; };
    const bool each = within(r.height, 1, TFISEG_MAX_OUT_SIDE) && within(r.width, 1, TFISEG_MAX_OUT_SIDE) && within(r.view_count, 1, TFISEG_MAX_REFINEMENT_VIEWS) &&
                      within(r.max_map_side, 1, TFISEG_MAX_VIEW_SIDE) && within(r.max_components, 1, kMostLabels) &&
                      within(r.max_instances, 1, kMostLabels) && within(r.value_type, TFISEG_FLOAT32, TFISEG_FLOAT16);
    // the products only of sides in range: others might overflow
    return each && int64_t(r.view_count) * r.height * ((r.width + ZonePixels::kPixels - 1) / ZonePixels::kPixels) <= INT32_MAX &&
           int64_t(r.view_count) * r.max_map_side * r.max_map_side <= INT32_MAX;
}

}  // namespace

int32_t check(const tfiseg_mask_refinement *r) {
    if (!r || r->struct_size != sizeof(tfiseg_mask_refinement)) return TFISEG_BAD_STRUCT_SIZE;
    if (!in_range(*r)) return TFISEG_BAD_VIEWS;
    for (const void *given : {static_cast<const void *>(r->label_map), static_cast<const void *>(r->count), static_cast<const void *>(r->table),
                              static_cast<const void *>(r->component_map), static_cast<const void *>(r->component_count),
                              static_cast<const void *>(r->component_table), static_cast<const void *>(r->views),
                              static_cast<const void *>(r->map_sides), r->foreground, static_cast<const void *>(r->refined_map),
                              static_cast<const void *>(r->refined_count), static_cast<const void *>(r->refined_table),
                              static_cast<const void *>(r->instance_of), static_cast<const void *>(r->workspace)})
        if (!given) return TFISEG_BAD_VIEWS;
    if (r->threads < 1) return TFISEG_BAD_VIEWS;
    return r->workspace_bytes < tfiseg_refine_masks_workspace_size(r) ? TFISEG_SMALL_WORKSPACE : TFISEG_OK;
}

namespace {

bool in_range(const tfiseg_mask_views &v) {
    const auto within = [](int32_t value, int32_t least, int32_t most) { return value >= least && value <= most; };
    return within(v.height, 1, TFISEG_MAX_OUT_SIDE) && within(v.width, 1, TFISEG_MAX_OUT_SIDE) && within(v.max_components, 1, TFISEG_MAX_INSTANCES) &&
           within(v.known_count, 0, TFISEG_MAX_VIEWS) && within(v.known_side, 8, TFISEG_MAX_VIEW_SIDE) &&
           within(v.view_count, 1, TFISEG_MAX_VIEWS) && within(v.view_side, 8, TFISEG_MAX_VIEW_SIDE);
}

}  // namespace

int32_t check(const tfiseg_mask_views *v) {
    if (!v || v->struct_size != sizeof(tfiseg_mask_views)) return TFISEG_BAD_STRUCT_SIZE;
    if (!in_range(*v) || v->threads < 1) return TFISEG_BAD_VIEWS;
    for (const void *given : {static_cast<const void *>(v->frame), static_cast<const void *>(v->label_map), static_cast<const void *>(v->count),
                              static_cast<const void *>(v->table), static_cast<const void *>(v->views), static_cast<const void *>(v->images),
                              static_cast<const void *>(v->masks), static_cast<const void *>(v->workspace)})
        if (!given) return TFISEG_BAD_VIEWS;
    if (v->known_count && !v->known) return TFISEG_BAD_VIEWS;
    return v->workspace_bytes < tfiseg_mask_views_workspace_size(v) ? TFISEG_SMALL_WORKSPACE : TFISEG_OK;
}

int32_t check_relabel(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes, int32_t count,
                      const int32_t *relabeled, const uint8_t *class_map) {
    if (!label_map || !numbers || !classes || !relabeled || !class_map) return TFISEG_MISSING_POINTER;
    for (const int32_t side : {height, width})
        if (side < 1 || side > TFISEG_MAX_OUT_SIDE) return TFISEG_BAD_SHAPE;
    return count < 1 ? TFISEG_BAD_PARAMETER : TFISEG_OK;
}

}  // namespace tfiseg

extern "C" {

int32_t tfiseg_api_version(void) { return TFISEG_API_VERSION; }

const char *tfiseg_status_string(int32_t status) {
    switch (status) {
        case TFISEG_OK: return "ok";
        case TFISEG_BAD_STRUCT_SIZE: return "struct_size differs: caller and library were built from different versions of tfiseg.h";
        case TFISEG_BAD_SHAPE:
            return "a shape is out of range: grid sides 1..4096, output sides 1..32767, classes 2..255; a class map keeps its size; on a GPU "
                   "N * h * w up to 2^29";
        case TFISEG_MISSING_POINTER: return "give things, split, and exactly one of class_map and logits; and label_map, count, table, workspace";
        case TFISEG_SMALL_WORKSPACE: return "the workspace is smaller than tfiseg_workspace_size() says";
        case TFISEG_OUT_OF_MEMORY: return "out of memory";
        case TFISEG_BAD_PARAMETER:
            return "a parameter is out of range: max_instances 1..65535, threads >= 1, strides 1..4096; affinity with offsets within "
                   "4096 cells and up to 4096 channels, on a GPU 32; evidence_rule with affinity, part_rule with affinity and boundary, each of 1..64 hidden units; sharpen 0..32, with "
                   "boundary; float16 on a GPU only";
        case TFISEG_NO_CUDA: return "this library was built without CUDA: `tfiseg plugin build` builds one with it";
        case TFISEG_CUDA_ERROR: return "a kernel could not be launched: is there a GPU, a driver, and code for this GPU in the library?";
        case TFISEG_BAD_VIEWS:
            return "views are out of range or a pointer is missing: frames up to 32767 a side, 1..256 views of 8..1024 pixels a side, 16 K S S up to 2^30, "
                   "max_components 1..65535, max_parts 1..1024, threads >= 1; 0..256 known views; mask refinement: K up to 65535, maps of 1..1024 cells a side, K H ceil(W / 8) "
                   "and K side side below 2^31, max_components and max_instances 1..16777215";
        case TFISEG_INTERNAL_ERROR: return "internal error";
        default: return "unknown status";
    }
}

int64_t tfiseg_workspace_size(const tfiseg_problem *problem, int32_t device) {
    if (tfiseg::check(problem, device) != TFISEG_OK) return 0;
    return device == TFISEG_ON_CUDA ? tfiseg::Plan(*problem, nullptr).bytes : tfiseg::cpu_workspace_bytes(*problem);
}

int64_t tfiseg_views_workspace_size(const tfiseg_views *views, int32_t max_parts) {
    if (!views || views->struct_size != sizeof(tfiseg_views) || !tfiseg::in_range(*views, max_parts)) return 0;
    tfiseg_views counted = *views;
    counted.workspace = nullptr;
    return std::max(tfiseg::ViewPlan(counted).bytes, tfiseg::PiecePlan(counted, max_parts).bytes);
}

int64_t tfiseg_refine_masks_workspace_size(const tfiseg_mask_refinement *refinement) {
    if (!refinement || refinement->struct_size != sizeof(tfiseg_mask_refinement) || !tfiseg::in_range(*refinement)) return 0;
    tfiseg_mask_refinement counted = *refinement;
    counted.workspace = nullptr;
    return tfiseg::RefinementPlan(counted).bytes;
}

int64_t tfiseg_mask_views_workspace_size(const tfiseg_mask_views *views) {
    if (!views || views->struct_size != sizeof(tfiseg_mask_views) || !tfiseg::in_range(*views)) return 0;
    tfiseg_mask_views counted = *views;
    counted.workspace = nullptr;
    return tfiseg::MaskViewPlan(counted).bytes;
}

#ifndef TFISEG_WITH_CUDA
int32_t tfiseg_cut_mask_views_cuda(const tfiseg_mask_views *, void *) { return TFISEG_NO_CUDA; }
int32_t tfiseg_relabel_cuda(const int32_t *, int32_t, int32_t, const int32_t *, const uint8_t *, int32_t, int32_t *, uint8_t *, void *) {
    return TFISEG_NO_CUDA;
}
int32_t tfiseg_cut_views_cuda(const tfiseg_views *, void *) { return TFISEG_NO_CUDA; }
int32_t tfiseg_place_pieces_cuda(const tfiseg_views *, const tfiseg_pieces *, void *) { return TFISEG_NO_CUDA; }
int32_t tfiseg_refine_masks_cuda(const tfiseg_mask_refinement *, void *) { return TFISEG_NO_CUDA; }
int32_t tfiseg_cluster_cuda(const tfiseg_problem *, tfiseg_result *, void *) { return TFISEG_NO_CUDA; }
int32_t tfiseg_fit_frame_cuda(const uint8_t *, int32_t, int32_t, float *, int32_t, int32_t, void *) { return TFISEG_NO_CUDA; }
#endif

}  // extern "C"
