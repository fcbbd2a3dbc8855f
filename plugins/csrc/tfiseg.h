/* tfiseg's C API, for C and C++ programs, Python and the TensorRT plugin. Plain C; the caller owns all memory.
 *
 * One operator, DisplacementFieldClustering: class logits or a class map in, instance label map and table out.
 *
 *     tfiseg_problem problem = {.struct_size = sizeof problem, ...};
 *     int64_t bytes = tfiseg_workspace_size(&problem, TFISEG_ON_CUDA);
 *     int32_t status = tfiseg_cluster_cuda(&problem, &result, stream);   // or tfiseg_cluster_cpu(&problem, &result)
 *
 * Deterministic: the label map depends only on the inputs, bit for bit, with any number of threads and on a GPU. */
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
#define TFISEG_COUNT_OVERFLOW (-1) /* as a count, on a GPU: too many regions, edges or merge rounds (plugins/README.md, known limits) */
#define TFISEG_TABLE_COLUMNS 10 /* class, score, x0, y0, x1, y1, area, centroid x, centroid y, flags */
#define TFISEG_MAX_VIEWS 256
#define TFISEG_MAX_VIEW_SIDE 1024
#define TFISEG_MAX_REFINEMENT_VIEWS 65535
#define TFISEG_VIEW_COLUMNS 5 /* x, y, side, class, component */
#define TFISEG_FLAG_TOUCHES_EDGE 1 /* the instance touches the picture's border, so it may continue outside */
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

/* One batch to cluster. Pointers are to memory of the device that computes, except things, split, affinity_offsets_yx, evidence_rule and
 * part_rule: these are host memory, read only during the call. "value" is value_type.
 *
 * The caller must give maps of the sizes below; the strides are the only sizes that a call can check. Values out of range do no harm: in
 * boundary, affinity and scores, less than 0 and NaN count as 0 and more than 1 as 1; a displacement leads to the nearest pixel of the
 * picture, NaN to row or column 0. */
typedef struct tfiseg_problem {
    uint32_t struct_size; /* sizeof(tfiseg_problem) */
    int32_t batch;        /* N >= 1 */
    int32_t height, width;         /* of the grid that is clustered, 1..4096 */
    int32_t out_height, out_width; /* of the label map; with a class map: equal to height, width */
    const uint8_t *class_map;      /* (N, h, w), 0 = background, 255 = ignore; or NULL with logits */
    const void *logits;            /* value (N, classes, h, w); or NULL with class_map */
    int32_t classes;               /* 2..255, with logits */
    int32_t value_type;            /* of logits, displacement, boundary, affinity and scores; on the CPU TFISEG_FLOAT32 */
    const void *displacement;      /* value (N, 2, h, w) dy, dx in grid pixels; NULL: from shape */
    const void *boundary;          /* value (N, ceil(h / boundary_stride), ceil(w / boundary_stride)) in [0, 1]; or NULL */
    const void *affinity;          /* value (N, affinity_channels, ceil(h / affinity_stride), ceil(w / affinity_stride)) in [0, 1]; or NULL */
    const int32_t *affinity_offsets_yx; /* (affinity_channels, 2) dy, dx in affinity cells, -4096..4096 */
    int32_t affinity_channels; /* with affinity: 1..4096, on a GPU 1..32 */
    int32_t affinity_stride;   /* with affinity: grid pixels per cell, 1..4096 */
    int32_t boundary_stride;   /* with boundary: the same */
    const void *scores;   /* value (N, h, w) confidence in [0, 1]; NULL: softmax of the logits, or 1 */
    const uint8_t *things; /* 256 flags: 1 = the class is countable; classes 0 and 255 never are */
    const double *split;   /* 256 saddle / peak ratios per class; two regions merge where their ratio is at least this; NaN: the shape rule decides ("auto") */
    double merge_affinity;    /* regions merge while their mean affinity is above this, if there is no evidence_rule */
    double centre_radius;     /* with displacement: vectors shorter than this mark centers; centers that touch are one center; grid pixels */
    int32_t min_area;         /* pixels of the label map; smaller instances become 0 */
    int32_t max_instances;    /* K, 1..65535; if there are more, the largest are kept */
    int32_t threads;          /* >= 1; of the CPU */
    int32_t evidence_hidden;  /* hidden units of evidence_rule, 0..64; 0: no rule */
    /* With affinity: a small network that decides from the 17 features in merge.h whether two regions are one object (output above 0). Layout:
     * hidden x 17 weights, hidden biases, hidden output weights, output bias. It is fitted to the network that gives the affinities. */
    const float *evidence_rule;
    int32_t sharpen; /* with boundary: cuts move onto it, by at most this many grid pixels, 0..32; 0: cuts stay */
    int32_t part_hidden; /* hidden units of part_rule, 0..64; 0: no rule */
    /* With affinity and boundary: as evidence_rule, for the second pass, which cuts unions that a boundary crosses (parts.h). NULL: no second
     * pass. */
    const float *part_rule;
} tfiseg_problem;

typedef struct tfiseg_result {
    uint32_t struct_size; /* sizeof(tfiseg_result) */
    int32_t *label_map;    /* (N, H, W), 0 = none, 1..count, numbered by first pixel in raster order */
    uint8_t *semantic_map;     /* (N, H, W); may be NULL */
    int32_t *semantic_map_32;  /* the same as int32, for TensorRT, whose plugins have no uint8 outputs; may be NULL */
    int32_t *count;        /* (N) */
    int32_t *regions;      /* (N) regions before any merge: an object of one region has no neck; may be NULL */
    float *table;          /* (N, K, 10); rows from count on are not written */
    void *workspace; /* tfiseg_workspace_size() bytes with any content; reuse the memory to avoid page faults */
    int64_t workspace_bytes;
    double cluster_ms, upsample_ms; /* out, on the CPU: time to cluster the grid, and to bring it to the output size */
} tfiseg_result;

TFISEG_API int32_t tfiseg_api_version(void);
TFISEG_API const char *tfiseg_status_string(int32_t status);
/* Bytes of workspace that this problem needs on a device (tfiseg_device); 0 if the problem is not valid there. Reads no memory but the
 * struct: for the inputs that will be given, any pointer but NULL serves. */
TFISEG_API int64_t tfiseg_workspace_size(const tfiseg_problem *problem, int32_t device);
/* Returns when the result is complete. */
TFISEG_API int32_t tfiseg_cluster_cpu(const tfiseg_problem *problem, tfiseg_result *result);
/* Enqueues kernels on a stream (cudaStream_t) and returns. It allocates, synchronizes and reads back nothing, so it may be captured in a
 * CUDA graph; call it once before the capture, since the first call loads the kernels. A library built without CUDA returns TFISEG_NO_CUDA. */
TFISEG_API int32_t tfiseg_cluster_cuda(const tfiseg_problem *problem, tfiseg_result *result, void *stream);

/* Views: squares of a frame, rendered around components of its class map (tfiseg_cluster_* with split 0) for an instance network, whose result
 * is then carried back into the frame. With the network in between, all of it is one CUDA graph:
 *
 *     tfiseg_cluster_cuda (components) -> tfiseg_cut_views_cuda -> network -> tfiseg_cluster_cuda (own) -> tfiseg_place_pieces_cuda
 *
 * Convex components get no view. The others do, largest first, then each class with several components gets a view of all of them. Only the
 * largest 16 K components are candidates. */
typedef struct tfiseg_views {
    uint32_t struct_size;     /* sizeof(tfiseg_views) */
    int32_t height, width;    /* of the frame and its label map, 1..32767 */
    const uint8_t *frame;     /* (height, width, 3), rows without gaps */
    const int32_t *label_map; /* (height, width); this, count and table as in tfiseg_result, of one picture */
    const int32_t *count;     /* (1) */
    const float *table;       /* (max_components, 10) */
    int32_t max_components;   /* 1..65535 */
    const uint8_t *wanted;    /* 256 flags, host memory: 1 = components of this class get views and pieces */
    int32_t view_count, view_side; /* K, 1..256, and S, 8..1024: batch and side of the network's input */
    int32_t threads;          /* >= 1; of the CPU */
    int32_t *views;           /* out: (K, 5) x and y of the corner (may lie outside the frame), side in pixels of the frame, class, component
                               * (0: all of the class); class 0: an empty view */
    uint8_t *images;          /* out: (K, S, S, 3) */
    uint8_t *masks;           /* out: (K, S, S), 1: the view's class */
    uint8_t *own;             /* out: (K, S, S), 1: the view's component */
    void *workspace;          /* tfiseg_views_workspace_size() bytes with any content */
    int64_t workspace_bytes;
} tfiseg_views;

/* The parts in the views: result of tfiseg_cluster_* with K pictures, own as the class map, min_area 0, max_instances max_parts. */
typedef struct tfiseg_pieces {
    uint32_t struct_size;   /* sizeof(tfiseg_pieces) */
    int32_t max_parts;      /* 1..1024 */
    int32_t least_regions;  /* components with fewer regions stay whole: with 2, those without a neck; with 1, none */
    const int32_t *labels;  /* (K, S, S) */
    const int32_t *counts;  /* (K) */
    const int32_t *regions; /* (K) */
    const float *tables;    /* (K, max_parts, 10) */
    int32_t *label_map;     /* out: (height, width); this, count and table as in tfiseg_result, of one picture */
    int32_t *count;         /* out: (1) */
    float *table;           /* out: (P, 10), P = max_components + K (max_parts - 1) */
    int32_t *component_of;  /* out: (P), from 1; rows from count on are not written */
} tfiseg_pieces;

/* Bytes of workspace for both calls; 0 if something is out of range. Reads no memory but the struct. */
TFISEG_API int64_t tfiseg_views_workspace_size(const tfiseg_views *views, int32_t max_parts);
TFISEG_API int32_t tfiseg_cut_views_cpu(const tfiseg_views *views);
TFISEG_API int32_t tfiseg_place_pieces_cpu(const tfiseg_views *views, const tfiseg_pieces *pieces);
/* Enqueue kernels on the stream, as tfiseg_cluster_cuda does. */
TFISEG_API int32_t tfiseg_cut_views_cuda(const tfiseg_views *views, void *stream);
TFISEG_API int32_t tfiseg_place_pieces_cuda(const tfiseg_views *views, const tfiseg_pieces *pieces, void *stream);

/* Mask refinement: pixels near the outlines of instances are added or removed, as an instance network predicts in views of their components.
 * The rule: docs/reference/operator.md. No instance is created or lost. View k belongs to component views[k][4] (0: the view is not used); of
 * several views of a component, the first one is used. Components without a view lose nothing.
 *
 * Pointers are to memory of the device that computes. The outputs must not overlap the inputs. */
typedef struct tfiseg_mask_refinement {
    uint32_t struct_size;         /* sizeof(tfiseg_mask_refinement) */
    int32_t height, width;        /* of the frame, 1..32767 */
    const int32_t *label_map;     /* (height, width) instances; this, count and table as in tfiseg_result, of one picture */
    const int32_t *count;         /* (1) */
    const float *table;           /* (max_instances, 10) */
    int32_t max_instances;        /* 1..16777215 */
    int32_t max_components;       /* 1..16777215 */
    const int32_t *component_map; /* (height, width) connected components of the class map; this, count and table as in tfiseg_result */
    const int32_t *component_count; /* (1) */
    const float *component_table; /* (max_components, 10) */
    const int32_t *views;         /* (K, 5) as in tfiseg_views */
    const int32_t *map_sides;     /* (K) cells per side of each foreground map, 1..max_map_side */
    const void *foreground;       /* value, K maps (map_sides[k], map_sides[k]) one after the other: probability that a cell of view k belongs to
                                   * its component, in [0, 1] */
    int32_t view_count;           /* K, 1..65535; K * height * ceil(width / 8) and K * max_map_side^2 are below 2^31 */
    int32_t max_map_side;         /* 1..1024 */
    int32_t value_type;           /* of foreground */
    int32_t threads;              /* >= 1; of the CPU */
    int32_t *refined_map;         /* out: (height, width); this, count and table as in tfiseg_result; class and score are the instance's */
    int32_t *refined_count;       /* out: (1) */
    float *refined_table;         /* out: (max_instances, 10); rows from count on are not written */
    int32_t *instance_of;         /* out: (max_instances) the given instance, from 1; rows from count on are not written */
    void *workspace;              /* tfiseg_refine_masks_workspace_size() bytes with any content */
    int64_t workspace_bytes;
} tfiseg_mask_refinement;

/* Views for mask refinement. After tfiseg_place_pieces_cuda and a choice of the instances to keep, one more CUDA graph refines their masks:
 *
 *     tfiseg_relabel_cuda -> tfiseg_cluster_cuda (its class map: components) -> tfiseg_cut_mask_views_cuda -> network (foreground) ->
 *     tfiseg_refine_masks_cuda
 *
 * The K largest components of 20 pixels or more get a view. If a known view shows the same square and class, it is the component's view, so its
 * foreground map can be used again; the others are rendered. */
typedef struct tfiseg_mask_views {
    uint32_t struct_size;     /* sizeof(tfiseg_mask_views) */
    int32_t height, width;    /* of the frame and its label map, 1..32767 */
    const uint8_t *frame;     /* (height, width, 3), rows without gaps */
    const int32_t *label_map; /* (height, width); this, count and table as in tfiseg_result, of one picture */
    const int32_t *count;     /* (1) */
    const float *table;       /* (max_components, 10) */
    int32_t max_components;   /* 1..65535 */
    const int32_t *known;     /* (known_count, 5) views of tfiseg_views */
    int32_t known_count, known_side; /* 0..256, and the side of the known views, 8..1024, which limits the zoom of all views */
    int32_t view_count, view_side;   /* K, 1..256, and S, 8..1024: batch and side of the network's input */
    int32_t threads;          /* >= 1; of the CPU */
    int32_t *views;           /* out: (known_count + K, 5) the known views, each with its component in label_map (0: none), then the rendered
                               * ones, as in tfiseg_views */
    uint8_t *images;          /* out: (K, S, S, 3) */
    uint8_t *masks;           /* out: (K, S, S), 1: the view's class */
    void *workspace;          /* tfiseg_mask_views_workspace_size() bytes with any content */
    int64_t workspace_bytes;
} tfiseg_mask_views;

/* Bytes of workspace; 0 if something is out of range. Reads no memory but the struct. */
TFISEG_API int64_t tfiseg_mask_views_workspace_size(const tfiseg_mask_views *views);
TFISEG_API int32_t tfiseg_cut_mask_views_cpu(const tfiseg_mask_views *views);
/* Enqueues kernels on the stream, as tfiseg_cluster_cuda does. */
TFISEG_API int32_t tfiseg_cut_mask_views_cuda(const tfiseg_mask_views *views, void *stream);

/* Gives the labels of a map (height, width) other numbers, and its pixels classes: relabeled = numbers[label], class_map = classes[label], where
 * the new number is not 0. numbers and classes have count entries, the first one for label 0; labels from count on become 0. */
TFISEG_API int32_t tfiseg_relabel_cpu(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes,
                                      int32_t count, int32_t *relabeled, uint8_t *class_map);
TFISEG_API int32_t tfiseg_relabel_cuda(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes,
                                       int32_t count, int32_t *relabeled, uint8_t *class_map, void *stream);

/* Bytes of workspace; 0 if something is out of range. Reads no memory but the struct. */
TFISEG_API int64_t tfiseg_refine_masks_workspace_size(const tfiseg_mask_refinement *refinement);
TFISEG_API int32_t tfiseg_refine_masks_cpu(const tfiseg_mask_refinement *refinement);
/* Enqueues kernels on the stream, as tfiseg_cluster_cuda does. */
TFISEG_API int32_t tfiseg_refine_masks_cuda(const tfiseg_mask_refinement *refinement, void *stream);

/* Resizes a frame uint8 (height, width, 3), rows without gaps, to a network's input float (3, out_height, out_width), values 0..255, channels
 * in their order. Bilinear to twice the size, then averaged 2 x 2, like the preprocessing in tfiseg's ONNX models. */
TFISEG_API int32_t tfiseg_fit_frame(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width);
/* The same on a GPU, bit for bit: frame and out are device memory. Enqueues one kernel on the stream, as tfiseg_cluster_cuda does. Fastest if
 * the frame's address and its width are multiples of 4. */
TFISEG_API int32_t tfiseg_fit_frame_cuda(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width,
                                         void *stream);

/* The graph of regions that `split` decides on, for fitting the shape rule (export/neck_rule.py) and for tests.
 * regions: (capacity_regions, 8) int64 area, sum x, sum y, sum xx, sum xy, sum yy, peak (squared distance), class;
 * edges: (capacity_edges, 7) int64 region a < region b, saddle (squared distance), contact (pixel pairs), boundary sum, affinity sum
 * (both 16-bit fixed point), affinity pairs; edges from affinities alone are included;
 * region_map (h, w) int32, 0 = none. Returns a status; the counts go to counts[0], counts[1]. */
TFISEG_API int32_t tfiseg_region_graph(const tfiseg_problem *problem, int32_t *region_map, int64_t *regions, int64_t capacity_regions,
                            int64_t *edges, int64_t capacity_edges, int64_t *counts);

#ifdef __cplusplus
}
#endif
#endif
