/* tfiseg's C API: what a C++ robot links, and what Python and the TensorRT plugin call. Plain C; the caller owns all memory.
 *
 * One operator, DisplacementFieldClustering: class logits (or a class map) in, instance label map and table out.
 *
 *     tfiseg_problem problem = {.struct_size = sizeof problem, ...};
 *     int64_t bytes = tfiseg_workspace_size(&problem, TFISEG_ON_CUDA);
 *     int32_t status = tfiseg_cluster_cuda(&problem, &result, stream);   // or tfiseg_cluster_cpu(&problem, &result)
 *
 * Deterministic: the label map depends on the inputs alone, bit for bit, whether one thread, many or a GPU computes it. */
#ifndef TFISEG_H_
#define TFISEG_H_

#include <stdint.h>

#ifdef __GNUC__
#define TFISEG_API __attribute__((visibility("default")))
#else
#define TFISEG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TFISEG_API_VERSION 7
#define TFISEG_MAX_SIDE 4096      /* of the grid that is clustered */
#define TFISEG_MAX_OUT_SIDE 32767 /* of the label map, with logits */
#define TFISEG_MAX_INSTANCES 65535
#define TFISEG_MAX_CUDA_PIXELS (1 << 29)      /* N * h * w, on a GPU */
#define TFISEG_MAX_AFFINITY_CHANNELS 4096
#define TFISEG_MAX_CUDA_AFFINITY_CHANNELS 32
#define TFISEG_EVIDENCE_FEATURES 17
#define TFISEG_MAX_EVIDENCE_HIDDEN 64
#define TFISEG_MAX_SHARPEN 32
#define TFISEG_COUNT_OVERFLOW (-1) /* as a count, on a GPU: more regions or edges than there is room for (plugins/README.md) */
#define TFISEG_TABLE_COLUMNS 10 /* class, score, x0, y0, x1, y1, area, centroid x, centroid y, flags */
#define TFISEG_MAX_VIEWS 256
#define TFISEG_MAX_VIEW_SIDE 1024
#define TFISEG_VIEW_COLUMNS 5 /* x, y, side, class, component */
#define TFISEG_FLAG_TOUCHES_EDGE 1 /* the instance touches the picture's border, so it may go on outside */
#define TFISEG_FLAG_MERGE_STOPPED 2 /* merging in this picture stopped at its budget (merge.h): instances may be parts of objects */

enum tfiseg_status {
    TFISEG_OK = 0,
    TFISEG_BAD_STRUCT_SIZE = 1,
    TFISEG_BAD_SHAPE = 2,
    TFISEG_MISSING_POINTER = 3,
    TFISEG_OUT_OF_MEMORY = 4,
    TFISEG_BAD_PARAMETER = 5,
    TFISEG_SMALL_WORKSPACE = 6,
    TFISEG_INTERNAL_ERROR = 7,
    TFISEG_NO_CUDA = 8,
    TFISEG_CUDA_ERROR = 9,
    TFISEG_BAD_VIEWS = 10
};

enum tfiseg_device { TFISEG_ON_CPU = 0, TFISEG_ON_CUDA = 1 };
enum tfiseg_value_type { TFISEG_FLOAT32 = 0, TFISEG_FLOAT16 = 1 };

/* Pointers are to memory of the device that computes, except things, split, affinity_offsets_yx and evidence_rule: always
 * the host's, read during the call only. "value" is value_type. */
typedef struct tfiseg_problem {
    uint32_t struct_size; /* sizeof(tfiseg_problem) */
    int32_t batch;        /* N >= 1 */
    int32_t height, width;         /* of the grid that is clustered, 1..4096 */
    int32_t out_height, out_width; /* of the label map; with a class map: equal to height, width */
    const uint8_t *class_map;      /* (N, h, w), 0 = background, 255 = ignore; or NULL with logits */
    const void *logits;            /* value (N, classes, h, w); or NULL with class_map */
    int32_t classes;               /* 2..255, with logits */
    int32_t value_type;            /* of logits, displacement, boundary, affinity and scores; on the CPU TFISEG_FLOAT32 */
    const void *displacement;      /* value (N, 2, h, w) dy, dx in grid pixels; NULL: geometric */
    const void *boundary;          /* value (N, h / boundary_stride, w / boundary_stride) in [0, 1], rounded up; or NULL */
    const void *affinity;          /* value (N, affinity_channels, h / stride, w / stride) in [0, 1], rounded up; or NULL */
    const int32_t *affinity_offsets_yx; /* (affinity_channels, 2) in affinity cells */
    int32_t affinity_channels, affinity_stride;
    int32_t boundary_stride; /* >= 1, with boundary */
    const void *scores;   /* value (N, h, w) confidence in [0, 1]; NULL: softmax of the logits, or 1 */
    const uint8_t *things; /* 256 flags: class is countable; 0 and 255 never are */
    const double *split;   /* 256 saddle / peak ratios, at or above which a neck is no neck; NaN: decided from shape ("auto") */
    double merge_affinity;    /* basins merge while their mean affinity is above it, if there is no evidence_rule */
    double centre_radius;     /* given displacement: neighbours with vectors shorter than this lie on one centre, grid pixels */
    int32_t min_area;         /* pixels of the label map; smaller instances become 0 */
    int32_t max_instances;    /* K, 1..65535; beyond it the largest are kept */
    int32_t threads;          /* >= 1; of the CPU */
    int32_t evidence_hidden;  /* hidden units of evidence_rule, 0..64; 0: none */
    /* With affinity: a network that decides which basins are one object, from the 17 features in merge.h. hidden x 17 weights, hidden
     * biases, hidden output weights, output bias; above 0 is one object. It belongs to the network that makes the affinities. */
    const float *evidence_rule;
    int32_t sharpen; /* with boundary: cuts move onto it within so many grid pixels, 0..32; 0: they stay where the shape has them */
    int32_t part_hidden; /* hidden units of part_rule, 0..64; 0: none */
    /* With affinity and boundary: as evidence_rule, for a second look at unions that a boundary crosses (parts.h). NULL: no such look. */
    const float *part_rule;
} tfiseg_problem;

typedef struct tfiseg_result {
    uint32_t struct_size; /* sizeof(tfiseg_result) */
    int32_t *label_map;    /* (N, H, W), 0 = none, 1..count, numbered by first pixel in raster order */
    uint8_t *semantic_map;     /* (N, H, W); may be NULL */
    int32_t *semantic_map_32;  /* the same as int32, for TensorRT, whose plugins have no uint8; may be NULL */
    int32_t *count;        /* (N) */
    int32_t *regions;      /* (N), how many there were before any merged: a shape of one has no neck; may be NULL */
    float *table;          /* (N, K, 10); rows from count on are left as they were */
    void *workspace; /* tfiseg_workspace_size() bytes, whatever they hold; kept from call to call they cost no page faults */
    int64_t workspace_bytes;
    double cluster_ms, upsample_ms; /* out, on the CPU: time of the two halves */
} tfiseg_result;

TFISEG_API int32_t tfiseg_api_version(void);
TFISEG_API const char *tfiseg_status_string(int32_t status);
/* Bytes of workspace that this problem needs on a device (tfiseg_device); 0 if the problem is not valid there. Shapes, value_type and
 * which inputs are given decide, so pointers may be any but NULL. */
TFISEG_API int64_t tfiseg_workspace_size(const tfiseg_problem *problem, int32_t device);
/* Waits until the result is there. */
TFISEG_API int32_t tfiseg_cluster_cpu(const tfiseg_problem *problem, tfiseg_result *result);
/* Enqueues kernels on a stream (cudaStream_t) and returns: no allocation, no synchronisation, nothing read back, so it may be captured
 * in a CUDA graph. A library that was built without CUDA returns TFISEG_NO_CUDA. */
TFISEG_API int32_t tfiseg_cluster_cuda(const tfiseg_problem *problem, tfiseg_result *result, void *stream);

/* Views: squares of a frame, in which an instance network looks at components of its class map (tfiseg_cluster_* with split 0), and what is
 * found there carried back. With the network in between, and tfiseg_cluster_* of `own` with its maps, that is one CUDA graph:
 *
 *     tfiseg_cluster_cuda (components) -> tfiseg_cut_views_cuda -> network -> tfiseg_cluster_cuda (own) -> tfiseg_place_pieces_cuda
 *
 * Components that are convex get no view; the others do, the largest first, and then each class of several components a view of all. Of
 * crowds the largest 16 K components are looked at for that. */
typedef struct tfiseg_views {
    uint32_t struct_size;     /* sizeof(tfiseg_views) */
    int32_t height, width;    /* of the frame and its label map, 1..32767 */
    const uint8_t *frame;     /* (height, width, 3), rows without gaps */
    const int32_t *label_map; /* (height, width); this, count and table as in tfiseg_result, of one picture */
    const int32_t *count;     /* (1) */
    const float *table;       /* (max_components, 10) */
    int32_t max_components;   /* 1..65535 */
    const uint8_t *wanted;    /* 256 flags, always the host's: components of other classes are left out */
    int32_t view_count, view_side; /* K, 1..256, and S, 8..1024: as many and as large as the network takes */
    int32_t threads;          /* >= 1; of the CPU */
    int32_t *views;           /* out: (K, 5) x and y of the corner (may lie outside), side in pixels of the frame, class, component (0: all of
                               * the class's); class 0: there is none */
    uint8_t *images;          /* out: (K, S, S, 3) */
    uint8_t *masks;           /* out: (K, S, S), 1: the view's class */
    uint8_t *own;             /* out: (K, S, S), 1: the view's component */
    void *workspace;          /* tfiseg_views_workspace_size() bytes, whatever they hold */
    int64_t workspace_bytes;
} tfiseg_views;

/* What was found in the views: result of tfiseg_cluster_* with K pictures, own as the class map, min_area 0, max_instances max_parts. */
typedef struct tfiseg_pieces {
    uint32_t struct_size;   /* sizeof(tfiseg_pieces) */
    int32_t max_parts;      /* 1..1024 */
    int32_t least_regions;  /* components of fewer regions by their shape stay whole: 2 where they have no neck, 1: none */
    const int32_t *labels;  /* (K, S, S) */
    const int32_t *counts;  /* (K) */
    const int32_t *regions; /* (K) */
    const float *tables;    /* (K, max_parts, 10) */
    int32_t *label_map;     /* out: (height, width); this, count and table as in tfiseg_result, of one picture */
    int32_t *count;         /* out: (1) */
    float *table;           /* out: (P, 10), P = max_components + K (max_parts - 1) */
    int32_t *component_of;  /* out: (P), from 1; rows from count on are left as they were */
} tfiseg_pieces;

/* Bytes of workspace for both calls; 0 if something is out of range. Pointers may be any. */
TFISEG_API int64_t tfiseg_views_workspace_size(const tfiseg_views *views, int32_t max_parts);
TFISEG_API int32_t tfiseg_cut_views_cpu(const tfiseg_views *views);
TFISEG_API int32_t tfiseg_place_pieces_cpu(const tfiseg_views *views, const tfiseg_pieces *pieces);
/* As tfiseg_cluster_cuda: nothing but kernels on the stream. */
TFISEG_API int32_t tfiseg_cut_views_cuda(const tfiseg_views *views, void *stream);
TFISEG_API int32_t tfiseg_place_pieces_cuda(const tfiseg_views *views, const tfiseg_pieces *pieces, void *stream);

/* A frame uint8 (height, width, 3), rows without gaps, as a network of out_height x out_width wants it: float (3, out_height, out_width),
 * values 0..255, channels in their order. Bilinear to twice the size and averaged 2 x 2, as the preprocessing in tfiseg's ONNX models. */
TFISEG_API int32_t tfiseg_fit_frame(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width);

/* The graph that `split` decides on: for fitting the rule (export/neck_rule.py) and for tests.
 * regions: (capacity_regions, 8) int64 area, sum x, sum y, sum xx, sum xy, sum yy, peak (squared distance), class;
 * edges: (capacity_edges, 7) int64 region a < region b, saddle (squared distance), contact (pixel pairs), boundary sum, affinity sum
 * (both 16-bit fixed point), affinity pairs; edges that only affinities join are there, too;
 * region_map (h, w) int32, 0 = none. Returns a status; the counts go to counts[0], counts[1]. */
TFISEG_API int32_t tfiseg_region_graph(const tfiseg_problem *problem, int32_t *region_map, int64_t *regions, int64_t capacity_regions,
                            int64_t *edges, int64_t capacity_edges, int64_t *counts);

#ifdef __cplusplus
}
#endif
#endif
