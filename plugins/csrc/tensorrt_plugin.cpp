// TensorRT glue for DisplacementFieldClustering: names, fields, shapes, formats. The arithmetic is behind tfiseg.h.
//
// IPluginV3 as TensorRT 10.3 to 11 have it. The library is loaded through the plugin registry, so the creator is handed out by
// getCreators() and registered nowhere else. Inputs, outputs and parameters: plugins/README.md.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "tfiseg.h"

namespace tfiseg {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr char kName[] = "DisplacementFieldClustering", kVersion[] = "1", kNamespace[] = "tfiseg";
enum Output { kLabelMap, kSemanticMap, kCount, kTable, kOutputs };

nvinfer1::ILoggerFinder *logger_finder = nullptr;

void log_error(const std::string &what) {
    const std::string line = std::string("tfiseg ") + kName + ": " + what;
    nvinfer1::ILogger *logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
    } else {
        std::cerr << line << '\n';
    }
}

// One parameter of the node: where it lies in Fields, and what it may be.
struct Fields {
    std::vector<int32_t> things, affinity_offsets_yx, output_size;
    std::vector<float> split = {-1.0f}, merge_rule, part_rule;
    int32_t has_displacement = 0, has_boundary = 0, has_affinity = 0;
    int32_t min_area = 25, max_instances = 256, affinity_stride = 1, output_scale = 1, sharpen = 0;
    float merge_affinity = 0.3f, centre_radius = 2.5f;

    // Calls visit(name, value) for every field; a value is an int32_t, a float or a vector of them.
    template <class Self, class Visit>
    static void each(Self &self, const Visit &visit) {
        visit("things", self.things);
        visit("split", self.split);
        visit("min_area", self.min_area);
        visit("max_instances", self.max_instances);
        visit("merge_affinity", self.merge_affinity);
        visit("merge_rule", self.merge_rule);
        visit("part_rule", self.part_rule);
        visit("centre_radius", self.centre_radius);
        visit("sharpen", self.sharpen);
        visit("affinity_offsets_yx", self.affinity_offsets_yx);
        visit("affinity_stride", self.affinity_stride);
        visit("has_displacement", self.has_displacement);
        visit("has_boundary", self.has_boundary);
        visit("has_affinity", self.has_affinity);
        visit("output_size", self.output_size);
        visit("output_scale", self.output_scale);
    }

    // Hidden units of a rule.
    static int32_t hidden(const std::vector<float> &rule) { return int32_t(rule.size()) / (TFISEG_EVIDENCE_FEATURES + 2); }

    int32_t inputs() const { return 1 + has_displacement + has_boundary + has_affinity; }

    // What is wrong with the values, or nothing.
    std::string problem() const {
        const auto is_flag = [](int32_t v) { return v == 0 || v == 1; };
        if (std::any_of(things.begin(), things.end(), [](int32_t c) { return c < 0 || c > 254; })) return "things: class ids are 0..254";
        if (split.size() != 1 && split.size() != 256) return "split: 1 or 256 ratios are wanted, got " + std::to_string(split.size());
        if (std::any_of(split.begin(), split.end(), [](float r) { return !(r <= 1.0f); })) return "split: ratios are up to 1, negative = from shape";
        if (min_area < 0) return "min_area must not be negative, got " + std::to_string(min_area);
        if (max_instances < 1 || max_instances > TFISEG_MAX_INSTANCES) return "max_instances must lie in 1..65535, got " + std::to_string(max_instances);
        if (!(merge_affinity >= 0.0f && merge_affinity <= 1.0f)) return "merge_affinity must lie in 0..1";
        if (!(centre_radius >= 0.0f && centre_radius < 1e6f)) return "centre_radius must not be negative";
        if (!is_flag(has_displacement) || !is_flag(has_boundary) || !is_flag(has_affinity)) return "has_displacement, has_boundary and has_affinity are 0 or 1";
        if (sharpen < 0 || sharpen > TFISEG_MAX_SHARPEN) return "sharpen must lie in 0..32, got " + std::to_string(sharpen);
        if (sharpen && !has_boundary) return "sharpen moves cuts onto a boundary: it needs has_boundary";
        if (affinity_stride < 1) return "affinity_stride must be at least 1, got " + std::to_string(affinity_stride);
        if (affinity_offsets_yx.size() % 2) return "affinity_offsets_yx: pairs (dy, dx) are wanted";
        if (has_affinity && affinity_offsets_yx.empty()) return "has_affinity needs affinity_offsets_yx";
        if (affinity_offsets_yx.size() > 2 * TFISEG_MAX_CUDA_AFFINITY_CHANNELS) return "affinity_offsets_yx: at most 32 pairs";
        if (std::any_of(affinity_offsets_yx.begin(), affinity_offsets_yx.end(), [](int32_t cells) { return cells < -TFISEG_MAX_SIDE || cells > TFISEG_MAX_SIDE; }))
            return "affinity_offsets_yx: offsets must lie in -4096..4096 cells";
        if (!merge_rule.empty() && !has_affinity) return "merge_rule weighs affinities: it needs has_affinity";
        if (!part_rule.empty() && !(has_affinity && has_boundary)) return "part_rule weighs affinities and boundaries: it needs has_affinity and has_boundary";
        for (const auto &[name, rule] : {std::make_pair("merge_rule", &merge_rule), std::make_pair("part_rule", &part_rule)}) {
            if (!rule->empty() && (rule->size() % (TFISEG_EVIDENCE_FEATURES + 2) != 1 || hidden(*rule) < 1 || hidden(*rule) > TFISEG_MAX_EVIDENCE_HIDDEN))
                return std::string(name) + ": hidden * 19 + 1 weights for 1 to 64 hidden units are wanted, got " + std::to_string(rule->size());
            if (std::any_of(rule->begin(), rule->end(), [](float w) { return !std::isfinite(w); })) return std::string(name) + ": weights must be finite";
        }
        if (!output_size.empty() && output_size.size() != 2) return "output_size: (height, width) is wanted";
        if (std::any_of(output_size.begin(), output_size.end(), [](int32_t s) { return s < 1 || s > TFISEG_MAX_OUT_SIDE; }))
            return "output_size: sides must lie in 1..32767";
        if (output_scale < 1 || output_scale > TFISEG_MAX_OUT_SIDE) return "output_scale must lie in 1..32767, got " + std::to_string(output_scale);
        return "";
    }
};

template <class T>
struct FieldOf {  // of a scalar
    static constexpr bool is_list = false;
    using Element = T;
    static const T *data(const T &v) { return &v; }
    static int32_t length(const T &) { return 1; }
    static void set(T &v, const T *from, int32_t) { v = *from; }
};
template <class T>
struct FieldOf<std::vector<T>> {
    static constexpr bool is_list = true;
    using Element = T;
    static const T *data(const std::vector<T> &v) { return v.data(); }
    static int32_t length(const std::vector<T> &v) { return int32_t(v.size()); }
    static void set(std::vector<T> &v, const T *from, int32_t n) { v.assign(from, from + n); }
};

template <class T>
constexpr PluginFieldType type_of() {
    return std::is_same<T, float>::value ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
}

// Take a field's value; says what is wrong with it.
std::string take(Fields &fields, const PluginField &given) {
    const std::string name = given.name ? given.name : "";
    if (name == "plugin_version" || name == "plugin_namespace") return "";  // a parser's own
    std::string wrong = "there is no field \"" + name + "\"";
    Fields::each(fields, [&](const char *known, auto &value) {
        if (name != known) return;
        using Field = FieldOf<std::decay_t<decltype(value)>>;
        using Element = typename Field::Element;
        if (given.type != type_of<Element>()) {
            wrong = name + ": " + (std::is_same<Element, float>::value ? "float32" : "int32") + " is wanted, got field type " +
                    std::to_string(int32_t(given.type));
        } else if (given.length < 0 || (given.length > 0 && !given.data) || (!Field::is_list && given.length != 1)) {
            wrong = name + ": " + (Field::is_list ? "a list" : "one number") + " is wanted, got length " + std::to_string(given.length);
        } else {
            Field::set(value, static_cast<const Element *>(given.data), given.length);
            wrong.clear();
        }
    });
    return wrong;
}

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit Plugin(const Fields &fields) : fields_(fields) {
        for (int32_t c = 1; c < 255; ++c) things_[c] = fields_.things.empty();
        for (const int32_t c : fields_.things) things_[c] = c > 0;
        for (size_t c = 0; c < 256; ++c) {
            const float ratio = fields_.split[fields_.split.size() == 1 ? 0 : c];
            split_[c] = ratio < 0.0f ? std::numeric_limits<double>::quiet_NaN() : double(ratio);
        }
        Fields::each(fields_, [this](const char *name, const auto &value) {
            using Field = FieldOf<std::decay_t<decltype(value)>>;
            saved_.emplace_back(name, Field::data(value), type_of<typename Field::Element>(), Field::length(value));
        });
        collection_ = {int32_t(saved_.size()), saved_.data()};
    }

    Plugin(const Plugin &) = delete;  // saved_ points into this object
    Plugin &operator=(const Plugin &) = delete;

    nvinfer1::IPluginCapability *getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3 *clone() noexcept override {
        try {
            return new Plugin(fields_);
        } catch (const std::bad_alloc &) {
            log_error("out of memory");
            return nullptr;
        }
    }

    const char *getPluginName() const noexcept override { return kName; }
    const char *getPluginVersion() const noexcept override { return kVersion; }
    const char *getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return kOutputs; }

    int32_t getOutputDataTypes(DataType *types, int32_t outputs, const DataType *, int32_t) const noexcept override {
        if (outputs != kOutputs) return -1;
        for (int32_t k = 0; k < kOutputs; ++k) types[k] = k == kTable ? DataType::kFLOAT : DataType::kINT32;
        return 0;
    }

    int32_t getOutputShapes(const nvinfer1::DimsExprs *inputs, int32_t input_count, const nvinfer1::DimsExprs *, int32_t,
                            nvinfer1::DimsExprs *outputs, int32_t output_count, nvinfer1::IExprBuilder &builder) noexcept override {
        if (output_count != kOutputs || !fits(inputs, input_count, [](const nvinfer1::DimsExprs &d) { return d.nbDims; })) return -1;
        const nvinfer1::IDimensionExpr *batch = inputs[0].d[0], *height, *width;
        if (!fields_.output_size.empty()) {
            height = builder.constant(fields_.output_size[0]);
            width = builder.constant(fields_.output_size[1]);
        } else {
            const nvinfer1::IDimensionExpr *scale = builder.constant(fields_.output_scale);
            height = builder.operation(nvinfer1::DimensionOperation::kPROD, *inputs[0].d[2], *scale);
            width = builder.operation(nvinfer1::DimensionOperation::kPROD, *inputs[0].d[3], *scale);
        }
        for (const Output map : {kLabelMap, kSemanticMap}) {
            outputs[map].nbDims = 3;
            outputs[map].d[0] = batch;
            outputs[map].d[1] = height;
            outputs[map].d[2] = width;
        }
        outputs[kCount].nbDims = 1;
        outputs[kCount].d[0] = batch;
        outputs[kTable].nbDims = 3;
        outputs[kTable].d[0] = batch;
        outputs[kTable].d[1] = builder.constant(fields_.max_instances);
        outputs[kTable].d[2] = builder.constant(TFISEG_TABLE_COLUMNS);
        return 0;
    }

    bool supportsFormatCombination(int32_t at, const nvinfer1::DynamicPluginTensorDesc *tensors, int32_t inputs, int32_t outputs) noexcept override {
        if (inputs != fields_.inputs() || outputs != kOutputs || at < 0 || at >= inputs + outputs) return false;
        const nvinfer1::PluginTensorDesc &tensor = tensors[at].desc;
        if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
        if (at >= inputs) return tensor.type == (at - inputs == kTable ? DataType::kFLOAT : DataType::kINT32);
        return at == 0 ? tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF : tensor.type == tensors[0].desc.type;
    }

    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc *inputs, int32_t input_count, const nvinfer1::DynamicPluginTensorDesc *,
                            int32_t output_count) noexcept override {
        const bool good = fits(inputs, input_count, [](const nvinfer1::DynamicPluginTensorDesc &t) { return t.desc.dims.nbDims; });
        if (!good || output_count != kOutputs) return -1;
        const DataType type = inputs[0].desc.type;
        const bool are_taken = takes(type, [inputs](int32_t k) { return inputs[k].min; }) && takes(type, [inputs](int32_t k) { return inputs[k].max; });
        return are_taken ? 0 : -1;
    }

    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc *inputs, int32_t, const nvinfer1::DynamicPluginTensorDesc *,
                            int32_t) const noexcept override {
        const nvinfer1::Dims &logits = inputs[0].max;
        const tfiseg_problem problem = problem_of(logits, inputs[0].desc.type, [](int32_t) { return static_cast<const void *>(&kName); });
        return size_t(tfiseg_workspace_size(&problem, TFISEG_ON_CUDA));
    }

    int32_t onShapeChange(const nvinfer1::PluginTensorDesc *inputs, int32_t input_count, const nvinfer1::PluginTensorDesc *, int32_t) noexcept override {
        if (!fits(inputs, input_count, [](const nvinfer1::PluginTensorDesc &t) { return t.dims.nbDims; })) return -1;
        return takes(inputs[0].type, [inputs](int32_t k) { return inputs[k].dims; }) ? 0 : -1;
    }

    int32_t enqueue(const nvinfer1::PluginTensorDesc *input, const nvinfer1::PluginTensorDesc *output, const void *const *inputs,
                    void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
        const tfiseg_problem problem = problem_of(input[0].dims, input[0].type, [inputs](int32_t k) { return inputs[k]; });
        tfiseg_result result = {};
        result.struct_size = sizeof result;
        result.label_map = static_cast<int32_t *>(outputs[kLabelMap]);
        result.semantic_map_32 = static_cast<int32_t *>(outputs[kSemanticMap]);
        result.count = static_cast<int32_t *>(outputs[kCount]);
        result.table = static_cast<float *>(outputs[kTable]);
        result.workspace = workspace;
        result.workspace_bytes = tfiseg_workspace_size(&problem, TFISEG_ON_CUDA);
        const size_t rows = size_t(output[kTable].dims.d[0]) * size_t(output[kTable].dims.d[1]);
        cudaError_t cleared = cudaMemsetAsync(result.table, 0, rows * TFISEG_TABLE_COLUMNS * sizeof(float), stream);
        const int32_t status = cleared == cudaSuccess ? tfiseg_cluster_cuda(&problem, &result, stream) : int32_t(TFISEG_CUDA_ERROR);
        if (status != TFISEG_OK) log_error(tfiseg_status_string(status));
        return status;
    }

    nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection *getFieldsToSerialize() noexcept override { return &collection_; }

  private:
    // Right number of inputs, of right rank.
    template <class T, class Rank>
    bool fits(const T *inputs, int32_t count, const Rank &rank) const {
        if (count != fields_.inputs()) {
            log_error("its fields promise " + std::to_string(fields_.inputs()) + " inputs (logits, then displacement, boundary, affinity as has_* say), got " +
                      std::to_string(count));
            return false;
        }
        for (int32_t k = 0; k < count; ++k)
            if (rank(inputs[k]) != 4) {
                log_error("input " + std::to_string(k) + " must have 4 dimensions (N, C, h, w), got " + std::to_string(rank(inputs[k])));
                return false;
            }
        return true;
    }

    // Inputs of these shapes are consistent, and the operator takes them; if not, the log says why. dims(k): of input k, all known.
    template <class DimsOf>
    bool takes(DataType type, const DimsOf &dims) const {
        const nvinfer1::Dims logits = dims(0);
        int32_t next = 1;
        const auto agrees = [&](const char *name, int64_t channels, int64_t stride) {
            const nvinfer1::Dims given = dims(next++);
            const int64_t expected[] = {logits.d[0], channels, (logits.d[2] + stride - 1) / stride, (logits.d[3] + stride - 1) / stride};
            if (std::equal(expected, expected + 4, given.d)) return true;
            const std::string wanted = text_of(expected), got = text_of(given.d);
            log_error(std::string(name) + " must have the shape " + wanted + " with logits of " + text_of(logits.d) + ", got " + got);
            return false;
        };
        if (fields_.has_displacement && !agrees("displacement", 2, 1)) return false;
        if (fields_.has_boundary && !agrees("boundary", 1, 1)) return false;
        if (fields_.has_affinity && !agrees("affinity", int64_t(fields_.affinity_offsets_yx.size() / 2), fields_.affinity_stride)) return false;
        const tfiseg_problem problem = problem_of(logits, type, [](int32_t) { return static_cast<const void *>(&kName); });
        int32_t status = check(&problem, TFISEG_ON_CUDA);
        if (!status) status = check_offsets(problem);
        if (status) log_error("cannot take logits of " + text_of(logits.d) + ": " + tfiseg_status_string(status));
        return !status;
    }

    template <class Size>
    static std::string text_of(const Size *sizes) {
        std::string text;
        for (int32_t k = 0; k < 4; ++k) text += (k ? ", " : "(") + std::to_string(sizes[k]);
        return text + ")";
    }

    // Sizes beyond any that check() takes stay so.
    static int32_t saturated(int64_t size) { return int32_t(std::min<int64_t>(std::max<int64_t>(size, 0), std::numeric_limits<int32_t>::max())); }

    // pointer(k): of input k.
    template <class Pointer>
    tfiseg_problem problem_of(const nvinfer1::Dims &logits, DataType type, const Pointer &pointer) const {
        tfiseg_problem p = {};
        p.struct_size = sizeof p;
        p.batch = saturated(logits.d[0]);
        p.classes = saturated(logits.d[1]);
        p.height = saturated(logits.d[2]);
        p.width = saturated(logits.d[3]);
        p.out_height = fields_.output_size.empty() ? saturated(int64_t(p.height) * fields_.output_scale) : fields_.output_size[0];
        p.out_width = fields_.output_size.empty() ? saturated(int64_t(p.width) * fields_.output_scale) : fields_.output_size[1];
        p.value_type = type == DataType::kHALF ? TFISEG_FLOAT16 : TFISEG_FLOAT32;
        int32_t next = 0;
        p.logits = pointer(next++);
        if (fields_.has_displacement) p.displacement = pointer(next++);
        if (fields_.has_boundary) p.boundary = pointer(next++);
        if (fields_.has_affinity) p.affinity = pointer(next++);
        p.affinity_offsets_yx = fields_.affinity_offsets_yx.data();
        p.affinity_channels = int32_t(fields_.affinity_offsets_yx.size() / 2);
        p.affinity_stride = fields_.affinity_stride;
        p.boundary_stride = 1;
        p.evidence_hidden = Fields::hidden(fields_.merge_rule);
        p.evidence_rule = fields_.merge_rule.empty() ? nullptr : fields_.merge_rule.data();
        p.part_hidden = Fields::hidden(fields_.part_rule);
        p.part_rule = fields_.part_rule.empty() ? nullptr : fields_.part_rule.data();
        p.things = things_;
        p.split = split_;
        p.merge_affinity = fields_.merge_affinity;
        p.centre_radius = fields_.centre_radius;
        p.sharpen = fields_.sharpen;
        p.min_area = fields_.min_area;
        p.max_instances = fields_.max_instances;
        p.threads = 1;
        return p;
    }

    const Fields fields_;
    uint8_t things_[256] = {};
    double split_[256];
    std::vector<PluginField> saved_;
    nvinfer1::PluginFieldCollection collection_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    Creator() {
        Fields::each(defaults_, [this](const char *name, const auto &value) {
            using Field = FieldOf<std::decay_t<decltype(value)>>;
            known_.emplace_back(name, nullptr, type_of<typename Field::Element>(), Field::is_list ? 0 : 1);
        });
        collection_ = {int32_t(known_.size()), known_.data()};
    }

    nvinfer1::IPluginV3 *createPlugin(const char *, const nvinfer1::PluginFieldCollection *given, nvinfer1::TensorRTPhase) noexcept override {
        try {
            Fields fields;
            std::string wrong;
            for (int32_t k = 0; given && k < given->nbFields && wrong.empty(); ++k) wrong = take(fields, given->fields[k]);
            if (wrong.empty()) wrong = fields.problem();
            if (wrong.empty()) return new Plugin(fields);
            log_error(wrong);
        } catch (const std::bad_alloc &) {
            log_error("out of memory");
        }
        return nullptr;
    }

    const nvinfer1::PluginFieldCollection *getFieldNames() noexcept override { return &collection_; }
    const char *getPluginName() const noexcept override { return kName; }
    const char *getPluginVersion() const noexcept override { return kVersion; }
    const char *getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    const Fields defaults_;
    std::vector<PluginField> known_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace
}  // namespace tfiseg

extern "C" {

TFISEG_API nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
    static tfiseg::Creator creator;
    static nvinfer1::IPluginCreatorInterface *const creators[] = {&creator};
    count = 1;
    return creators;
}

TFISEG_API void setLoggerFinder(nvinfer1::ILoggerFinder *finder) { tfiseg::logger_finder = finder; }

}  // extern "C"
