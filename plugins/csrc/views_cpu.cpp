// Views and mask refinement on a CPU: the executor that runs the phases of views.h and mask_refinement.h on a team of threads.
#include <new>

#include "check.h"
#include "graph.h"
#include "launch.h"
#include "mask_refinement_pipeline.h"
#include "mask_views.h"

namespace tfiseg {
namespace {

constexpr int64_t kGrain = 1 << 12;  // items for which another thread is worth its start

class Threads {
  public:
    explicit Threads(int32_t threads) : team_(threads) {}

    template <class Phase>
    void each(int64_t n, const Phase &phase) {
        team_.run(n, kGrain, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t i = begin; i < end; ++i) phase(static_cast<decltype(index_of(&Phase::operator()))>(i));
        });
    }

    // By runs of rows, which takes a fraction of the time.
    void each(int64_t, const SumUnions &sums) { add_runs(sums.map, nullptr, sums.fixed_scores, sums.grid.w, 0, sums.grid.h, sums.regions); }

    template <class Phase>
    void each_counted(const int32_t *count, int64_t most, const Phase &phase) {
        each(std::min<int64_t>(*count, most), phase);
    }

    template <class Phases>
    void rounds(const Phases &phases) {
        for (int32_t round = 0;; ++round) {
            for (int32_t phase = 0; phase < Phases::kPhases; ++phase)
                for (int32_t k = 0, n = phases.items(phase, round); k < n; ++k) phases(phase, round, k);
            if (!phases.has_next(round)) return;
        }
    }

    void exclusive_sum(int32_t *counts, int64_t n) { sum_exclusively(counts, n); }

    template <class Body>
    void solo(DeviceCounts, int32_t, const Body &body) {
        body();
    }

    template <class Section>
    void section(int64_t, const Section &section) {
        section(*this);
    }

  private:
    // What a phase takes: int32_t or int64_t.
    template <class Phase, class Index>
    static Index index_of(void (Phase::*)(Index) const);

    Team team_;
};

// No phase has more items than the frame has pixels or the candidates have cells; further threads would only be started and joined.
int32_t useful_threads(const tfiseg_views &v) {
    const int64_t cells = int64_t(kCandidatesPerView) * v.view_count * v.view_side * v.view_side;
    return int32_t(std::min<int64_t>(v.threads, 1 + std::max(cells, int64_t(v.height) * v.width) / kGrain));
}

int32_t useful_threads(const tfiseg_mask_views &v) {
    return int32_t(std::min<int64_t>(v.threads, 1 + int64_t(v.view_count) * v.view_side * v.view_side / kGrain));
}

int32_t useful_threads(const tfiseg_mask_refinement &r) { return int32_t(std::min<int64_t>(r.threads, 1 + int64_t(r.height) * r.width / kGrain)); }

template <class Work>
int32_t guarded(const Work &work) {
    try {
        work();
    } catch (const std::bad_alloc &) {
        return TFISEG_OUT_OF_MEMORY;
    } catch (...) {
        return TFISEG_INTERNAL_ERROR;
    }
    return TFISEG_OK;
}

}  // namespace
}  // namespace tfiseg

extern "C" {

int32_t tfiseg_cut_views_cpu(const tfiseg_views *views) {
    if (const int32_t status = tfiseg::check(views)) return status;
    return tfiseg::guarded([&] {
        tfiseg::Threads executor(tfiseg::useful_threads(*views));
        tfiseg::cut_views_on(executor, *views);
    });
}

int32_t tfiseg_place_pieces_cpu(const tfiseg_views *views, const tfiseg_pieces *pieces) {
    if (const int32_t status = tfiseg::check(views, pieces)) return status;
    return tfiseg::guarded([&] {
        tfiseg::Threads executor(tfiseg::useful_threads(*views));
        tfiseg::place_pieces_on(executor, *views, *pieces);
    });
}

int32_t tfiseg_relabel_cpu(const int32_t *label_map, int32_t height, int32_t width, const int32_t *numbers, const uint8_t *classes, int32_t count,
                           int32_t *relabeled, uint8_t *class_map) {
    if (const int32_t status = tfiseg::check_relabel(label_map, height, width, numbers, classes, count, relabeled, class_map)) return status;
    return tfiseg::guarded([&] {
        tfiseg::Threads executor(1);
        executor.each(int64_t(height) * width, tfiseg::Relabel{label_map, numbers, classes, count, relabeled, class_map});
    });
}

int32_t tfiseg_cut_mask_views_cpu(const tfiseg_mask_views *views) {
    if (const int32_t status = tfiseg::check(views)) return status;
    return tfiseg::guarded([&] {
        tfiseg::Threads executor(tfiseg::useful_threads(*views));
        tfiseg::cut_mask_views_on(executor, *views);
    });
}

int32_t tfiseg_refine_masks_cpu(const tfiseg_mask_refinement *refinement) {
    if (const int32_t status = tfiseg::check(refinement)) return status;
    return tfiseg::guarded([&] {
        tfiseg::Threads executor(tfiseg::useful_threads(*refinement));
        tfiseg::refine_masks_on(executor, *refinement);
    });
}

}  // extern "C"
