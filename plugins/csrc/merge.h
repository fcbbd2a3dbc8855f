// Decides whether two regions are one object. A decision reads only sums and maxima over pixels, so regions can merge in parallel rounds;
// it computes only + - * / sqrt in a fixed order, so the result is bit for bit the same on a CPU, in CUDA (without fused multiply-add) and
// in numpy.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "field.h"
#include "tfiseg.h"

namespace tfiseg {

namespace cpu_tables {
#define TFISEG_TABLE constexpr
#include "neck_rule.h"
#undef TFISEG_TABLE
}  // namespace cpu_tables
#ifdef __CUDACC__
namespace gpu_tables {
#define TFISEG_TABLE __constant__ const
#include "neck_rule.h"
#undef TFISEG_TABLE
}  // namespace gpu_tables
#endif
#ifdef __CUDA_ARCH__
namespace tables = gpu_tables;
#else
namespace tables = cpu_tables;
#endif

struct Region {
    int64_t area = 0, sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0, sum_yy = 0;
    int64_t peak = 0;  // largest squared distance
    int64_t class_id = 0;
    int64_t score_sum = 0;      // 16-bit fixed point
    int64_t first = INT64_MAX;  // smallest pixel index
    int32_t x0 = INT32_MAX, y0 = INT32_MAX, x1 = 0, y1 = 0;  // box, x1 and y1 exclusive

    TFISEG_HD void absorb(const Region &o) {
        area += o.area;
        sum_x += o.sum_x;
        sum_y += o.sum_y;
        sum_xx += o.sum_xx;
        sum_xy += o.sum_xy;
        sum_yy += o.sum_yy;
        peak = o.peak > peak ? o.peak : peak;
        score_sum += o.score_sum;
        first = o.first < first ? o.first : first;
        x0 = o.x0 < x0 ? o.x0 : x0;
        y0 = o.y0 < y0 ? o.y0 : y0;
        x1 = o.x1 > x1 ? o.x1 : x1;
        y1 = o.y1 > y1 ? o.y1 : y1;
    }
};

struct Edge {
    int32_t a = 0, b = 0;      // regions, a < b
    int64_t saddle = 0;        // largest, over the contact, of the smaller squared distance of the two pixels
    int64_t contact = 0;       // touching pixel pairs
    int64_t boundary_sum = 0;  // boundary of these pairs, 16-bit fixed point
    int64_t affinity_sum = 0, affinity_count = 0;  // pairs at the affinity offsets, 16-bit fixed point

    TFISEG_HD void absorb(const Edge &o) {
        saddle = o.saddle > saddle ? o.saddle : saddle;
        contact += o.contact;
        boundary_sum += o.boundary_sum;
        affinity_sum += o.affinity_sum;
        affinity_count += o.affinity_count;
    }
};

constexpr double kFixedPoint = 65535.0;
constexpr double kBoundaryRatio = 1.0;   // a certain boundary (1) against none (0) moves the neck ratio by this much
constexpr double kBoundaryLogits = 8.0;  // and the decision from shape by this much

// [0, 1] as 16-bit fixed point. Values out of range are clamped (NaN: 0), so that every sum and distance stays in its own range.
TFISEG_HD int32_t to_fixed(float v) {
    const float unit = v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f;
    return int32_t(unit * 65535.0f + 0.5f);
}

// log2, linear between powers of two: libraries' logarithms differ in the last bit, and decisions need no more.
TFISEG_HD double coarse_log2(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int64_t exponent = int64_t(bits >> 52) - 1023;
    bits = (bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
    double mantissa;
    memcpy(&mantissa, &bits, sizeof mantissa);
    return double(exponent) + (mantissa - 1.0);
}

// Area over the area of the ellipse with the same second moments: 1 for an ellipse, less for anything hollow or bent.
TFISEG_HD double compactness(const Region &r) {
    const double n = double(r.area);
    const double mx = double(r.sum_x) / n, my = double(r.sum_y) / n;
    const double cxx = (double(r.sum_xx) / n - mx * mx) + 1.0 / 12.0;  // a pixel is a square, not a point
    const double cyy = (double(r.sum_yy) / n - my * my) + 1.0 / 12.0;
    const double cxy = double(r.sum_xy) / n - mx * my;
    const double det = cxx * cyy - cxy * cxy;
    return det > 0.0 ? n / (12.566370614359172 * std::sqrt(det)) : 1.0;
}

// The largest distance, at least 1. It is 0 only where a displacement field replaces the distances.
TFISEG_HD double peak_of(const Region &r) { return std::sqrt(double(r.peak > 1 ? r.peak : 1)); }

// Features of a neck for the decision from shape; `small` is the region of less area (ties: the lower number).
TFISEG_HD void neck_features(const Edge &e, const Region &small, const Region &large, double *f) {
    Region both = small;
    both.absorb(large);
    const double neck = std::sqrt(double(e.saddle));
    const double peak_small = peak_of(small), peak_large = peak_of(large);
    const double low_peak = peak_small < peak_large ? peak_small : peak_large;
    const double side_small = std::sqrt(double(small.area)), side_large = std::sqrt(double(large.area));
    const double dx = double(small.sum_x) / double(small.area) - double(large.sum_x) / double(large.area);
    const double dy = double(small.sum_y) / double(small.area) - double(large.sum_y) / double(large.area);
    f[0] = neck / low_peak;
    f[1] = coarse_log2(double(small.area) / double(large.area));
    f[2] = neck / side_small;
    f[3] = neck / side_large;
    f[4] = compactness(small);
    f[5] = compactness(large);
    f[6] = compactness(both);
    f[7] = peak_small / peak_large;
    f[8] = peak_small / side_small;
    f[9] = peak_large / side_large;
    f[10] = std::sqrt(dx * dx + dy * dy) / (side_small + side_large);
    f[11] = double(e.contact) / side_small;
    f[12] = coarse_log2(double(small.area));
}

// Log-odds that a neck lies inside one object: a small network (neck_rule.h), fitted on composites of single objects' shapes.
// In single precision: an embedded GPU has 64 times fewer units for doubles.
TFISEG_HD float neck_log_odds(const Edge &e, const Region &small, const Region &large) {
    double exact[tables::kNeckFeatures];
    neck_features(e, small, large, exact);
    float f[tables::kNeckFeatures];
    for (int32_t i = 0; i < tables::kNeckFeatures; ++i) f[i] = float(exact[i]);
    float out = tables::kNeckOutBias;
    // the hidden units one by one: with several at once, registers spill on a GPU; the same in evidence_log_odds
    TFISEG_NO_UNROLL
    for (int32_t j = 0; j < tables::kNeckHidden; ++j) {
        float sum = tables::kNeckHiddenBias[j];
        for (int32_t i = 0; i < tables::kNeckFeatures; ++i) sum = sum + tables::kNeckHiddenWeight[j][i] * f[i];
        if (sum > 0.0f) out = out + tables::kNeckOutWeight[j] * sum;
    }
    return out;
}

// Features of two regions, which need not touch: shape, then affinities, then boundary.
TFISEG_HD void evidence_features(const Edge &e, const Region &small, const Region &large, double *f) {
    neck_features(e, small, large, f);
    f[13] = e.affinity_count ? double(e.affinity_sum) / (double(e.affinity_count) * kFixedPoint) : 0.5;
    f[14] = coarse_log2(1.0 + double(e.affinity_count));
    f[15] = e.contact ? double(e.boundary_sum) / (double(e.contact) * kFixedPoint) : 0.5;
    f[16] = e.contact ? 1.0 : 0.0;
}

// Log-odds that two regions are one object, by the rule of the network that gives the affinities (tfiseg.h, evidence_rule).
TFISEG_HD float evidence_log_odds(const Edge &e, const Region &small, const Region &large, const float *rule, int32_t hidden) {
    constexpr int32_t n = TFISEG_EVIDENCE_FEATURES;
    double exact[n];
    evidence_features(e, small, large, exact);
    float f[n];
    for (int32_t i = 0; i < n; ++i) f[i] = float(exact[i]);
    const float *bias = rule + hidden * n, *out_weight = bias + hidden;
    float out = out_weight[hidden];
    TFISEG_NO_UNROLL
    for (int32_t j = 0; j < hidden; ++j) {
        float sum = bias[j];
        for (int32_t i = 0; i < n; ++i) sum = sum + rule[j * n + i] * f[i];
        if (sum > 0.0f) out = out + out_weight[j] * sum;
    }
    return out;
}

// Whether the rule reads touching pairs where a displacement field made the regions.
inline bool needs_contacts(const tfiseg_problem &p) { return p.evidence_rule || (p.boundary && !p.affinity); }

// How many edge scores a merge may update in one picture where scores depend on shape. Photographs need less than a tenth of it. On noise,
// one union of all regions has thousands of edges, and the scores of all of them change whenever it takes in another region.
TFISEG_HD int64_t merge_budget(int64_t pixels) { return 8192 + pixels / 4; }

struct MergeRule {
    bool geometric, with_boundary, with_affinity;
    double merge_affinity;
    const double *split;  // per class; NaN: from shape
    const float *evidence;  // with affinities; or NULL
    int32_t evidence_hidden;

    // A score is one mean over an edge: no region is read, and a link of two unions is never better than the best of the links it replaces.
    TFISEG_HD bool reads_one_mean() const { return !evidence && (with_affinity || !geometric); }

    // A score changes with the shape of the regions, not only with their edge and their peaks.
    TFISEG_HD bool depends_on_shape(int64_t class_id) const {
        return evidence || (geometric && !with_affinity && split[class_id] != split[class_id]);
    }

    // Above 0: one object. The larger, the earlier the pair merges. Regions are read only where they count: noise has one for each pixel.
    TFISEG_HD double score(const Edge &e, const Region &ra, const Region &rb) const {
        if (evidence) {
            const bool a_small = ra.area <= rb.area;
            return double(evidence_log_odds(e, a_small ? ra : rb, a_small ? rb : ra, evidence, evidence_hidden));
        }
        if (with_affinity) {
            if (e.affinity_count == 0) return -1.0;
            return double(e.affinity_sum) / (double(e.affinity_count) * kFixedPoint) - merge_affinity;
        }
        if (e.contact == 0) return -1.0;
        const double open = with_boundary ? 0.5 - double(e.boundary_sum) / (double(e.contact) * kFixedPoint) : 0.0;
        if (!geometric) return open;  // a given field is trusted: without other evidence its basins are the instances
        const double ratio_wanted = split[ra.class_id];
        if (ratio_wanted != ratio_wanted) {
            const bool a_small = ra.area <= rb.area;
            return double(neck_log_odds(e, a_small ? ra : rb, a_small ? rb : ra)) + kBoundaryLogits * open;
        }
        const int64_t low_peak = ra.peak < rb.peak ? ra.peak : rb.peak;
        const double ratio = std::sqrt(double(e.saddle) / double(low_peak)) + kBoundaryRatio * open;
        return ratio >= ratio_wanted ? 1.0 + ratio - ratio_wanted : ratio - ratio_wanted - 1.0;
    }
};

constexpr Region kEmptyRegion = {};

// The mean score over the grid's pixels, carried over to full size; through a double, since the product can pass 64 bits.
TFISEG_HD int64_t carried_score(int64_t grid_score_sum, int64_t grid_area, int64_t area) {
    return int64_t(double(grid_score_sum) / double(grid_area) * double(area) + 0.5);
}

// One row of the result's table.
TFISEG_HD void write_row(const Region &r, bool has_scores, bool is_stopped, int32_t out_h, int32_t out_w, float *row) {
    const double n = double(r.area);
    const bool edge = r.x0 == 0 || r.y0 == 0 || r.x1 == out_w || r.y1 == out_h;
    const int32_t flags = (edge ? TFISEG_FLAG_TOUCHES_EDGE : 0) | (is_stopped ? TFISEG_FLAG_MERGE_STOPPED : 0);
    row[0] = float(r.class_id);
    row[1] = has_scores ? float(double(r.score_sum) / (n * kFixedPoint)) : 1.0f;
    row[2] = float(r.x0);
    row[3] = float(r.y0);
    row[4] = float(r.x1);
    row[5] = float(r.y1);
    row[6] = float(n);
    row[7] = float(double(r.sum_x) / n);
    row[8] = float(double(r.sum_y) / n);
    row[9] = float(flags);
}

}  // namespace tfiseg
