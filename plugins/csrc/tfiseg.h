/* tfiseg's C API: what a C++ robot links and what Python calls. Plain C, no allocation that outlives a call.
 *
 * One operator, DisplacementFieldClustering: class logits (or a class map) in, instance label map and table out.
 * Deterministic: the label map depends on the inputs alone, bit for bit, never on the number of threads. */
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

#define TFISEG_API_VERSION 1
#define TFISEG_MAX_SIDE 4096      /* of the grid that is clustered */
#define TFISEG_MAX_OUT_SIDE 32767 /* of the label map, with logits */
#define TFISEG_MAX_INSTANCES 65535
#define TFISEG_TABLE_COLUMNS 10 /* class, score, x0, y0, x1, y1, area, centroid x, centroid y, flags */
#define TFISEG_FLAG_TOUCHES_EDGE 1 /* the instance touches the picture's border, so it may go on outside */

enum tfiseg_status {
    TFISEG_OK = 0,
    TFISEG_BAD_STRUCT_SIZE = 1,
    TFISEG_BAD_SHAPE = 2,
    TFISEG_MISSING_POINTER = 3,
    TFISEG_OUT_OF_MEMORY = 4,
    TFISEG_BAD_PARAMETER = 5,
    TFISEG_SMALL_WORKSPACE = 6,
    TFISEG_INTERNAL_ERROR = 7
};

typedef struct tfiseg_problem {
    uint32_t struct_size; /* sizeof(tfiseg_problem) */
    int32_t batch;        /* N >= 1 */
    int32_t height, width;         /* of the grid that is clustered, 1..4096 */
    int32_t out_height, out_width; /* of the label map; with a class map: equal to height, width */
    const uint8_t *class_map;      /* (N, h, w), 0 = background, 255 = ignore; or NULL with logits */
    const float *logits;           /* (N, classes, h, w); or NULL with class_map */
    int32_t classes;               /* 2..255, with logits */
    const float *displacement;     /* (N, 2, h, w) dy, dx in grid pixels; NULL: geometric */
    const float *boundary;         /* (N, h, w) in [0, 1]; or NULL */
    const float *affinity;         /* (N, affinity_channels, h / stride, w / stride) in [0, 1], rounded up; or NULL */
    const int32_t *affinity_offsets_yx; /* (affinity_channels, 2) in affinity cells */
    int32_t affinity_channels, affinity_stride;
    const float *scores;  /* (N, h, w) confidence in [0, 1]; NULL: softmax of the logits, or 1 */
    const uint8_t *things; /* 256 flags: class is countable; 0 and 255 never are */
    const double *split;   /* 256 saddle / peak ratios, at or above which a neck is no neck; NaN: decided from shape ("auto") */
    double merge_affinity;    /* basins merge while their mean affinity is above it */
    double centre_radius;     /* given displacement: neighbours with vectors shorter than this lie on one centre, grid pixels */
    int32_t min_area;         /* pixels of the label map; smaller instances become 0 */
    int32_t max_instances;    /* K, 1..65535; beyond it the largest are kept */
    int32_t threads;          /* >= 1 */
} tfiseg_problem;

typedef struct tfiseg_result {
    uint32_t struct_size; /* sizeof(tfiseg_result) */
    int32_t *label_map;    /* (N, H, W), 0 = none, 1..count, numbered by first pixel in raster order */
    uint8_t *semantic_map; /* (N, H, W); may be NULL */
    int32_t *count;        /* (N) */
    float *table;          /* (N, K, 10); rows from count on are left as they were */
    void *workspace; /* tfiseg_workspace_size() bytes; kept from call to call it costs no page faults */
    int64_t workspace_bytes;
    double cluster_ms, upsample_ms; /* out: time of the two halves */
} tfiseg_result;

TFISEG_API int32_t tfiseg_api_version(void);
TFISEG_API const char *tfiseg_status_string(int32_t status);
/* Bytes of workspace that this problem needs on the CPU; 0 if the problem is not valid. */
TFISEG_API int64_t tfiseg_workspace_size(const tfiseg_problem *problem);
TFISEG_API int32_t tfiseg_cluster_cpu(const tfiseg_problem *problem, tfiseg_result *result);

/* The graph that `split` decides on: for fitting the rule (export/neck_rule.py) and for tests.
 * regions: (capacity_regions, 8) int64 area, sum x, sum y, sum xx, sum xy, sum yy, peak (squared distance), class;
 * edges: (capacity_edges, 4) int64 region a < region b, saddle (squared distance), contact (pixel pairs);
 * region_map (h, w) int32, 0 = none. Returns a status; the counts go to counts[0], counts[1]. */
TFISEG_API int32_t tfiseg_region_graph(const tfiseg_problem *problem, int32_t *region_map, int64_t *regions, int64_t capacity_regions,
                            int64_t *edges, int64_t capacity_edges, int64_t *counts);

#ifdef __cplusplus
}
#endif
#endif
