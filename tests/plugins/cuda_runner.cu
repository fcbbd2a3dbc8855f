// Runs the CUDA operator on host memory, for tests and benchmarks: once, many times in a CUDA graph, or with a time for each phase.
//     nvcc -shared -Xcompiler=-fPIC -fmad=false -arch=native -DTFISEG_WITH_CUDA cuda_runner.cu ../../plugins/csrc/{api,cluster_cpu}.cpp
#ifdef __NVCC__
#pragma nv_diag_suppress 20011, 20014  // Timed runs sections phase by phase on the host
#endif
#include "../../plugins/csrc/cluster_cuda.cu"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <typeinfo>
#include <vector>

namespace {

#define TRY(call)                                                                         \
    do {                                                                                  \
        const cudaError_t status = (call);                                                \
        if (status != cudaSuccess) {                                                      \
            std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status));          \
            return TFISEG_CUDA_ERROR;                                                     \
        }                                                                                 \
    } while (0)

// Device copies of arrays, and the outputs to copy back to the host.
class DeviceCopies {
  public:
    ~DeviceCopies() {
        for (void *p : owned_) cudaFree(p);
    }

    int32_t download() const {
        for (const Output &o : outputs_) TRY(cudaMemcpy(o.host, o.device, o.bytes, cudaMemcpyDeviceToHost));
        return TFISEG_OK;
    }

  protected:
    template <class T>
    int32_t upload(const T *&map, size_t bytes) {
        if (!map) return TFISEG_OK;
        void *copy;
        TRY(cudaMalloc(&copy, bytes));
        owned_.push_back(copy);
        TRY(cudaMemcpy(copy, map, bytes, cudaMemcpyHostToDevice));
        map = static_cast<const T *>(copy);
        return TFISEG_OK;
    }

    template <class T>
    int32_t add_output(T *&map, T *host, size_t n) {
        if (!host) return TFISEG_OK;
        TRY(cudaMalloc(&map, n * sizeof(T)));
        owned_.push_back(map);
        TRY(cudaMemcpy(map, host, n * sizeof(T), cudaMemcpyHostToDevice));
        outputs_.push_back({host, map, n * sizeof(T)});
        return TFISEG_OK;
    }

    int32_t allocate(void *&workspace, int64_t bytes) {
        TRY(cudaMalloc(&workspace, size_t(bytes)));
        owned_.push_back(workspace);
        return TFISEG_OK;
    }

  private:
    struct Output {
        void *host;
        const void *device;
        size_t bytes;
    };
    std::vector<void *> owned_;
    std::vector<Output> outputs_;
};

// A problem's maps and its result on the device.
struct ProblemOnDevice : DeviceCopies {
    tfiseg_problem problem;
    tfiseg_result result = {};

    int32_t copy(const tfiseg_problem &p, const tfiseg_result &r) {
        problem = p;
        const size_t n = size_t(p.batch) * size_t(p.height) * size_t(p.width), value = p.value_type == TFISEG_FLOAT16 ? 2 : 4;
        const size_t stride = size_t(std::max(1, p.affinity_stride)), boundary_stride = size_t(std::max(1, p.boundary_stride));
        const auto cells_of = [&](size_t s) { return size_t(p.batch) * ((size_t(p.height) + s - 1) / s) * ((size_t(p.width) + s - 1) / s); };
        if (const int32_t s = upload(problem.class_map, n)) return s;
        if (const int32_t s = upload(problem.logits, n * size_t(p.classes) * value)) return s;
        if (const int32_t s = upload(problem.displacement, 2 * n * value)) return s;
        if (const int32_t s = upload(problem.boundary, cells_of(boundary_stride) * value)) return s;
        if (const int32_t s = upload(problem.scores, n * value)) return s;
        if (const int32_t s = upload(problem.affinity, cells_of(stride) * size_t(p.affinity_channels) * value)) return s;
        const size_t pixels = size_t(p.batch) * size_t(p.out_height) * size_t(p.out_width);
        const size_t rows = size_t(p.batch) * size_t(p.max_instances) * TFISEG_TABLE_COLUMNS;
        result.struct_size = sizeof result;
        if (const int32_t s = add_output(result.label_map, r.label_map, pixels)) return s;
        if (const int32_t s = add_output(result.semantic_map, r.semantic_map, pixels)) return s;
        if (const int32_t s = add_output(result.semantic_map_32, r.semantic_map_32, pixels)) return s;
        if (const int32_t s = add_output(result.count, r.count, size_t(p.batch))) return s;
        if (const int32_t s = add_output(result.regions, r.regions, size_t(p.batch))) return s;
        if (const int32_t s = add_output(result.table, r.table, rows)) return s;
        result.workspace_bytes = tfiseg_workspace_size(&problem, TFISEG_ON_CUDA);
        return allocate(result.workspace, result.workspace_bytes);
    }
};

// Views and pieces, with their inputs and outputs, on the device.
struct ViewsOnDevice : DeviceCopies {
    tfiseg_views views;
    tfiseg_pieces pieces = {};

    int32_t copy(const tfiseg_views &v, int32_t max_parts) {
        views = v;
        const size_t pixels = size_t(v.height) * size_t(v.width), cells = cells_of(v);
        if (const int32_t s = upload(views.frame, pixels * 3)) return s;
        if (const int32_t s = upload(views.label_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = upload(views.count, sizeof(int32_t))) return s;
        if (const int32_t s = upload(views.table, size_t(v.max_components) * TFISEG_TABLE_COLUMNS * sizeof(float))) return s;
        if (const int32_t s = add_output(views.views, v.views, size_t(v.view_count) * TFISEG_VIEW_COLUMNS)) return s;
        if (const int32_t s = add_output(views.images, v.images, cells * 3)) return s;
        if (const int32_t s = add_output(views.masks, v.masks, cells)) return s;
        if (const int32_t s = add_output(views.own, v.own, cells)) return s;
        views.workspace_bytes = tfiseg_views_workspace_size(&views, max_parts);
        return allocate(views.workspace, views.workspace_bytes);
    }

    int32_t copy(const tfiseg_pieces &p) {
        pieces = p;
        const size_t k = size_t(views.view_count), rows = size_t(views.max_components) + k * size_t(p.max_parts - 1);
        if (const int32_t s = upload(pieces.labels, cells_of(views) * sizeof(int32_t))) return s;
        if (const int32_t s = upload(pieces.counts, k * sizeof(int32_t))) return s;
        if (const int32_t s = upload(pieces.regions, k * sizeof(int32_t))) return s;
        if (const int32_t s = upload(pieces.tables, k * size_t(p.max_parts) * TFISEG_TABLE_COLUMNS * sizeof(float))) return s;
        if (const int32_t s = add_output(pieces.label_map, p.label_map, size_t(views.height) * size_t(views.width))) return s;
        if (const int32_t s = add_output(pieces.count, p.count, 1)) return s;
        if (const int32_t s = add_output(pieces.table, p.table, rows * TFISEG_TABLE_COLUMNS)) return s;
        return add_output(pieces.component_of, p.component_of, rows);
    }

  private:
    static size_t cells_of(const tfiseg_views &v) { return size_t(v.view_count) * size_t(v.view_side) * size_t(v.view_side); }
};

// The arguments of tfiseg_relabel_cuda.
struct LabelsOnDevice : DeviceCopies {
    const int32_t *label_map, *numbers;
    const uint8_t *classes;
    int32_t *relabeled;
    uint8_t *class_map;

    int32_t copy(const int32_t *labels, size_t pixels, const int32_t *new_numbers, const uint8_t *new_classes, size_t count, int32_t *out,
                 uint8_t *out_classes) {
        label_map = labels;
        numbers = new_numbers;
        classes = new_classes;
        if (const int32_t s = upload(label_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = upload(numbers, count * sizeof(int32_t))) return s;
        if (const int32_t s = upload(classes, count)) return s;
        if (const int32_t s = add_output(relabeled, out, pixels)) return s;
        return add_output(class_map, out_classes, pixels);
    }
};

// Views for mask refinement, with their inputs and outputs, on the device.
struct MaskViewsOnDevice : DeviceCopies {
    tfiseg_mask_views views;

    int32_t copy(const tfiseg_mask_views &v) {
        views = v;
        const size_t pixels = size_t(v.height) * size_t(v.width), cells = size_t(v.view_count) * size_t(v.view_side) * size_t(v.view_side);
        const size_t known = size_t(v.known_count), all = known + size_t(v.view_count);
        if (const int32_t s = upload(views.frame, pixels * 3)) return s;
        if (const int32_t s = upload(views.label_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = upload(views.count, sizeof(int32_t))) return s;
        if (const int32_t s = upload(views.table, size_t(v.max_components) * TFISEG_TABLE_COLUMNS * sizeof(float))) return s;
        if (known)
            if (const int32_t s = upload(views.known, known * TFISEG_VIEW_COLUMNS * sizeof(int32_t))) return s;
        if (const int32_t s = add_output(views.views, v.views, all * TFISEG_VIEW_COLUMNS)) return s;
        if (const int32_t s = add_output(views.images, v.images, cells * 3)) return s;
        if (const int32_t s = add_output(views.masks, v.masks, cells)) return s;
        views.workspace_bytes = tfiseg_mask_views_workspace_size(&views);
        return allocate(views.workspace, views.workspace_bytes);
    }
};

// A frame on the device, and memory for the network's input.
struct FrameOnDevice : DeviceCopies {
    const uint8_t *frame;
    float *out;

    // skipped: bytes between a multiple of 256 and the frame.
    int32_t copy(const uint8_t *host, size_t pixels, float *host_out, size_t out_pixels, size_t skipped = 0) {
        std::vector<uint8_t> moved(skipped);
        moved.insert(moved.end(), host, host + pixels * 3);
        frame = moved.data();
        if (const int32_t s = upload(frame, moved.size())) return s;
        frame += skipped;
        return add_output(out, host_out, out_pixels * 3);
    }
};

// Instances, components and foreground maps on the device, and memory for refined masks.
struct RefinementOnDevice : DeviceCopies {
    tfiseg_mask_refinement refinement;

    int32_t copy(const tfiseg_mask_refinement &r) {
        refinement = r;
        const size_t pixels = size_t(r.height) * size_t(r.width), views = size_t(r.view_count), row = TFISEG_TABLE_COLUMNS * sizeof(float);
        size_t values = 0;
        for (size_t k = 0; k < views; ++k) values += size_t(r.map_sides[k]) * size_t(r.map_sides[k]);
        if (const int32_t s = upload(refinement.label_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = upload(refinement.count, sizeof(int32_t))) return s;
        if (const int32_t s = upload(refinement.table, size_t(r.max_instances) * row)) return s;
        if (const int32_t s = upload(refinement.component_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = upload(refinement.component_count, sizeof(int32_t))) return s;
        if (const int32_t s = upload(refinement.component_table, size_t(r.max_components) * row)) return s;
        if (const int32_t s = upload(refinement.views, views * TFISEG_VIEW_COLUMNS * sizeof(int32_t))) return s;
        if (const int32_t s = upload(refinement.map_sides, views * sizeof(int32_t))) return s;
        if (const int32_t s = upload(refinement.foreground, values * (r.value_type == TFISEG_FLOAT16 ? 2 : 4))) return s;
        if (const int32_t s = add_output(refinement.refined_map, r.refined_map, pixels)) return s;
        if (const int32_t s = add_output(refinement.refined_count, r.refined_count, 1)) return s;
        if (const int32_t s = add_output(refinement.refined_table, r.refined_table, size_t(r.max_instances) * TFISEG_TABLE_COLUMNS)) return s;
        if (const int32_t s = add_output(refinement.instance_of, r.instance_of, size_t(r.max_instances))) return s;
        refinement.workspace_bytes = tfiseg_refine_masks_workspace_size(&refinement);
        return allocate(refinement.workspace, refinement.workspace_bytes);
    }
};

// Minimum number of bytes that a phase must move: its reads and writes of the grid (n pixels) and the result (m pixels).
struct MinimumBytes {
    double n, m;
    const tfiseg_problem &p;

    double of_phase(const std::string &phase) const {
        const double value = p.value_type == TFISEG_FLOAT16 ? 2 : 4, given = p.logits ? p.classes * value + 1 + 2 : 1;
        const struct {
            const char *name;
            double bytes;
        } known[] = {{"FindClasses", n * (given + 1 + 4)}, {"FindClassChanges", n * 1.25},       {"ColumnSearch", n * 2.125},  {"RowSearch", n * 7},
                     {"AscentLinks", n * 9},           {"GivenLinks", n * (9 + 2 * value)}, {"FollowLinks", n * 9}, {"ListContacts", n * 5},
                     {"SumRegions", n * (p.logits ? 11 : 9)}, {"Upsample", m * 5 + n * 5}, {"WriteLabels", p.logits ? m * 8 : m * 10}};
        for (const auto &k : known)
            if (phase.find(k.name) != std::string::npos) return k.bytes;
        return 0.0;
    }
};

enum class Kind { kCounted, kRounds, kTiles };

// A section of one phase, whose time can be measured.
template <class Phases, Kind kind>
struct OnePhase {
    static constexpr int32_t kGroups = 1;
    Phases phases;
    const int32_t *count;
    int64_t limit;

    template <class Executor>
    __device__ void operator()(Executor &run) const {
        if constexpr (kind == Kind::kRounds) {
            run.rounds(phases);
        } else if constexpr (kind == Kind::kTiles) {
            run.tiles(limit, phases);
        } else {
            run.each_counted(count, limit, phases);
        }
    }
};

struct ExclusiveSum {
    static constexpr int32_t kGroups = 1;
    int32_t *counts;
    int64_t n;

    template <class Executor>
    __device__ void operator()(Executor &run) const {
        run.exclusive_sum(counts, n);
    }
};

// The CUDA executor with an event before and after each phase. Each phase of a section is a separate launch.
class Timed {
  public:
    explicit Timed(cudaStream_t stream) : inner_(stream), stream_(stream) {}

    template <class Phase>
    void each(int64_t n, const Phase &phase) {
        time(typeid(Phase).name(), [&] { inner_.each(n, phase); });
    }
    template <class Phase>
    void each_counted(const int32_t *count, int64_t limit, const Phase &phase) {
        time(typeid(Phase).name(), [&] { inner_.section(limit, OnePhase<Phase, Kind::kCounted>{phase, count, limit}); });
    }
    template <class Phases>
    void rounds(const Phases &phases) {
        time(typeid(Phases).name(), [&] { inner_.section(is_solo_ ? 1 : items_, OnePhase<Phases, Kind::kRounds>{phases, nullptr, 0}); });
    }
    template <class Phase>
    void tiles(int64_t n, const Phase &phase) {
        time(typeid(Phase).name(), [&] { inner_.section(n * Phase::kItems, OnePhase<Phase, Kind::kTiles>{phase, nullptr, n}); });
    }
    void exclusive_sum(int32_t *counts, int64_t n) {
        time("ExclusiveSum", [&] { inner_.section(1, ExclusiveSum{counts, n}); });
    }
    template <class Body>
    void solo(tfiseg::DeviceCounts, int32_t, const Body &body) {  // the host does not know the counts, but small grids have few items
        is_solo_ = items_ <= tfiseg::kSmallPixels;
        body();
        is_solo_ = false;
    }
    template <class Shared, class Body>
    void solo_sharing(tfiseg::DeviceCounts, int32_t, const Body &body) {
        body(static_cast<Shared *>(nullptr));
    }
    template <class Section>
    void section(int64_t items, const Section &section) {
        items_ = items;
        section(*this);
    }

    struct Time {
        std::string phase;
        cudaEvent_t begin, end;
    };
    std::vector<Time> times;
    cudaError_t status() const { return inner_.status(); }

  private:
    template <class Run>
    void time(const std::string &phase, const Run &run) {
        Time t = {phase, nullptr, nullptr};
        cudaEventCreate(&t.begin);
        cudaEventCreate(&t.end);
        cudaEventRecord(t.begin, stream_);
        run();
        cudaEventRecord(t.end, stream_);
        times.push_back(t);
    }

    tfiseg::Cuda inner_;
    cudaStream_t stream_;
    int64_t items_ = 1;
    bool is_solo_ = false;
};

float median(std::vector<float> values) {
    std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
    return values[values.size() / 2];
}

// Captures the work that `enqueue` puts on a stream once, and replays it many times.
template <class Enqueue>
int32_t replay(const Enqueue &enqueue, int32_t replays, double *median_us, int64_t *grown_bytes) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    TRY(cudaStreamCreate(&stream));
    if (const int32_t status = enqueue(stream)) return status;  // loads the kernels, which must not happen during a capture
    TRY(cudaStreamSynchronize(stream));
    TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    if (const int32_t status = enqueue(stream)) return status;
    TRY(cudaStreamEndCapture(stream, &graph));
    TRY(cudaGraphInstantiate(&ready, graph, 0));
    for (int32_t k = 0; k < 20; ++k) TRY(cudaGraphLaunch(ready, stream));
    TRY(cudaStreamSynchronize(stream));
    size_t free_before, free_after, all;
    TRY(cudaMemGetInfo(&free_before, &all));
    cudaEvent_t begin, end;
    TRY(cudaEventCreate(&begin));
    TRY(cudaEventCreate(&end));
    constexpr int32_t kLaunches = 10;  // per pair of events, so that the time is that of the GPU and not of the host
    std::vector<float> times;
    for (int32_t k = 0; k < replays; k += kLaunches) {
        TRY(cudaEventRecord(begin, stream));
        for (int32_t j = 0; j < kLaunches; ++j) TRY(cudaGraphLaunch(ready, stream));
        TRY(cudaEventRecord(end, stream));
        TRY(cudaEventSynchronize(end));
        float ms;
        TRY(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms * 1e3f / kLaunches);
    }
    TRY(cudaMemGetInfo(&free_after, &all));
    *median_us = double(median(times));
    *grown_bytes = int64_t(free_before) - int64_t(free_after);
    TRY(cudaGraphExecDestroy(ready));
    TRY(cudaGraphDestroy(graph));
    TRY(cudaStreamDestroy(stream));
    return TFISEG_OK;
}

}  // namespace

extern "C" {

TFISEG_API int32_t cluster_by_phases(const tfiseg_problem *problem, tfiseg_result *result, uint32_t seed, int32_t) {
    if (const int32_t status = tfiseg::check(problem, result, TFISEG_ON_CUDA)) return status;
    ProblemOnDevice on;
    if (const int32_t status = on.copy(*problem, *result)) return status;
    // not initialized for even seeds, so that compute-sanitizer's initcheck finds reads of uninitialized memory
    if (seed % 2) TRY(cudaMemset(on.result.workspace, 0xA5, size_t(on.result.workspace_bytes)));
    if (const int32_t status = tfiseg_cluster_cuda(&on.problem, &on.result, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

TFISEG_API int32_t cut_views_by_phases(const tfiseg_views *views, uint32_t, int32_t) {
    if (const int32_t status = tfiseg::check(views)) return status;
    ViewsOnDevice on;
    if (const int32_t status = on.copy(*views, 1)) return status;
    if (const int32_t status = tfiseg_cut_views_cuda(&on.views, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

TFISEG_API int32_t place_pieces_by_phases(const tfiseg_views *views, const tfiseg_pieces *pieces, uint32_t, int32_t) {
    if (const int32_t status = tfiseg::check(views, pieces)) return status;
    ViewsOnDevice on;
    if (const int32_t status = on.copy(*views, pieces->max_parts)) return status;
    if (const int32_t status = on.copy(*pieces)) return status;
    if (const int32_t status = tfiseg_place_pieces_cuda(&on.views, &on.pieces, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

TFISEG_API int32_t cut_mask_views_by_phases(const tfiseg_mask_views *views, uint32_t, int32_t) {
    if (const int32_t status = tfiseg::check(views)) return status;
    MaskViewsOnDevice on;
    if (const int32_t status = on.copy(*views)) return status;
    if (const int32_t status = tfiseg_cut_mask_views_cuda(&on.views, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

TFISEG_API int32_t relabel_by_phases(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes,
                                     int32_t count, int32_t *relabeled, uint8_t *class_map) {
    LabelsOnDevice on;
    if (const int32_t s = on.copy(label_map, size_t(height) * size_t(width), numbers, classes, size_t(count), relabeled, class_map)) return s;
    if (const int32_t s = tfiseg_relabel_cuda(on.label_map, height, width, on.numbers, on.classes, count, on.relabeled, on.class_map, nullptr)) return s;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

// seed: its last two bits are the bytes skipped, see FrameOnDevice.
TFISEG_API int32_t fit_by_phases(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width,
                                 uint32_t seed, int32_t) {
    if (const int32_t status = tfiseg::check_fit(frame, height, width, out, out_height, out_width)) return status;
    FrameOnDevice on;
    if (const int32_t status = on.copy(frame, size_t(height) * size_t(width), out, size_t(out_height) * size_t(out_width), seed % 4)) return status;
    if (const int32_t status = tfiseg_fit_frame_cuda(on.frame, height, width, on.out, out_height, out_width, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

TFISEG_API int32_t refine_masks_by_phases(const tfiseg_mask_refinement *refinement, uint32_t seed, int32_t) {
    if (const int32_t status = tfiseg::check(refinement)) return status;
    RefinementOnDevice on;
    if (const int32_t status = on.copy(*refinement)) return status;
    if (seed % 2) TRY(cudaMemset(on.refinement.workspace, 0xA5, size_t(on.refinement.workspace_bytes)));
    if (const int32_t status = tfiseg_refine_masks_cuda(&on.refinement, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.download();
}

// median_us: median time of a replay. grown_bytes: growth of the used memory between the first and the last replay.
TFISEG_API int32_t replay_refinement_in_graph(const tfiseg_mask_refinement *refinement, int32_t replays, double *median_us, int64_t *grown_bytes) {
    RefinementOnDevice on;
    if (const int32_t status = on.copy(*refinement)) return status;
    const auto work = [&](cudaStream_t stream) { return tfiseg_refine_masks_cuda(&on.refinement, stream); };
    if (const int32_t status = replay(work, replays, median_us, grown_bytes)) return status;
    return on.download();
}

// median_us: median time of a replay. grown_bytes: growth of the used memory between the first and the last replay.
TFISEG_API int32_t replay_in_graph(const tfiseg_problem *problem, tfiseg_result *result, int32_t replays, double *median_us, int64_t *grown_bytes) {
    ProblemOnDevice on;
    if (const int32_t status = on.copy(*problem, *result)) return status;
    const auto work = [&](cudaStream_t stream) { return tfiseg_cluster_cuda(&on.problem, &on.result, stream); };
    if (const int32_t status = replay(work, replays, median_us, grown_bytes)) return status;
    return on.download();
}

// medians_us: median times of rendering views and of placing pieces.
TFISEG_API int32_t replay_views_in_graph(const tfiseg_views *views, const tfiseg_pieces *pieces, int32_t replays, double *medians_us) {
    ViewsOnDevice on;
    if (const int32_t status = on.copy(*views, pieces->max_parts)) return status;
    if (const int32_t status = on.copy(*pieces)) return status;
    int64_t grown_bytes;
    const auto render = [&](cudaStream_t stream) { return tfiseg_cut_views_cuda(&on.views, stream); };
    if (const int32_t status = replay(render, replays, medians_us, &grown_bytes)) return status;
    const auto place = [&](cudaStream_t stream) { return tfiseg_place_pieces_cuda(&on.views, &on.pieces, stream); };
    if (const int32_t status = replay(place, replays, medians_us + 1, &grown_bytes)) return status;
    return on.download();
}

TFISEG_API int32_t replay_fit_in_graph(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width,
                                       int32_t replays, double *median_us) {
    FrameOnDevice on;
    if (const int32_t status = on.copy(frame, size_t(height) * size_t(width), out, size_t(out_height) * size_t(out_width))) return status;
    int64_t grown_bytes;
    const auto work = [&](cudaStream_t stream) { return tfiseg_fit_frame_cuda(on.frame, height, width, on.out, out_height, out_width, stream); };
    if (const int32_t status = replay(work, replays, median_us, &grown_bytes)) return status;
    return on.download();
}

// Prints a line per phase: its time, and its minimum bytes per second as a share of the copy bandwidth.
TFISEG_API int32_t print_phases(const tfiseg_problem *problem, tfiseg_result *result, int32_t repeats) {
    ProblemOnDevice on;
    if (const int32_t status = on.copy(*problem, *result)) return status;
    cudaStream_t stream;
    TRY(cudaStreamCreate(&stream));
    constexpr size_t kCopyBytes = size_t(1) << 28;
    void *from, *to;
    TRY(cudaMalloc(&from, kCopyBytes));
    TRY(cudaMalloc(&to, kCopyBytes));
    std::vector<float> copies;
    std::vector<std::vector<float>> times;
    std::vector<std::string> names;
    for (int32_t k = 0; k < repeats + 3; ++k) {
        Timed run(stream);
        run.times.reserve(64);
        cudaEvent_t begin, end;
        TRY(cudaEventCreate(&begin));
        TRY(cudaEventCreate(&end));
        TRY(cudaEventRecord(begin, stream));
        TRY(cudaMemcpyAsync(to, from, kCopyBytes, cudaMemcpyDeviceToDevice, stream));
        TRY(cudaEventRecord(end, stream));
        tfiseg::cluster_on(run, on.problem, on.result);
        TRY(cudaStreamSynchronize(stream));
        TRY(run.status());
        float ms;
        TRY(cudaEventElapsedTime(&ms, begin, end));
        if (k >= 3) copies.push_back(ms);
        times.resize(run.times.size());
        names.clear();
        for (size_t i = 0; i < run.times.size(); ++i) {
            TRY(cudaEventElapsedTime(&ms, run.times[i].begin, run.times[i].end));
            if (k >= 3) times[i].push_back(ms);
            names.push_back(run.times[i].phase);
            cudaEventDestroy(run.times[i].begin);
            cudaEventDestroy(run.times[i].end);
        }
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
    }
    const double bandwidth = 2.0 * double(kCopyBytes) / double(median(copies)) / 1e6;  // GB/s of reads and writes
    const tfiseg_problem &p = on.problem;
    const MinimumBytes minimum_bytes = {double(p.batch) * p.height * p.width, double(p.batch) * p.out_height * p.out_width, p};
    std::printf("device-to-device copy: %.0f GB/s\n| phase | us | share of the copy bandwidth |\n|---|---|---|\n", bandwidth);
    double total = 0.0;
    for (size_t i = 0; i < names.size(); ++i) {
        const double us = double(median(times[i])) * 1e3, bytes = minimum_bytes.of_phase(names[i]);
        total += us;
        std::string name = names[i];
        while (!name.empty() && (name[0] == 'N' || (name[0] >= '0' && name[0] <= '9'))) name.erase(0, 1);  // N6tfiseg7ClassesE
        if (name.rfind("tfiseg", 0) == 0) name.erase(0, 6);
        while (!name.empty() && name[0] >= '0' && name[0] <= '9') name.erase(0, 1);
        if (!name.empty() && name.back() == 'E') name.pop_back();
        if (bytes > 0) {
            std::printf("| %s | %.1f | %.0f %% |\n", name.c_str(), us, 100.0 * bytes / (us * 1e3) / bandwidth);
        } else {
            std::printf("| %s | %.1f | |\n", name.c_str(), us);
        }
    }
    std::printf("| sum, events between phases included | %.1f | |\n", total);
    std::fflush(stdout);
    cudaFree(from);
    cudaFree(to);
    return TFISEG_OK;
}

}  // extern "C"
