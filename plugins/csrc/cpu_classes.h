// First phase on the CPU: logits -> classes, countable classes and fixed-point scores.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_picture.h"
#include "merge.h"

namespace tfiseg {

class ClassPhase {
  public:
    explicit ClassPhase(Picture &picture) : picture_(picture), things_(picture.problem.things) {
        all_are_things_ = std::all_of(things_ + 1, things_ + 255, [](uint8_t flag) { return flag != 0; });
    }

    void run() {
        Picture &p = picture_;
        p.cls = p.arena.take<uint8_t>(p.n);
        if (p.logits) p.semantic = p.arena.take<uint8_t>(p.n);
        if (p.has_scores()) p.fixed_scores = p.arena.take<uint16_t>(p.n);
        p.team.run(p.n, 1 << 12, [&](int64_t begin, int64_t end, int32_t) {
            if (p.logits) find_classes(begin, end);
            find_countable(begin, end);
            if (p.scores) {
                for (int64_t i = begin; i < end; ++i) p.fixed_scores[i] = uint16_t(to_fixed(p.scores[i]));
            } else if (p.logits) {
                find_scores(begin, end);
            }
        });
    }

  private:
    void find_classes(int64_t begin, int64_t end) {
        std::vector<float> best(picture_.logits + begin, picture_.logits + end);
        uint8_t *winner = picture_.semantic + begin;
        std::fill_n(winner, end - begin, uint8_t(0));
        for (int32_t k = 1; k < picture_.problem.classes; ++k) {
            const float *plane = picture_.logits + k * picture_.n + begin;
            for (int64_t i = 0; i < end - begin; ++i) {
                const bool higher = plane[i] > best[size_t(i)];
                best[size_t(i)] = higher ? plane[i] : best[size_t(i)];
                winner[i] = higher ? uint8_t(k) : winner[i];
            }
        }
    }

    void find_countable(int64_t begin, int64_t end) {
        const uint8_t *from = picture_.logits ? picture_.semantic : picture_.class_map;
        uint8_t *to = picture_.cls;
        if (all_are_things_) {  // the default, and a loop that vectorizes
            for (int64_t i = begin; i < end; ++i) to[i] = from[i] == 255 ? uint8_t(0) : from[i];
        } else {
            for (int64_t i = begin; i < end; ++i) to[i] = from[i] != 255 && things_[from[i]] ? from[i] : uint8_t(0);
        }
    }

    // Softmax probability of the winning class. Scores may differ between builds in the last bit; no decision reads them.
    void find_scores(int64_t begin, int64_t end) {
        const Picture &p = picture_;
        for (int64_t i = begin; i < end; ++i) {
            if (!p.cls[i]) {
                p.fixed_scores[i] = 0;
                continue;
            }
            const float top = p.logits[p.semantic[i] * p.n + i];
            float sum = 0.0f;
            for (int32_t k = 0; k < p.problem.classes; ++k) sum += std::exp(p.logits[k * p.n + i] - top);
            p.fixed_scores[i] = uint16_t(to_fixed(1.0f / sum));
        }
    }

    Picture &picture_;
    const uint8_t *things_;
    bool all_are_things_;
};

}  // namespace tfiseg
