// Ranks of marked bits: how many bits are marked before one. Only every 32nd word of the bit map has a prefix count, so that little is
// summed serially; a rank adds the bits of at most 31 words.
#pragma once
#include "four.h"

namespace tfiseg {

constexpr int32_t kWordsPerCount = 32;

TFISEG_HD int64_t counts_of(int64_t words) { return (words + kWordsPerCount - 1) / kWordsPerCount; }

// Counts the marked bits of a group of words. One item is a group; Executor::exclusive_sum then makes prefix counts of the counts.
struct CountBits {
    const uint32_t *bits;
    int64_t words;
    int32_t *counts;  // out

    TFISEG_HD void operator()(int32_t k) const {
        int64_t word = int64_t(k) * kWordsPerCount;
        const int64_t end = word + kWordsPerCount < words ? word + kWordsPerCount : words;
        int32_t count = 0;
        for (; word + 4 <= end; word += 4) {
            const Four<uint32_t> four = load_four(bits + word);
            for (int32_t j = 0; j < 4; ++j) count += bit_count(four[j]);
        }
        for (; word < end; ++word) count += bit_count(bits[word]);
        counts[k] = count;
    }
};

// Marked bits before a bit. prefix_count: of each group of words.
TFISEG_HD int32_t bits_before(const uint32_t *bits, const int32_t *prefix_count, int64_t bit) {
    const int64_t word = bit >> 5;
    int32_t count = prefix_count[word / kWordsPerCount];
    for (int64_t k = word / kWordsPerCount * kWordsPerCount; k < word; ++k) count += bit_count(bits[k]);
    return count + bit_count(bits[word] & ((1u << (bit & 31)) - 1u));
}

// Replaces n counts by their exclusive sums, in one thread; counts[n] becomes the total.
inline void sum_exclusively(int32_t *counts, int64_t n) {
    int32_t sum = 0;
    for (int64_t k = 0; k < n; ++k) {
        const int32_t count = counts[k];
        counts[k] = sum;
        sum += count;
    }
    counts[n] = sum;
}

}  // namespace tfiseg
