// Calls the plugin's IPluginV3 interface like TensorRT, but without TensorRT: creation, cloning, formats, output shapes, workspace,
// serialization. With --gpu, it also captures enqueue in a CUDA graph and compares the result with that of the CPU.
//     plugin_interface LIBRARY [--gpu]
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../plugins/csrc/tfiseg.h"

using namespace nvinfer1;

namespace {

int checks = 0;

void expect(bool condition, const char *check) {
    ++checks;
    if (condition) return;
    std::printf("failed: %s\n", check);
    std::exit(1);
}

void expect(cudaError_t status) { expect(status == cudaSuccess, cudaGetErrorString(status)); }

// A dimension of TensorRT's builder, here always a constant.
class Size final : public IDimensionExpr {
  public:
    explicit Size(int64_t value) : body_(value) { mImpl = &body_; }

  private:
    struct Body final : apiv::VDimensionExpr {
        explicit Body(int64_t value) : value(value) {}
        bool isConstant() const override { return true; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
        int64_t value;
    } body_;
};

class Sizes final : public IExprBuilder {
  public:
    Sizes() { mImpl = &body_; }

  private:
    struct Body final : apiv::VExprBuilder {
        const IDimensionExpr *constant(int64_t value) override {
            created.push_back(std::make_unique<Size>(value));
            return created.back().get();
        }
        const IDimensionExpr *operation(DimensionOperation op, const IDimensionExpr &a, const IDimensionExpr &b) override {
            expect(op == DimensionOperation::kPROD, "only products of sizes are requested");
            return constant(a.getConstantValue() * b.getConstantValue());
        }
        const IDimensionExpr *declareSizeTensor(int32_t, const IDimensionExpr &, const IDimensionExpr &) override {
            expect(false, "no size tensors are requested");
            return nullptr;
        }
        std::vector<std::unique_ptr<Size>> created;
    } body_;
};

struct Messages final : public ILogger, public ILoggerFinder {
    std::string last;
    void log(Severity severity, const char *text) noexcept override {
        if (severity == Severity::kERROR) last = text;
    }
    ILogger *findLogger() override { return this; }
};

DynamicPluginTensorDesc tensor(DataType type, std::vector<int64_t> sizes, TensorFormat format = TensorFormat::kLINEAR) {
    DynamicPluginTensorDesc t = {};
    t.desc.type = type;
    t.desc.format = format;
    t.desc.dims.nbDims = int32_t(sizes.size());
    for (size_t k = 0; k < sizes.size(); ++k) t.desc.dims.d[k] = sizes[k];
    t.min = t.max = t.opt = t.desc.dims;
    return t;
}

template <class T>
T *capability(IPluginV3 *plugin, PluginCapabilityType type) {
    return static_cast<T *>(plugin->getCapabilityInterface(type));
}

std::vector<std::string> fields_of(IPluginV3 *plugin) {
    const PluginFieldCollection *saved = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    std::vector<std::string> all;
    for (int32_t k = 0; k < saved->nbFields; ++k) {
        const PluginField &f = saved->fields[k];
        all.push_back(std::string(f.name) + ":" + std::to_string(int32_t(f.type)) + ":" +
                      std::string(static_cast<const char *>(f.data ? f.data : ""), size_t(f.length) * 4));
    }
    return all;
}

std::vector<int64_t> shape_of(const DimsExprs &d) {
    std::vector<int64_t> sizes;
    for (int32_t k = 0; k < d.nbDims; ++k) sizes.push_back(d.d[k]->getConstantValue());
    return sizes;
}

DimsExprs dims(Sizes &sizes, std::vector<int64_t> values) {
    DimsExprs d = {};
    d.nbDims = int32_t(values.size());
    for (size_t k = 0; k < values.size(); ++k) d.d[k] = sizes.constant(values[k]);
    return d;
}

const int32_t things[] = {1, 2}, min_area = 5, instances = 16, yes = 1, stride = 2, size[] = {30, 44}, offsets[] = {0, 1, 1, 0}, bad = -3;
const float split[] = {-1.0f};

IPluginV3 *create(IPluginCreatorV3One *creator, std::vector<PluginField> fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    const PluginFieldCollection all = {int32_t(fields.size()), fields.data()};
    return creator->createPlugin("node", &all, phase);
}

void on_gpu(IPluginV3 *plugin, void *library, DataType type) {
    constexpr int32_t n = 2, c = 3, h = 60, w = 80, k = instances;
    const size_t grid = size_t(h) * w, out = size_t(size[0]) * size_t(size[1]);
    std::vector<float> logits(n * c * grid);
    std::vector<uint16_t> halves;
    for (size_t i = 0; i < logits.size(); ++i) {  // waves whose values fp16 represents exactly
        const double y = double(i % grid / w), x = double(i % grid % w), plane = double(i / grid);
        logits[i] = float(int(64.0 * (std::sin(x / 7.0 + plane) + std::cos(y / 5.0 - plane)))) / 32.0f;
    }
    const void *host = logits.data();
    size_t bytes = logits.size() * 4;
    if (type == DataType::kHALF) {
        for (const float v : logits) {
            uint32_t b;
            std::memcpy(&b, &v, 4);
            halves.push_back(v == 0.0f ? 0 : uint16_t((b >> 16 & 0x8000u) | ((b >> 23 & 255u) - 112u) << 10 | (b >> 13 & 1023u)));
        }
        host = halves.data();
        bytes = halves.size() * 2;
    }
    const DynamicPluginTensorDesc in = tensor(type, {n, c, h, w});
    PluginTensorDesc outs[4] = {tensor(DataType::kINT32, {n, size[0], size[1]}).desc, tensor(DataType::kINT32, {n, size[0], size[1]}).desc,
                                tensor(DataType::kINT32, {n}).desc, tensor(DataType::kFLOAT, {n, k, 10}).desc};
    const size_t out_bytes[4] = {n * out * 4, n * out * 4, n * 4, size_t(n) * k * 40};
    auto *runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    const size_t workspace_bytes = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD)->getWorkspaceSize(&in, 1, nullptr, 0);
    void *input, *workspace, *outputs[4];
    expect(cudaMalloc(&input, bytes));
    expect(cudaMemcpy(input, host, bytes, cudaMemcpyHostToDevice));
    expect(cudaMalloc(&workspace, workspace_bytes));
    expect(cudaMemset(workspace, 0xA5, workspace_bytes));
    for (int i = 0; i < 4; ++i) expect(cudaMalloc(&outputs[i], out_bytes[i]));
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    expect(cudaStreamCreate(&stream));
    expect(runtime->enqueue(&in.desc, outs, &input, outputs, workspace, stream) == 0, "the first enqueue, which loads the kernels");
    expect(cudaStreamSynchronize(stream));
    expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    expect(runtime->enqueue(&in.desc, outs, &input, outputs, workspace, stream) == 0, "enqueue during a capture");
    expect(cudaStreamEndCapture(stream, &graph));
    expect(cudaGraphInstantiate(&ready, graph, 0));
    for (int replay = 0; replay < 3; ++replay) expect(cudaGraphLaunch(ready, stream));
    expect(cudaStreamSynchronize(stream));
    std::vector<int32_t> labels(n * out), classes(n * out), counts(n);
    expect(cudaMemcpy(labels.data(), outputs[0], out_bytes[0], cudaMemcpyDeviceToHost));
    expect(cudaMemcpy(classes.data(), outputs[1], out_bytes[1], cudaMemcpyDeviceToHost));
    expect(cudaMemcpy(counts.data(), outputs[2], out_bytes[2], cudaMemcpyDeviceToHost));

    uint8_t flags[256] = {};
    flags[1] = flags[2] = 1;
    std::vector<double> ratios(256, std::nan(""));
    tfiseg_problem p = {};
    p.struct_size = sizeof p;
    p.batch = n;
    p.classes = c;
    p.height = h;
    p.width = w;
    p.out_height = size[0];
    p.out_width = size[1];
    p.logits = logits.data();
    p.things = flags;
    p.split = ratios.data();
    p.min_area = min_area;
    p.max_instances = k;
    p.threads = 1;
    const auto workspace_size = reinterpret_cast<decltype(&tfiseg_workspace_size)>(dlsym(library, "tfiseg_workspace_size"));
    const auto cluster = reinterpret_cast<decltype(&tfiseg_cluster_cpu)>(dlsym(library, "tfiseg_cluster_cpu"));
    std::vector<char> scratch(size_t(workspace_size(&p, TFISEG_ON_CPU)));
    std::vector<int32_t> expected(n * out), expected_classes(n * out), expected_counts(n);
    std::vector<float> table(size_t(n) * k * 10);
    tfiseg_result r = {};
    r.struct_size = sizeof r;
    r.label_map = expected.data();
    r.semantic_map_32 = expected_classes.data();
    r.count = expected_counts.data();
    r.table = table.data();
    r.workspace = scratch.data();
    r.workspace_bytes = int64_t(scratch.size());
    expect(cluster(&p, &r) == TFISEG_OK, "the CPU operator runs");
    expect(expected_counts[0] > 1, "there are several instances");
    expect(counts == expected_counts && labels == expected && classes == expected_classes, "the plugin and the CPU give equal results");
}

}  // namespace

int main(int argc, char **argv) {
    expect(argc > 1, "the first argument is the path of the library");
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    expect(library != nullptr, "the library can be loaded");
    const auto creators = reinterpret_cast<IPluginCreatorInterface *const *(*)(int32_t &)>(dlsym(library, "getCreators"));
    const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder *)>(dlsym(library, "setLoggerFinder"));
    expect(creators && set_finder, "the library has getCreators and setLoggerFinder");
    Messages messages;
    set_finder(&messages);
    int32_t count = 0;
    IPluginCreatorInterface *const *all = creators(count);
    expect(count == 1, "one creator");
    expect(std::string(all[0]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE", "the creator has the kind of IPluginCreatorV3One");
    auto *creator = static_cast<IPluginCreatorV3One *>(all[0]);
    expect(std::string(creator->getPluginNamespace()) == "tfiseg" && std::string(creator->getPluginVersion()) == "1", "namespace and version");
    expect(creator->getFieldNames()->nbFields == 16, "16 fields");

    const float rule[20] = {};
    const std::vector<PluginField> good = {{"things", things, PluginFieldType::kINT32, 2}, {"split", split, PluginFieldType::kFLOAT32, 1},
                                           {"min_area", &min_area, PluginFieldType::kINT32, 1}, {"max_instances", &instances, PluginFieldType::kINT32, 1},
                                           {"output_size", size, PluginFieldType::kINT32, 2}, {"plugin_version", "1", PluginFieldType::kCHAR, 1}};
    IPluginV3 *plugin = create(creator, good);
    expect(plugin != nullptr, "valid fields create a plugin");
    auto *core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
    auto *build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    auto *runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    expect(std::string(core->getPluginName()) == "DisplacementFieldClustering", "the name of the plugin");
    expect(std::string(build->getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD", "the build interface");
    expect(std::string(runtime->getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME", "the runtime interface");

    const struct {
        PluginField field;
        const char *message;
    } refused[] = {
        {{"min_area", &bad, PluginFieldType::kINT32, 1}, "min_area must not be negative, got -3"},
        {{"min_area", split, PluginFieldType::kFLOAT32, 1}, "int32 is wanted"},
        {{"min_area", size, PluginFieldType::kINT32, 2}, "one number is wanted"},
        {{"minimum", &min_area, PluginFieldType::kINT32, 1}, "there is no field \"minimum\""},
        {{"output_size", &min_area, PluginFieldType::kINT32, 1}, "(height, width)"},
        {{"has_affinity", &yes, PluginFieldType::kINT32, 1}, "has_affinity needs affinity_offsets_yx"},
        {{"merge_rule", split, PluginFieldType::kFLOAT32, 1}, "it needs has_affinity"},
        {{"part_rule", split, PluginFieldType::kFLOAT32, 1}, "it needs has_affinity and has_boundary"},
        {{"sharpen", &yes, PluginFieldType::kINT32, 1}, "it needs has_boundary"},
        {{"sharpen", &bad, PluginFieldType::kINT32, 1}, "0..32"},
        {{"max_instances", &bad, PluginFieldType::kINT32, 1}, "1..65535"},
        {{"things", &bad, PluginFieldType::kINT32, 1}, "class ids are 0..254"},
    };
    for (const auto &r : refused) {
        expect(create(creator, {r.field}) == nullptr, r.message);
        expect(messages.last.find(r.message) != std::string::npos, messages.last.c_str());
    }

    // a plugin that is created from serialized fields, and a clone, are equal to the first plugin
    const PluginFieldCollection *saved = runtime->getFieldsToSerialize();
    expect(saved->nbFields == 16, "every field is saved");
    IPluginV3 *again = creator->createPlugin("node", saved, TensorRTPhase::kRUNTIME);
    expect(again && fields_of(again) == fields_of(plugin), "serialized fields create an equal plugin");
    IPluginV3 *clone = plugin->clone(), *attached = runtime->attachToContext(nullptr);
    expect(fields_of(clone) == fields_of(plugin) && fields_of(attached) == fields_of(plugin), "clones are equal");
    delete plugin;
    expect(fields_of(clone) == fields_of(again), "a clone does not depend on the first plugin");
    plugin = clone;
    build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);

    // formats: inputs are fp32 or fp16, and linear
    const DataType f32 = DataType::kFLOAT, f16 = DataType::kHALF, i32 = DataType::kINT32;
    for (const DataType type : {f32, f16}) {
        const DynamicPluginTensorDesc io[] = {tensor(type, {1, 21, 96, 96}), tensor(i32, {1, 30, 44}), tensor(i32, {1, 30, 44}), tensor(i32, {1}),
                                              tensor(f32, {1, 16, 10})};
        for (int32_t at = 0; at < 5; ++at) expect(build->supportsFormatCombination(at, io, 1, 4), "fp32 and fp16, linear");
        expect(build->configurePlugin(io, 1, io + 1, 4) == 0, "configurePlugin");
        expect(build->getWorkspaceSize(io, 1, io + 1, 4) > 96 * 96 * 20, "the plugin requests a workspace");
    }
    DynamicPluginTensorDesc odd[] = {tensor(f32, {1, 21, 96, 96}, TensorFormat::kHWC8), tensor(f16, {1, 30, 44}), tensor(DataType::kUINT8, {1, 30, 44}),
                                     tensor(i32, {1}), tensor(f32, {1, 16, 10})};
    expect(!build->supportsFormatCombination(0, odd, 1, 4), "no other layouts are supported");
    expect(!build->supportsFormatCombination(1, odd, 1, 4) && !build->supportsFormatCombination(2, odd, 1, 4), "maps must be int32");
    odd[0] = tensor(DataType::kINT8, {1, 21, 96, 96});
    expect(!build->supportsFormatCombination(0, odd, 1, 4), "int8 logits are not supported");
    expect(!build->supportsFormatCombination(0, odd, 2, 4), "a second input is not supported");
    expect(build->configurePlugin(odd, 2, odd + 1, 4) != 0 && messages.last.find("promise 1 inputs") != std::string::npos, "a second input cannot be configured");
    DataType types[4];
    expect(build->getOutputDataTypes(types, 4, &f16, 1) == 0 && types[0] == i32 && types[1] == i32 && types[2] == i32 && types[3] == f32, "output types");

    // output shapes: with a fixed size, and with a scale and all inputs
    Sizes sizes;
    DimsExprs in[4] = {dims(sizes, {2, 21, 96, 128}), dims(sizes, {2, 2, 96, 128}), dims(sizes, {2, 1, 96, 128}), dims(sizes, {2, 2, 48, 64})}, out[4] = {};
    expect(build->getOutputShapes(in, 1, nullptr, 0, out, 4, sizes) == 0, "output shapes");
    expect(shape_of(out[0]) == std::vector<int64_t>({2, 30, 44}) && shape_of(out[1]) == shape_of(out[0]), "maps of the requested size");
    expect(shape_of(out[2]) == std::vector<int64_t>({2}) && shape_of(out[3]) == std::vector<int64_t>({2, 16, 10}), "count and table");
    in[0].nbDims = 3;
    expect(build->getOutputShapes(in, 1, nullptr, 0, out, 4, sizes) != 0, "logits of three dimensions are refused");
    in[0].nbDims = 4;
    IPluginV3 *full = create(creator, {{"has_displacement", &yes, PluginFieldType::kINT32, 1}, {"has_boundary", &yes, PluginFieldType::kINT32, 1},
                                       {"has_affinity", &yes, PluginFieldType::kINT32, 1}, {"affinity_offsets_yx", offsets, PluginFieldType::kINT32, 4},
                                       {"affinity_stride", &stride, PluginFieldType::kINT32, 1}, {"output_scale", &stride, PluginFieldType::kINT32, 1},
                                       {"merge_rule", rule, PluginFieldType::kFLOAT32, 20}, {"part_rule", rule, PluginFieldType::kFLOAT32, 20}});
    expect(full != nullptr, "a plugin with all inputs, and rules with one hidden unit");
    expect(create(creator, {{"has_affinity", &yes, PluginFieldType::kINT32, 1}, {"affinity_offsets_yx", offsets, PluginFieldType::kINT32, 4},
                            {"merge_rule", rule, PluginFieldType::kFLOAT32, 19}}) == nullptr, "a merge rule of 19 weights is refused");
    expect(messages.last.find("got 19") != std::string::npos, messages.last.c_str());
    auto *full_build = capability<IPluginV3OneBuild>(full, PluginCapabilityType::kBUILD);
    expect(full_build->getOutputShapes(in, 4, nullptr, 0, out, 4, sizes) == 0, "output shapes of the plugin with all inputs");
    expect(shape_of(out[0]) == std::vector<int64_t>({2, 192, 256}), "maps of twice the grid's size");
    const DynamicPluginTensorDesc io[] = {tensor(f16, {2, 21, 96, 128}), tensor(f16, {2, 2, 96, 128}), tensor(f32, {2, 1, 96, 128}), tensor(f16, {2, 2, 48, 64}),
                                          tensor(i32, {2, 192, 256}), tensor(i32, {2, 192, 256}), tensor(i32, {2}), tensor(f32, {2, 256, 10})};
    for (int32_t at = 0; at < 8; ++at) expect(full_build->supportsFormatCombination(at, io, 4, 4) == (at != 2), "all inputs must have the type of the logits");

    // inconsistent or unsupported shapes are rejected with a reason
    const std::vector<std::vector<int64_t>> consistent = {{2, 21, 96, 128}, {2, 2, 96, 128}, {2, 1, 96, 128}, {2, 2, 48, 64}};
    const struct {
        int32_t input;
        std::vector<int64_t> shape;
        const char *reason;
    } wrong[] = {{1, {2, 1, 96, 128}, "displacement must have the shape (2, 2, 96, 128)"}, {1, {2, 2, 48, 64}, "displacement must"},
                 {1, {1, 2, 96, 128}, "displacement must"}, {2, {2, 1, 95, 128}, "boundary must have the shape (2, 1, 96, 128)"},
                 {2, {2, 2, 96, 128}, "boundary must"}, {3, {2, 14, 48, 64}, "affinity must have the shape (2, 2, 48, 64)"},
                 {3, {2, 2, 96, 128}, "got (2, 2, 96, 128)"}, {0, {2, 300, 96, 128}, "classes 2..255"}};
    auto *full_runtime = capability<IPluginV3OneRuntime>(full, PluginCapabilityType::kRUNTIME);
    const auto accepted = [&](const std::vector<std::vector<int64_t>> &shapes) {
        DynamicPluginTensorDesc inputs[4];
        PluginTensorDesc now[4];
        for (size_t k = 0; k < 4; ++k) now[k] = (inputs[k] = tensor(f16, shapes[k])).desc;
        const bool configured = full_build->configurePlugin(inputs, 4, io + 4, 4) == 0, changed = full_runtime->onShapeChange(now, 4, nullptr, 4) == 0;
        expect(configured == changed, "configurePlugin and onShapeChange agree");
        return configured;
    };
    expect(accepted(consistent), "consistent shapes are accepted");
    for (const auto &w : wrong) {
        std::vector<std::vector<int64_t>> shapes = consistent;
        shapes[size_t(w.input)] = w.shape;
        expect(!accepted(shapes) && messages.last.find(w.reason) != std::string::npos, messages.last.c_str());
    }
    expect(!accepted({{2, 21, 5000, 128}, {2, 2, 5000, 128}, {2, 1, 5000, 128}, {2, 2, 2500, 64}}), "a grid of 5000 rows is refused");
    expect(messages.last.find("grid sides 1..4096") != std::string::npos, messages.last.c_str());
    const int32_t long_offsets[] = {0, 1, 1, 2147483647};
    expect(create(creator, {{"has_affinity", &yes, PluginFieldType::kINT32, 1}, {"affinity_offsets_yx", long_offsets, PluginFieldType::kINT32, 4}}) == nullptr,
           "offsets longer than any grid are refused");

    if (argc > 2 && std::string(argv[2]) == "--gpu") {
        for (const DataType type : {f32, f16}) on_gpu(plugin, library, type);
    }
    delete plugin;
    delete again;
    delete attached;
    delete full;
    std::printf("%d checks passed\n", checks);
    return 0;
}
