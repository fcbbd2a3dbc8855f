// Finds instances in frames without Python: ONNX Runtime runs the network, then the clustering operator runs.
//     segment_frames MODEL.onnx OUT_FOLDER FRAME.png...
// MODEL.onnx: a semantic network in tfiseg's format, with or without instance heads (tfiseg export). For each frame, the
// program writes a 16-bit label PNG (0 = none) to OUT_FOLDER, and prints class, score, box and pixels of each instance.
//
// The settings and class names come from the model's metadata (docs/reference/metadata-format.md), as in tfiseg.Segmenter.
#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>

#include "png_files.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <tfiseg.hpp>

namespace {

struct FrameResult {
    std::vector<tfiseg::Instance> instances;
    std::vector<int32_t> label_map;  // (H, W), 0 = none, k + 1 = instances[k]
    double network_ms = 0.0, cluster_ms = 0.0;
};

Ort::SessionOptions session_options(int threads) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    options.SetLogSeverityLevel(3);
    options.AddConfigEntry("session.force_spinning_stop", "1");  // the operator needs the same cores between two frames
    // this optimizer quantizes layers that an int8 model leaves in float
    options.AddConfigEntry("optimization.disable_specified_optimizers", "WeightBiasQuantization");
    return options;
}

double ms_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// A network and its operator, which reuse their memory for all frames.
class FrameSegmenter {
  public:
    FrameSegmenter(const std::string &path, int threads) : session_(environment_, path.c_str(), session_options(threads)) {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("tfiseg", allocator);
        if (!text) throw std::runtime_error(path + " has no tfiseg metadata: `tfiseg export` writes such a model");
        metadata_ = nlohmann::json::parse(text.get());
        if (metadata_.at("format_version") != 1) throw std::runtime_error(path + " has another version of the metadata format, expected 1");
        for (size_t k = 0; k < session_.GetOutputCount(); ++k) output_names_.push_back(session_.GetOutputNameAllocated(k, allocator).get());
        read_settings(threads);
    }

    const std::string &class_name(int32_t class_id) const { return class_names_.at(size_t(class_id)); }

    // frame: BGR, 8 bits, rows without padding.
    FrameResult operator()(tfiseg::Span<const uint8_t> frame, tfiseg::Size size) {
        const auto start = std::chrono::steady_clock::now();
        const std::array<int64_t, 4> shape{1, size.height, size.width, 3};
        // ONNX Runtime only reads the memory, but its API is not const
        const Ort::Value input = Ort::Value::CreateTensor<uint8_t>(memory_, const_cast<uint8_t *>(frame.data()), frame.size(), shape.data(), shape.size());
        const char *input_name = "frame";
        std::vector<const char *> names;
        for (const std::string &name : output_names_) names.push_back(name.c_str());
        const std::vector<Ort::Value> outputs = session_.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1, names.data(), names.size());
        FrameResult found;
        found.network_ms = ms_since(start);
        const tfiseg::Result result = cluster(outputs, size);
        found.cluster_ms = ms_since(start) - found.network_ms;
        select(result, found);
        return found;
    }

  private:
    void read_settings(int threads) {
        const nlohmann::json clustering = metadata_.value("clustering", nlohmann::json::object());
        class_names_ = metadata_.at("class_names").get<std::vector<std::string>>();
        settings_.things = metadata_.at("things").get<std::vector<int32_t>>();
        settings_.threads = threads;
        if (clustering.contains("split") && clustering["split"].is_number()) settings_.split = clustering["split"].get<double>();
        for (const auto &offset : clustering.value("affinity_offsets", nlohmann::json::array()))
            for (const auto &cells : offset) settings_.affinity_offsets_yx.push_back(cells.get<int32_t>());
        settings_.merge_rule = clustering.value("merge_rule", std::vector<float>());
        settings_.part_rule = clustering.value("part_rule", std::vector<float>());
        settings_.sharpen = clustering.value("sharpen", 0);
        min_area_ = clustering.value("min_area", 0);
        score_rule_ = clustering.value("score_rule", std::vector<double>());
    }

    tfiseg::Result cluster(const std::vector<Ort::Value> &outputs, tfiseg::Size size) {
        // default: a share of the frame, because smaller instances are mostly false positives of the class map
        const int32_t min_area = min_area_ ? min_area_ : std::max(25, int32_t(std::nearbyint(1e-3 * double(size.area()))));
        if (!clusterer_ || settings_.min_area != min_area) {
            settings_.min_area = min_area;
            clusterer_ = std::make_unique<tfiseg::Clusterer>(settings_);
        }
        std::map<std::string, std::vector<int64_t>> shapes;
        std::map<std::string, tfiseg::Span<const float>> values;
        for (size_t k = 0; k < outputs.size(); ++k) {
            const auto info = outputs[k].GetTensorTypeAndShapeInfo();
            shapes[output_names_[k]] = info.GetShape();
            values[output_names_[k]] = {outputs[k].GetTensorData<float>(), info.GetElementCount()};
        }
        tfiseg::Maps maps;
        maps.logits = values.at("logits");
        maps.classes = int32_t(shapes["logits"].at(1));
        maps.grid = {int32_t(shapes["logits"].at(2)), int32_t(shapes["logits"].at(3))};
        maps.displacement = values["displacement"];
        maps.boundary = values["boundary"];
        maps.affinity = values["affinity"];
        if (!maps.boundary.empty()) maps.boundary_stride = stride(maps.grid.height, shapes["boundary"].at(2));
        if (!maps.affinity.empty()) maps.affinity_stride = stride(maps.grid.height, shapes["affinity"].at(2));
        return clusterer_->cluster(maps, size);
    }

    static int32_t stride(int32_t grid_side, int64_t map_side) { return int32_t((grid_side + map_side - 1) / map_side); }

    // Keeps instances that are likely objects, by the model's score calibration or the mean class probability.
    void select(const tfiseg::Result &result, FrameResult &found) const {
        std::vector<tfiseg::Instance> instances = result.instances();
        int32_t largest = 1;
        for (const tfiseg::Instance &instance : instances) largest = std::max(largest, instance.area);
        std::vector<int32_t> new_label(instances.size() + 1, 0);
        for (size_t k = 0; k < instances.size(); ++k) {
            tfiseg::Instance instance = instances[k];
            if (!score_rule_.empty()) instance.score = probability(instance, largest, result.size());
            if (instance.score < (score_rule_.empty() ? 0.5f : 0.3f)) continue;
            found.instances.push_back(instance);
            new_label[k + 1] = int32_t(found.instances.size());
        }
        for (const int32_t label : result.label_map()) found.label_map.push_back(new_label[size_t(label)]);
    }

    // Logistic regression on the share of the frame, the size relative to the largest instance, and the mean class probability.
    float probability(const tfiseg::Instance &instance, int32_t largest, tfiseg::Size size) const {
        const double area = std::max(1, instance.area), score = std::clamp(double(instance.score), 1e-3, 1.0 - 1e-3);
        const double features[] = {std::log(area / double(size.area())), std::log(area / largest), std::log(score / (1.0 - score))};
        const double sum = std::inner_product(features, features + 3, score_rule_.begin(), score_rule_.at(3));
        return float(1.0 / (1.0 + std::exp(-sum)));
    }

    Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "segment_frames"};
    Ort::Session session_;
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    nlohmann::json metadata_;
    std::vector<std::string> output_names_, class_names_;
    std::vector<double> score_rule_;
    int32_t min_area_ = 0;
    tfiseg::Settings settings_;
    std::unique_ptr<tfiseg::Clusterer> clusterer_;
};

void run(int argc, char **argv) {
    if (argc < 4) throw std::runtime_error("usage: segment_frames MODEL.onnx OUT_FOLDER FRAME.png...");
    std::filesystem::create_directories(argv[2]);
    FrameSegmenter segment(argv[1], int(std::max(1u, std::thread::hardware_concurrency())));
    for (int k = 3; k < argc; ++k) {
        tfiseg::Size size;
        const std::vector<uint8_t> frame = read_frame(argv[k], size);
        const FrameResult found = segment(frame, size);
        std::printf("%s: %zu instances, network %.1f ms, clustering %.1f ms\n", argv[k], found.instances.size(), found.network_ms, found.cluster_ms);
        for (const tfiseg::Instance &instance : found.instances)
            std::printf("  %s, score %.3f, box (%.0f, %.0f, %.0f, %.0f), %d pixels\n", segment.class_name(instance.class_id).c_str(), instance.score,
                        instance.x0, instance.y0, instance.x1, instance.y1, instance.area);
        const std::filesystem::path name = std::filesystem::path(argv[k]).stem().string() + ".png";
        write_labels((std::filesystem::path(argv[2]) / name).string(), found.label_map, size);
    }
}

}  // namespace

int main(int argc, char **argv) {
    try {
        run(argc, argv);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "segment_frames: %s\n", error.what());
        return 1;
    }
}
