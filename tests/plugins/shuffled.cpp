// Runs the GPU phases on a CPU in an order that is possible on a GPU: blocks in random order, threads of a block in random order, and
// optionally several blocks at once. Code that depends on the order gives another result here, or a data race in ThreadSanitizer.
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "../../plugins/csrc/check.h"
#include "../../plugins/csrc/fit.h"
#include "../../plugins/csrc/mask_refinement_pipeline.h"
#include "../../plugins/csrc/mask_views.h"

namespace {

class Shuffled {
  public:
    Shuffled(uint32_t seed, int32_t threads) : random_(seed), threads_(threads) {}

    template <class Phase>
    void each(int64_t n, const Phase &phase) {
        const int64_t blocks = (n + kBlock - 1) / kBlock;
        std::vector<int64_t> order(static_cast<size_t>(blocks));
        std::iota(order.begin(), order.end(), int64_t(0));
        std::shuffle(order.begin(), order.end(), random_);
        std::vector<int32_t> lanes(kBlock);
        std::iota(lanes.begin(), lanes.end(), 0);
        std::shuffle(lanes.begin(), lanes.end(), random_);
        const auto work = [&](size_t first, size_t step) {
            for (size_t b = first; b < order.size(); b += step)
                for (const int32_t lane : lanes)
                    if (const int64_t i = order[b] * kBlock + lane; i < n) phase(static_cast<decltype(index_of(phase))>(i));
        };
        if (threads_ <= 1 || blocks < 2) return work(0, 1);
        std::vector<std::thread> workers;
        for (int32_t t = 0; t < threads_; ++t) workers.emplace_back(work, size_t(t), size_t(threads_));
        for (std::thread &worker : workers) worker.join();
    }

    template <class Phase>
    void each_counted(const int32_t *count, int64_t limit, const Phase &phase) {
        each(std::min<int64_t>(*count, limit), phase);
    }

    template <class Phases>
    void rounds(const Phases &phases) {
        for (int32_t round = 0;; ++round) {
            for (int32_t phase = 0; phase < Phases::kPhases; ++phase)
                each(phases.items(phase, round), [&](int32_t k) { phases(phase, round, k); });
            if (!phases.has_next(round)) break;
        }
    }

    // Runs tiles in random order, optionally several at once. The items of a tile share memory, so one thread runs them in random order.
    template <class Phase>
    void tiles(int64_t n, const Phase &phase) {
        std::vector<int32_t> items(Phase::kItems);
        std::iota(items.begin(), items.end(), 0);
        std::shuffle(items.begin(), items.end(), random_);
        each(n, [&](int64_t tile) {
            const std::unique_ptr<typename Phase::Shared> shared(new typename Phase::Shared);  // not initialized, as on a GPU
            for (int32_t step = 0; step < Phase::kSteps; ++step)
                for (const int32_t item : items) phase(*shared, tile, step, item);
        });
    }

    void exclusive_sum(int32_t *counts, int64_t n) { tfiseg::sum_exclusively(counts, n); }

    template <class Body>
    void solo(tfiseg::DeviceCounts, int32_t, const Body &body) {
        body();
    }

    // With shared memory where a GPU uses it.
    template <class Shared, class Body>
    void solo_sharing(tfiseg::DeviceCounts counts, int32_t most, const Body &body) {
        const std::unique_ptr<Shared> shared(new Shared);
        std::memset(static_cast<void *>(shared.get()), 0xCD, sizeof(Shared));  // not initialized, as on a GPU
        const bool is_small = *counts.first <= most && *counts.second <= std::min(most, Shared::kMost);
        body(is_small ? shared.get() : nullptr);
    }

    template <class Section>
    void section(int64_t, const Section &section) {
        section(*this);
    }

  private:
    // The type of a phase's index: int32_t or int64_t.
    template <class Phase, class Index>
    static Index argument(void (Phase::*)(Index) const);
    template <class Phase>
    static decltype(argument(&Phase::operator())) index_of(const Phase &);

    static constexpr int64_t kBlock = 64;
    std::mt19937 random_;
    int32_t threads_;
};

}  // namespace

// The functions of these names in cuda_runner.cu run the phases on a GPU.
extern "C" TFISEG_API int32_t cluster_by_phases(const tfiseg_problem *problem, tfiseg_result *result, uint32_t seed, int32_t threads) {
    if (const int32_t status = tfiseg::check(problem, result, TFISEG_ON_CUDA)) return status;
    Shuffled executor(seed, threads);
    tfiseg::cluster_on(executor, *problem, *result);
    return TFISEG_OK;
}

extern "C" TFISEG_API int32_t cut_views_by_phases(const tfiseg_views *views, uint32_t seed, int32_t threads) {
    if (const int32_t status = tfiseg::check(views)) return status;
    Shuffled executor(seed, threads);
    tfiseg::cut_views_on(executor, *views);
    return TFISEG_OK;
}

extern "C" TFISEG_API int32_t place_pieces_by_phases(const tfiseg_views *views, const tfiseg_pieces *pieces, uint32_t seed, int32_t threads) {
    if (const int32_t status = tfiseg::check(views, pieces)) return status;
    Shuffled executor(seed, threads);
    tfiseg::place_pieces_on(executor, *views, *pieces);
    return TFISEG_OK;
}

extern "C" TFISEG_API int32_t fit_by_phases(const uint8_t *frame, int32_t height, int32_t width, float *out, int32_t out_height, int32_t out_width,
                                            uint32_t seed, int32_t threads) {
    if (const int32_t status = tfiseg::check_fit(frame, height, width, out, out_height, out_width)) return status;
    const tfiseg::FitTiles fit(frame, height, width, out, out_height, out_width);
    Shuffled(seed, threads).tiles(fit.tiles(), fit);
    return TFISEG_OK;
}

extern "C" TFISEG_API int32_t refine_masks_by_phases(const tfiseg_mask_refinement *refinement, uint32_t seed, int32_t threads) {
    if (const int32_t status = tfiseg::check(refinement)) return status;
    Shuffled executor(seed, threads);
    tfiseg::refine_masks_on(executor, *refinement);
    return TFISEG_OK;
}

extern "C" TFISEG_API int32_t cut_mask_views_by_phases(const tfiseg_mask_views *views, uint32_t seed, int32_t threads) {
    if (const int32_t status = tfiseg::check(views)) return status;
    Shuffled executor(seed, threads);
    tfiseg::cut_mask_views_on(executor, *views);
    return TFISEG_OK;
}
