// The CUDA operator over host memory, for tests and benchmarks on a GPU: once, many times in a CUDA graph, or phase by phase with times.
//     nvcc -shared -Xcompiler=-fPIC -fmad=false -arch=native -DTFISEG_WITH_CUDA cuda_runner.cu ../../plugins/csrc/{api,cluster_cpu}.cpp
#ifdef __NVCC__
#pragma nv_diag_suppress 20011, 20014  // sections that Timed runs phase by phase, on the host
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

// Copies on the device, and what is to be copied back.
class Copies {
  public:
    ~Copies() {
        for (void *p : owned_) cudaFree(p);
    }

    int32_t give() const {
        for (const Back &b : backs_) TRY(cudaMemcpy(b.host, b.device, b.bytes, cudaMemcpyDeviceToHost));
        return TFISEG_OK;
    }

  protected:
    template <class T>
    int32_t to(const T *&map, size_t bytes) {
        if (!map) return TFISEG_OK;
        void *copy;
        TRY(cudaMalloc(&copy, bytes));
        owned_.push_back(copy);
        TRY(cudaMemcpy(copy, map, bytes, cudaMemcpyHostToDevice));
        map = static_cast<const T *>(copy);
        return TFISEG_OK;
    }

    template <class T>
    int32_t back(T *&map, T *host, size_t n) {
        if (!host) return TFISEG_OK;
        TRY(cudaMalloc(&map, n * sizeof(T)));
        owned_.push_back(map);
        TRY(cudaMemcpy(map, host, n * sizeof(T), cudaMemcpyHostToDevice));
        backs_.push_back({host, map, n * sizeof(T)});
        return TFISEG_OK;
    }

    int32_t room(void *&workspace, int64_t bytes) {
        TRY(cudaMalloc(&workspace, size_t(bytes)));
        owned_.push_back(workspace);
        return TFISEG_OK;
    }

  private:
    struct Back {
        void *host;
        const void *device;
        size_t bytes;
    };
    std::vector<void *> owned_;
    std::vector<Back> backs_;
};

// A problem's maps on the device, and room for its result.
struct OnDevice : Copies {
    tfiseg_problem problem;
    tfiseg_result result = {};

    int32_t take(const tfiseg_problem &p, const tfiseg_result &r) {
        problem = p;
        const size_t n = size_t(p.batch) * size_t(p.height) * size_t(p.width), value = p.value_type == TFISEG_FLOAT16 ? 2 : 4;
        const size_t stride = size_t(std::max(1, p.affinity_stride)), boundary_stride = size_t(std::max(1, p.boundary_stride));
        const auto cells_of = [&](size_t s) { return size_t(p.batch) * ((size_t(p.height) + s - 1) / s) * ((size_t(p.width) + s - 1) / s); };
        if (const int32_t s = to(problem.class_map, n)) return s;
        if (const int32_t s = to(problem.logits, n * size_t(p.classes) * value)) return s;
        if (const int32_t s = to(problem.displacement, 2 * n * value)) return s;
        if (const int32_t s = to(problem.boundary, cells_of(boundary_stride) * value)) return s;
        if (const int32_t s = to(problem.scores, n * value)) return s;
        if (const int32_t s = to(problem.affinity, cells_of(stride) * size_t(p.affinity_channels) * value)) return s;
        const size_t pixels = size_t(p.batch) * size_t(p.out_height) * size_t(p.out_width);
        const size_t rows = size_t(p.batch) * size_t(p.max_instances) * TFISEG_TABLE_COLUMNS;
        result.struct_size = sizeof result;
        if (const int32_t s = back(result.label_map, r.label_map, pixels)) return s;
        if (const int32_t s = back(result.semantic_map, r.semantic_map, pixels)) return s;
        if (const int32_t s = back(result.semantic_map_32, r.semantic_map_32, pixels)) return s;
        if (const int32_t s = back(result.count, r.count, size_t(p.batch))) return s;
        if (const int32_t s = back(result.regions, r.regions, size_t(p.batch))) return s;
        if (const int32_t s = back(result.table, r.table, rows)) return s;
        result.workspace_bytes = tfiseg_workspace_size(&problem, TFISEG_ON_CUDA);
        return room(result.workspace, result.workspace_bytes);
    }
};

// Views on the device: the frame, its components, and room for what is shown; and pieces: what was found, and room for what it makes.
struct ViewsOnDevice : Copies {
    tfiseg_views views;
    tfiseg_pieces pieces = {};

    int32_t take(const tfiseg_views &v, int32_t max_parts) {
        views = v;
        const size_t pixels = size_t(v.height) * size_t(v.width), cells = cells_of(v);
        if (const int32_t s = to(views.frame, pixels * 3)) return s;
        if (const int32_t s = to(views.label_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = to(views.count, sizeof(int32_t))) return s;
        if (const int32_t s = to(views.table, size_t(v.max_components) * TFISEG_TABLE_COLUMNS * sizeof(float))) return s;
        if (const int32_t s = back(views.views, v.views, size_t(v.view_count) * TFISEG_VIEW_COLUMNS)) return s;
        if (const int32_t s = back(views.images, v.images, cells * 3)) return s;
        if (const int32_t s = back(views.masks, v.masks, cells)) return s;
        if (const int32_t s = back(views.own, v.own, cells)) return s;
        views.workspace_bytes = tfiseg_views_workspace_size(&views, max_parts);
        return room(views.workspace, views.workspace_bytes);
    }

    int32_t take(const tfiseg_pieces &p) {
        pieces = p;
        const size_t k = size_t(views.view_count), rows = size_t(views.max_components) + k * size_t(p.max_parts - 1);
        if (const int32_t s = to(pieces.labels, cells_of(views) * sizeof(int32_t))) return s;
        if (const int32_t s = to(pieces.counts, k * sizeof(int32_t))) return s;
        if (const int32_t s = to(pieces.regions, k * sizeof(int32_t))) return s;
        if (const int32_t s = to(pieces.tables, k * size_t(p.max_parts) * TFISEG_TABLE_COLUMNS * sizeof(float))) return s;
        if (const int32_t s = back(pieces.label_map, p.label_map, size_t(views.height) * size_t(views.width))) return s;
        if (const int32_t s = back(pieces.count, p.count, 1)) return s;
        if (const int32_t s = back(pieces.table, p.table, rows * TFISEG_TABLE_COLUMNS)) return s;
        return back(pieces.component_of, p.component_of, rows);
    }

  private:
    static size_t cells_of(const tfiseg_views &v) { return size_t(v.view_count) * size_t(v.view_side) * size_t(v.view_side); }
};

// Instances, components and foreground maps on the device, and room for refined masks.
struct RefinementOnDevice : Copies {
    tfiseg_mask_refinement refinement;

    int32_t take(const tfiseg_mask_refinement &r) {
        refinement = r;
        const size_t pixels = size_t(r.height) * size_t(r.width), views = size_t(r.view_count), row = TFISEG_TABLE_COLUMNS * sizeof(float);
        size_t values = 0;
        for (size_t k = 0; k < views; ++k) values += size_t(r.map_sides[k]) * size_t(r.map_sides[k]);
        if (const int32_t s = to(refinement.label_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = to(refinement.count, sizeof(int32_t))) return s;
        if (const int32_t s = to(refinement.table, size_t(r.max_instances) * row)) return s;
        if (const int32_t s = to(refinement.component_map, pixels * sizeof(int32_t))) return s;
        if (const int32_t s = to(refinement.component_count, sizeof(int32_t))) return s;
        if (const int32_t s = to(refinement.component_table, size_t(r.max_components) * row)) return s;
        if (const int32_t s = to(refinement.views, views * TFISEG_VIEW_COLUMNS * sizeof(int32_t))) return s;
        if (const int32_t s = to(refinement.map_sides, views * sizeof(int32_t))) return s;
        if (const int32_t s = to(refinement.foreground, values * (r.value_type == TFISEG_FLOAT16 ? 2 : 4))) return s;
        if (const int32_t s = back(refinement.refined_map, r.refined_map, pixels)) return s;
        if (const int32_t s = back(refinement.refined_count, r.refined_count, 1)) return s;
        if (const int32_t s = back(refinement.refined_table, r.refined_table, size_t(r.max_instances) * TFISEG_TABLE_COLUMNS)) return s;
        if (const int32_t s = back(refinement.instance_of, r.instance_of, size_t(r.max_instances))) return s;
        refinement.workspace_bytes = tfiseg_refine_masks_workspace_size(&refinement);
        return room(refinement.workspace, refinement.workspace_bytes);
    }
};

// Bytes that a phase must move at least: what it reads and writes of the grid (n pixels) and the result (m pixels).
struct Moved {
    double n, m;
    const tfiseg_problem &p;

    double of(const std::string &phase) const {
        const double value = p.value_type == TFISEG_FLOAT16 ? 2 : 4, given = p.logits ? p.classes * value + 1 + 2 : 1;
        const struct {
            const char *name;
            double bytes;
        } known[] = {{"FindClasses", n * (given + 1 + 4)}, {"FindClassChanges", n * 1.25},       {"ColumnSearch", n * 2.125},  {"RowSearch", n * 7},
                     {"AscentLinks", n * 9},           {"GivenLinks", n * (9 + 2 * value)}, {"FollowLinks", n * 9}, {"FindContacts", n * 5},
                     {"SumRegions", n * (p.logits ? 11 : 9)}, {"Upsample", m * 5 + n * 5}, {"WriteLabels", p.logits ? m * 8 : m * 10}};
        for (const auto &k : known)
            if (phase.find(k.name) != std::string::npos) return k.bytes;
        return 0.0;
    }
};

enum class Kind { kCounted, kRounds, kTiles };

// One phase as a section of its own, so that it can be timed.
template <class Phases, Kind kind>
struct OnePhase {
    static constexpr int32_t kGroups = 1;
    Phases phases;
    const int32_t *count;
    int64_t most;

    template <class Executor>
    __device__ void operator()(Executor &run) const {
        if constexpr (kind == Kind::kRounds) {
            run.rounds(phases);
        } else if constexpr (kind == Kind::kTiles) {
            run.tiles(most, phases);
        } else {
            run.each_counted(count, most, phases);
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

// The CUDA executor with an event before and after each phase. Sections run phase by phase, each in a launch of its own.
class Timed {
  public:
    explicit Timed(cudaStream_t stream) : inner_(stream), stream_(stream) {}

    template <class Phase>
    void each(int64_t n, const Phase &phase) {
        time(typeid(Phase).name(), [&] { inner_.each(n, phase); });
    }
    template <class Phase>
    void each_counted(const int32_t *count, int64_t most, const Phase &phase) {
        time(typeid(Phase).name(), [&] { inner_.section(most, OnePhase<Phase, Kind::kCounted>{phase, count, most}); });
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
    void solo(tfiseg::DeviceCounts, int32_t, const Body &body) {  // the host does not know the counts: small grids have few items
        is_solo_ = items_ <= tfiseg::kSmallPixels;
        body();
        is_solo_ = false;
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

// What `enqueue` puts on a stream, captured once and replayed many times.
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
    constexpr int32_t kTogether = 10;  // launched back to back, so that the GPU, not the host, is timed
    std::vector<float> times;
    for (int32_t k = 0; k < replays; k += kTogether) {
        TRY(cudaEventRecord(begin, stream));
        for (int32_t j = 0; j < kTogether; ++j) TRY(cudaGraphLaunch(ready, stream));
        TRY(cudaEventRecord(end, stream));
        TRY(cudaEventSynchronize(end));
        float ms;
        TRY(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms * 1e3f / kTogether);
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
    OnDevice on;
    if (const int32_t status = on.take(*problem, *result)) return status;
    // at times left as it is, so that compute-sanitizer's initcheck sees what is read before it is written
    if (seed % 2) TRY(cudaMemset(on.result.workspace, 0xA5, size_t(on.result.workspace_bytes)));
    if (const int32_t status = tfiseg_cluster_cuda(&on.problem, &on.result, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.give();
}

TFISEG_API int32_t cut_views_by_phases(const tfiseg_views *views, uint32_t, int32_t) {
    if (const int32_t status = tfiseg::check(views)) return status;
    ViewsOnDevice on;
    if (const int32_t status = on.take(*views, 1)) return status;
    if (const int32_t status = tfiseg_cut_views_cuda(&on.views, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.give();
}

TFISEG_API int32_t place_pieces_by_phases(const tfiseg_views *views, const tfiseg_pieces *pieces, uint32_t, int32_t) {
    if (const int32_t status = tfiseg::check(views, pieces)) return status;
    ViewsOnDevice on;
    if (const int32_t status = on.take(*views, pieces->max_parts)) return status;
    if (const int32_t status = on.take(*pieces)) return status;
    if (const int32_t status = tfiseg_place_pieces_cuda(&on.views, &on.pieces, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.give();
}

TFISEG_API int32_t refine_masks_by_phases(const tfiseg_mask_refinement *refinement, uint32_t seed, int32_t) {
    if (const int32_t status = tfiseg::check(refinement)) return status;
    RefinementOnDevice on;
    if (const int32_t status = on.take(*refinement)) return status;
    if (seed % 2) TRY(cudaMemset(on.refinement.workspace, 0xA5, size_t(on.refinement.workspace_bytes)));
    if (const int32_t status = tfiseg_refine_masks_cuda(&on.refinement, nullptr)) return status;
    TRY(cudaDeviceSynchronize());
    return on.give();
}

// Captured once, replayed many times; median_us: of one replay.
TFISEG_API int32_t replay_refinement_in_graph(const tfiseg_mask_refinement *refinement, int32_t replays, double *median_us, int64_t *grown_bytes) {
    RefinementOnDevice on;
    if (const int32_t status = on.take(*refinement)) return status;
    const auto work = [&](cudaStream_t stream) { return tfiseg_refine_masks_cuda(&on.refinement, stream); };
    if (const int32_t status = replay(work, replays, median_us, grown_bytes)) return status;
    return on.give();
}

// Each captured once, replayed many times. medians_us: of one replay; grown_bytes: of memory in use from the first replay to the last.
TFISEG_API int32_t replay_in_graph(const tfiseg_problem *problem, tfiseg_result *result, int32_t replays, double *median_us, int64_t *grown_bytes) {
    OnDevice on;
    if (const int32_t status = on.take(*problem, *result)) return status;
    const auto work = [&](cudaStream_t stream) { return tfiseg_cluster_cuda(&on.problem, &on.result, stream); };
    if (const int32_t status = replay(work, replays, median_us, grown_bytes)) return status;
    return on.give();
}

// medians_us: of cutting views, and of placing pieces.
TFISEG_API int32_t replay_views_in_graph(const tfiseg_views *views, const tfiseg_pieces *pieces, int32_t replays, double *medians_us) {
    ViewsOnDevice on;
    if (const int32_t status = on.take(*views, pieces->max_parts)) return status;
    if (const int32_t status = on.take(*pieces)) return status;
    int64_t grown_bytes;
    const auto cut = [&](cudaStream_t stream) { return tfiseg_cut_views_cuda(&on.views, stream); };
    if (const int32_t status = replay(cut, replays, medians_us, &grown_bytes)) return status;
    const auto place = [&](cudaStream_t stream) { return tfiseg_place_pieces_cuda(&on.views, &on.pieces, stream); };
    if (const int32_t status = replay(place, replays, medians_us + 1, &grown_bytes)) return status;
    return on.give();
}

// Prints a line per phase: microseconds, and the share of the copy bandwidth that its least traffic means.
TFISEG_API int32_t print_phases(const tfiseg_problem *problem, tfiseg_result *result, int32_t repeats) {
    OnDevice on;
    if (const int32_t status = on.take(*problem, *result)) return status;
    cudaStream_t stream;
    TRY(cudaStreamCreate(&stream));
    constexpr size_t kCopied = size_t(1) << 28;
    void *from, *to;
    TRY(cudaMalloc(&from, kCopied));
    TRY(cudaMalloc(&to, kCopied));
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
        TRY(cudaMemcpyAsync(to, from, kCopied, cudaMemcpyDeviceToDevice, stream));
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
    const double bandwidth = 2.0 * double(kCopied) / double(median(copies)) / 1e6;  // GB/s, read and written
    const tfiseg_problem &p = on.problem;
    const Moved moved = {double(p.batch) * p.height * p.width, double(p.batch) * p.out_height * p.out_width, p};
    std::printf("device-to-device copy: %.0f GB/s\n| phase | us | share of the copy bandwidth |\n|---|---|---|\n", bandwidth);
    double total = 0.0;
    for (size_t i = 0; i < names.size(); ++i) {
        const double us = double(median(times[i])) * 1e3, bytes = moved.of(names[i]);
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
