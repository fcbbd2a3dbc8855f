// tfiseg for C++17: the clustering operator with owned memory, spans and checked sizes. Header only, above the C API in tfiseg.h.
//
//     tfiseg::Settings settings;
//     settings.things = {15};
//     tfiseg::Clusterer clusterer(settings);  // keep it: it reuses its memory from frame to frame
//     tfiseg::Maps maps;
//     maps.logits = logits;  // any contiguous container of float: classes * height * width
//     maps.classes = 21;
//     maps.grid = {160, 160};
//     tfiseg::Result result = clusterer.cluster(maps, {480, 640});
//     for (const tfiseg::Instance &instance : result.instances()) ...
//
// No exception crosses the C API: the library returns a status, and this header turns it into tfiseg::Error in the caller's own code.
// Where exceptions are disabled (-fno-exceptions), an error is printed and the program ends.
#ifndef TFISEG_HPP_
#define TFISEG_HPP_

#include <tfiseg.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace tfiseg {

// A failed call: status is a tfiseg_status, what() states the value seen and the value expected.
class Error : public std::runtime_error {
  public:
    Error(int32_t status, const std::string &what) : std::runtime_error("tfiseg: " + what), status_(status) {}
    int32_t status() const noexcept { return status_; }

  private:
    int32_t status_;
};

namespace detail {

[[noreturn]] inline void fail(int32_t status, const std::string &what) {
#if defined(__cpp_exceptions)
    throw Error(status, what);
#else
    std::fprintf(stderr, "tfiseg: %s (status %d)\n", what.c_str(), int(status));
    std::abort();
#endif
}

inline void check(int32_t status) {
    if (status != TFISEG_OK) fail(status, tfiseg_status_string(status));
}

inline std::string text(int64_t value) { return std::to_string(value); }

}  // namespace detail

// A view of contiguous elements that somebody else owns, as std::span in C++20. It may point to device memory, which is never read here.
template <class T>
class Span {
  public:
    constexpr Span() noexcept = default;
    constexpr Span(T *data, size_t size) noexcept : data_(data), size_(size) {}
    template <class Container, class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<Container &>().data()), T *> &&
                                                        std::is_convertible_v<decltype(std::declval<Container &>().size()), size_t>>>
    constexpr Span(Container &&container) noexcept : data_(container.data()), size_(container.size()) {}
    constexpr T *data() const noexcept { return data_; }
    constexpr size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](size_t k) const noexcept { return data_[k]; }
    constexpr Span subspan(size_t first, size_t count) const noexcept { return {data_ + first, count}; }

  private:
    T *data_ = nullptr;
    size_t size_ = 0;
};

struct Size {
    int32_t height = 0, width = 0;
    constexpr size_t area() const noexcept { return size_t(height) * size_t(width); }
};

constexpr double kAuto = std::numeric_limits<double>::quiet_NaN();  // as a split: the shape rule decides

// How to cluster; the same names and defaults as in Python's tfiseg.cluster.
struct Settings {
    std::vector<int32_t> things;                  // ids of the countable classes, 0..254; empty: all but 0
    double split = kAuto;                         // saddle / peak ratio in 0..1 at which regions merge
    std::vector<std::pair<int32_t, double>> split_of_class;  // overrides split: (class id, ratio)
    int32_t min_area = 25;                        // pixels of the label map
    int32_t max_instances = TFISEG_MAX_INSTANCES; // 1..65535, the largest are kept
    std::vector<int32_t> affinity_offsets_yx;     // dy, dx of each affinity channel, in affinity cells
    double merge_affinity = 0.3;                  // used without a merge_rule
    double centre_radius = 2.5;                   // grid pixels, with a displacement
    int32_t sharpen = 0;                          // grid pixels, 0..32, with a boundary
    std::vector<float> merge_rule, part_rule;     // hidden * 19 + 1 weights, 1..64 hidden units; empty: no rule
    int32_t threads = 0;                          // of the CPU; 0: one per processor
};

// One batch of inputs. T is float; on a GPU it may also be a 16-bit type whose bits are those of a half.
// Give class_map or logits; all others are optional. For cluster() the spans are host memory, for enqueue() device memory.
template <class T>
struct MapsOf {
    int32_t batch = 1;               // N
    Size grid;                       // h, w
    Span<const uint8_t> class_map;   // (N, h, w), 0 = background, 255 = ignore
    Span<const T> logits;            // (N, classes, h, w)
    int32_t classes = 0;
    Span<const T> displacement;      // (N, 2, h, w) dy, dx in grid pixels
    Span<const T> boundary;          // (N, ceil(h / boundary_stride), ceil(w / boundary_stride)) in [0, 1]
    Span<const T> affinity;          // (N, channels, ceil(h / affinity_stride), ceil(w / affinity_stride)) in [0, 1]
    Span<const T> scores;            // (N, h, w) in [0, 1]
    int32_t boundary_stride = 1, affinity_stride = 1;
};
using Maps = MapsOf<float>;

struct Instance {
    int32_t class_id;
    float score;                   // mean class probability in [0, 1]
    float x0, y0, x1, y1;          // pixels; x1 and y1 are exclusive
    int32_t area;                  // pixels
    float centroid_x, centroid_y;  // pixels
    bool touches_edge, merge_stopped;

    // From a row of the table that tfiseg.h describes.
    static Instance from_row(const float *row) noexcept {
        const auto flags = static_cast<int32_t>(row[9]);
        return {int32_t(row[0]), row[1],  row[2], row[3], row[4], row[5], int32_t(row[6]), row[7], row[8], (flags & TFISEG_FLAG_TOUCHES_EDGE) != 0,
                (flags & TFISEG_FLAG_MERGE_STOPPED) != 0};
    }
};

// Views of a Clusterer's memory; the next cluster() overwrites it.
class Result {
  public:
    Result(const tfiseg_result &result, int32_t batch, Size size, int32_t max_instances) noexcept
        : result_(result), batch_(batch), size_(size), max_instances_(max_instances) {}
    int32_t batch() const noexcept { return batch_; }
    Size size() const noexcept { return size_; }
    int32_t count(int32_t picture = 0) const noexcept { return result_.count[picture]; }
    // (H, W) of one picture: 0 = none, k + 1 = instances()[k].
    Span<const int32_t> label_map(int32_t picture = 0) const noexcept { return {result_.label_map + size_t(picture) * size_.area(), size_.area()}; }
    // (H, W) of one picture: class of each pixel.
    Span<const uint8_t> semantic_map(int32_t picture = 0) const noexcept { return {result_.semantic_map + size_t(picture) * size_.area(), size_.area()}; }
    std::vector<Instance> instances(int32_t picture = 0) const {
        std::vector<Instance> found;
        found.reserve(size_t(count(picture)));
        const float *row = result_.table + size_t(picture) * size_t(max_instances_) * TFISEG_TABLE_COLUMNS;
        for (int32_t k = 0; k < count(picture); ++k, row += TFISEG_TABLE_COLUMNS) found.push_back(Instance::from_row(row));
        return found;
    }
    double cluster_ms() const noexcept { return result_.cluster_ms; }
    double upsample_ms() const noexcept { return result_.upsample_ms; }

  private:
    tfiseg_result result_;
    int32_t batch_;
    Size size_;
    int32_t max_instances_;
};

// The operator with its settings. Use one Clusterer per thread.
class Clusterer {
  public:
    explicit Clusterer(Settings settings = {}) : settings_(std::move(settings)) {
        for (size_t c = 1; c < 255; ++c) things_[c] = settings_.things.empty();
        for (const int32_t c : settings_.things) {
            if (c < 0 || c > 254) refuse("things: class ids lie in 0..254, got " + detail::text(c));
            things_[size_t(c)] = c > 0;
        }
        split_.fill(checked_ratio(settings_.split));
        for (const auto &[c, ratio] : settings_.split_of_class) {
            if (c < 0 || c > 255) refuse("split_of_class: class ids lie in 0..255, got " + detail::text(c));
            split_[size_t(c)] = checked_ratio(ratio);
        }
        check_rule("merge_rule", settings_.merge_rule);
        check_rule("part_rule", settings_.part_rule);
        if (settings_.affinity_offsets_yx.size() % 2) refuse("affinity_offsets_yx: pairs dy, dx are expected, got an odd number of values");
        if (settings_.threads < 0) refuse("threads must be 0 or more, got " + detail::text(settings_.threads));
        if (settings_.threads == 0) settings_.threads = int32_t(std::max(1u, std::thread::hardware_concurrency()));
    }

    // The C structures point into this object.
    Clusterer(const Clusterer &) = delete;
    Clusterer &operator=(const Clusterer &) = delete;

    const Settings &settings() const noexcept { return settings_; }

    // Cluster maps in host memory, on the CPU.
    // output: size of the label map, with logits; default: the grid's.
    Result cluster(const Maps &maps, Size output = {}) {
        const tfiseg_problem problem = problem_of(maps, output);
        const Size size{problem.out_height, problem.out_width};
        tfiseg_result result = {};
        result.workspace_bytes = workspace_bytes_of(problem, TFISEG_ON_CPU);
        const size_t pictures = size_t(problem.batch);
        grow(label_map_, pictures * size.area());
        grow(semantic_map_, pictures * size.area());
        grow(count_, pictures);
        grow(table_, pictures * size_t(problem.max_instances) * TFISEG_TABLE_COLUMNS);
        grow(workspace_, size_t(result.workspace_bytes));
        result.struct_size = sizeof result;
        result.label_map = label_map_.data();
        result.semantic_map = semantic_map_.data();
        result.count = count_.data();
        result.table = table_.data();
        result.workspace = workspace_.data();
        detail::check(tfiseg_cluster_cpu(&problem, &result));
        return Result(result, problem.batch, size, problem.max_instances);
    }

    // Bytes of device memory that enqueue() needs as result.workspace for maps of this size.
    template <class T>
    int64_t workspace_bytes(const MapsOf<T> &maps, Size output = {}) const {
        return workspace_bytes_of(problem_of(maps, output), TFISEG_ON_CUDA);
    }

    // Enqueue the operator on a CUDA stream (cudaStream_t) and return. The pointers of maps and result are device memory, see tfiseg.h;
    // struct_size is filled in. Nothing is allocated or synchronized, so it may be captured in a CUDA graph.
    template <class T>
    void enqueue(const MapsOf<T> &maps, tfiseg_result result, void *stream, Size output = {}) const {
        const tfiseg_problem problem = problem_of(maps, output);
        result.struct_size = sizeof result;
        detail::check(tfiseg_cluster_cuda(&problem, &result, stream));
    }

  private:
    [[noreturn]] static void refuse(const std::string &what) { detail::fail(TFISEG_BAD_PARAMETER, what); }

    static double checked_ratio(double ratio) {
        if (ratio < 0.0 || ratio > 1.0) refuse("split: ratios lie in 0..1, or kAuto, got " + std::to_string(ratio));
        return ratio;
    }

    static void check_rule(const char *name, const std::vector<float> &rule) {
        constexpr size_t kPerUnit = TFISEG_EVIDENCE_FEATURES + 2;
        if (rule.empty() || (rule.size() % kPerUnit == 1 && rule.size() > 1 && rule.size() / kPerUnit <= TFISEG_MAX_EVIDENCE_HIDDEN)) return;
        refuse(std::string(name) + ": hidden * 19 + 1 weights for 1 to 64 hidden units are expected, got " + std::to_string(rule.size()));
    }

    static int64_t workspace_bytes_of(const tfiseg_problem &problem, int32_t device) {
        const int64_t bytes = tfiseg_workspace_size(&problem, device);
        if (bytes > 0) return bytes;
        detail::fail(TFISEG_BAD_SHAPE, "a grid of " + detail::text(problem.height) + " x " + detail::text(problem.width) + " to " +
                                           detail::text(problem.out_height) + " x " + detail::text(problem.out_width) +
                                           " cannot be clustered with these maps and settings; tfiseg.h states the limits");
    }

    template <class T>
    static void grow(std::vector<T> &memory, size_t size) {
        if (memory.size() < size) memory.resize(size);
    }

    // A span holds as many values as its shape says; nullptr for none.
    template <class T>
    static T *sized(const char *name, Span<T> values, int64_t expected) {
        if (values.empty()) return nullptr;
        if (int64_t(values.size()) != expected)
            detail::fail(TFISEG_BAD_SHAPE, std::string(name) + " has " + std::to_string(values.size()) + " values, expected " + std::to_string(expected));
        return values.data();
    }

    template <class T>
    tfiseg_problem problem_of(const MapsOf<T> &maps, Size output) const {
        static_assert(std::is_same_v<T, float> || sizeof(T) == 2, "values are float, or 16 bits that hold a half");
        const auto within = [](int32_t value, int32_t most) { return value >= 1 && value <= most; };
        if (maps.batch < 1 || !within(maps.grid.height, TFISEG_MAX_SIDE) || !within(maps.grid.width, TFISEG_MAX_SIDE) || maps.classes < 0 ||
            maps.classes > 255 || !within(maps.boundary_stride, TFISEG_MAX_SIDE) || !within(maps.affinity_stride, TFISEG_MAX_SIDE))
            detail::fail(TFISEG_BAD_SHAPE, "batch must be at least 1, grid sides and strides 1..4096, classes up to 255; got batch " +
                                               detail::text(maps.batch) + ", grid " + detail::text(maps.grid.height) + " x " +
                                               detail::text(maps.grid.width) + ", classes " + detail::text(maps.classes) + ", strides " +
                                               detail::text(maps.boundary_stride) + " and " + detail::text(maps.affinity_stride));
        const auto cells = [&](int32_t stride) {
            return int64_t(maps.batch) * ((maps.grid.height - 1) / stride + 1) * ((maps.grid.width - 1) / stride + 1);
        };
        const int64_t pixels = cells(1);
        const auto channels = int32_t(settings_.affinity_offsets_yx.size() / 2);
        tfiseg_problem p = {};
        p.struct_size = sizeof p;
        p.batch = maps.batch;
        p.height = maps.grid.height;
        p.width = maps.grid.width;
        p.out_height = output.height ? output.height : p.height;
        p.out_width = output.width ? output.width : p.width;
        p.class_map = sized("class_map", maps.class_map, pixels);
        p.logits = sized("logits", maps.logits, maps.classes * pixels);
        p.classes = maps.classes;
        p.value_type = sizeof(T) == 2 ? TFISEG_FLOAT16 : TFISEG_FLOAT32;
        p.displacement = sized("displacement", maps.displacement, 2 * pixels);
        p.boundary = sized("boundary", maps.boundary, cells(maps.boundary_stride));
        p.affinity = sized("affinity", maps.affinity, channels * cells(maps.affinity_stride));
        p.scores = sized("scores", maps.scores, pixels);
        p.boundary_stride = maps.boundary_stride;
        p.affinity_stride = maps.affinity_stride;
        p.affinity_channels = channels;
        p.affinity_offsets_yx = settings_.affinity_offsets_yx.data();
        p.things = things_.data();
        p.split = split_.data();
        p.merge_affinity = settings_.merge_affinity;
        p.centre_radius = settings_.centre_radius;
        p.min_area = settings_.min_area;
        p.max_instances = settings_.max_instances;
        p.threads = settings_.threads;
        // what weighs maps that are not given has no effect
        if (p.affinity) p.evidence_rule = rule_of(settings_.merge_rule, p.evidence_hidden);
        if (p.affinity && p.boundary) p.part_rule = rule_of(settings_.part_rule, p.part_hidden);
        p.sharpen = p.boundary ? settings_.sharpen : 0;
        return p;
    }

    static const float *rule_of(const std::vector<float> &rule, int32_t &hidden) noexcept {
        hidden = int32_t(rule.size() / (TFISEG_EVIDENCE_FEATURES + 2));
        return rule.empty() ? nullptr : rule.data();
    }

    Settings settings_;
    std::array<uint8_t, 256> things_ = {};
    std::array<double, 256> split_;
    std::vector<int32_t> label_map_, count_;
    std::vector<uint8_t> semantic_map_;
    std::vector<float> table_;
    std::vector<unsigned char> workspace_;
};

// Resize a frame to a network's input: uint8 (height, width, 3) to float (3, height, width), values 0..255, channels in their order.
inline void fit_frame(Span<const uint8_t> frame, Size size, Span<float> out, Size out_size) {
    if (frame.size() != 3 * size.area() || out.size() != 3 * out_size.area())
        detail::fail(TFISEG_BAD_SHAPE, "fit_frame: frame and output must hold 3 values per pixel, got " + std::to_string(frame.size()) + " and " +
                                           std::to_string(out.size()));
    detail::check(tfiseg_fit_frame(frame.data(), size.height, size.width, out.data(), out_size.height, out_size.width));
}

// Enqueue the same on a CUDA stream (cudaStream_t) and return: frame and out are device memory of these sizes. Equal to fit_frame bit for
// bit. Nothing is allocated or synchronized, so it may be captured in a CUDA graph.
inline void enqueue_fit_frame(const uint8_t *frame, Size size, float *out, Size out_size, void *stream) {
    detail::check(tfiseg_fit_frame_cuda(frame, size.height, size.width, out, out_size.height, out_size.width, stream));
}

}  // namespace tfiseg

#endif
