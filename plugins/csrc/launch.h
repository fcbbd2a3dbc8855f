// The CPU launcher: a team of threads that runs functors over ranges, with a barrier between phases.
//
// Threads live for one call only, so that a fork, an exit or another library never meets them.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace tfiseg {

// Loops over runs are compiled for wider vectors too, where the linker picks by processor (x86-64 Linux).
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define TFISEG_CLONES __attribute__((target_clones("default", "avx2")))
#else
#define TFISEG_CLONES
#endif

// The next run [x0, x1) of non-zero bytes in [x0, end); x0 == end if there is none. Eight pixels at a time: much of a picture is
// background, and a byte loop over it costs as much as the work on objects.
inline bool next_run(const uint8_t *row, int64_t end, int64_t &x0, int64_t &x1) {
    const auto word = [row](int64_t x) {
        uint64_t v;
        std::memcpy(&v, row + x, sizeof v);
        return v;
    };
    while (x0 + 8 <= end && word(x0) == 0) x0 += 8;
    while (x0 < end && row[x0] == 0) ++x0;
    x1 = x0;
    constexpr uint64_t kOnes = 0x0101010101010101ull;
    while (x1 + 8 <= end && !((word(x1) - kOnes) & ~word(x1) & (kOnes << 7))) x1 += 8;
    while (x1 < end && row[x1] != 0) ++x1;
    return x0 < end;
}

class Team {
    static constexpr int32_t kMostThreads = 1024;

  public:
    explicit Team(int32_t threads) {
        try {
            workers_.reserve(size_t(std::min(std::max(threads, 1), kMostThreads)));
            for (int32_t i = 1; i < std::min(threads, kMostThreads); ++i) workers_.emplace_back([this] { work(); });
        } catch (const std::exception &) {
            // the system gives no more threads or memory: the existing ones do the work, with the same result. An exception that left
            // here would end the process, because they are running
        }
    }

    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    ~Team() {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread &t : workers_) t.join();
    }

    int32_t size() const { return int32_t(workers_.size()) + 1; }

    // Run body(begin, end, block) over [0, n) in blocks of at least `grain`; block b of B covers [n b / B, n (b + 1) / B).
    // Returns the number of blocks.
    int32_t run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int32_t)> &body) {
        const int32_t blocks = blocks_of(n, grain);
        if (blocks <= 1) {
            if (n > 0) body(0, n, 0);
            return 1;
        }
        {
            std::lock_guard<std::mutex> hold(mutex_);
            body_ = &body;
            n_ = n;
            blocks_ = blocks;
            next_ = 0;
            left_ = blocks;
            ++round_;
        }
        wake_.notify_all();
        take_blocks();
        std::unique_lock<std::mutex> hold(mutex_);
        done_.wait(hold, [this] { return left_ == 0; });
        body_ = nullptr;
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
        return blocks;
    }

    int32_t blocks_of(int64_t n, int64_t grain) const {
        return int32_t(std::max<int64_t>(1, std::min<int64_t>(size(), n / std::max<int64_t>(grain, 1))));
    }

  private:
    void take_blocks() {
        std::unique_lock<std::mutex> hold(mutex_);
        while (body_ && next_ < blocks_) {
            const int32_t block = next_++;
            const auto *body = body_;
            const int64_t n = n_, blocks = blocks_;
            hold.unlock();
            std::exception_ptr failed;
            try {
                (*body)(n * block / blocks, n * (block + 1) / blocks, block);
            } catch (...) {
                failed = std::current_exception();
            }
            hold.lock();
            if (failed && !failure_) failure_ = failed;
            if (--left_ == 0) done_.notify_one();
        }
    }

    void work() {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [&] { return stop_ || round_ != seen; });
                if (stop_) return;
                seen = round_;
            }
            take_blocks();
        }
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t, int64_t, int32_t)> *body_ = nullptr;
    int64_t n_ = 0;
    int32_t blocks_ = 0, next_ = 0, left_ = 0;
    uint64_t round_ = 0;
    bool stop_ = false;
    std::exception_ptr failure_;  // the first of a phase; thrown again on the calling thread when all blocks are done
};

}  // namespace tfiseg
