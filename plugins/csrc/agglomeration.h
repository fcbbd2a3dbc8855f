// Merging of regions on the CPU, in rounds: every region names its best edge (largest score; of equal ones, that with the smallest pair of
// regions in it), pairs that name each other merge, until no score is above 0. graph_phases.h does the same with many threads, and gives the
// same result.
//
// A round costs as much as what the last one changed. Where a score depends on the edge alone (affinity, boundary) or also on the peaks
// (a fixed split ratio), that is the part of the union with fewer edges, so all merges together take O(E log^2 E). Where a score depends
// on the shape of both regions, every edge of a union changes with it; merge_budget() bounds these.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "link_graph.h"
#include "merge.h"

namespace tfiseg {

// When two unions merge, the node with more links takes the other's. The sums of a union are those of its node's region.
class Agglomeration : private LinkGraph {
  public:
    // pixels: of the picture, which bound the work (merge_budget). pairs: of pixels, at all offsets from every pixel.
    Agglomeration(LargeVector<Region> &regions, const LargeVector<Edge> &edges, const MergeRule &rule, int64_t pixels, int64_t pairs)
        : LinkGraph(regions.size(), edges, rule, pairs), regions_(regions), rule_(rule), budget_(merge_budget(pixels)),
          reads_regions_(!rule.reads_one_mean()), fresh_(reads_regions_ ? regions.size() : 0), parent_(regions.size()),
          scored_in_(is_scored_by_shape() ? edges.size() : 0, -1) {
        for (size_t r = 0; r < nodes_.size(); ++r) parent_[r] = int32_t(r);
        for (size_t k = 0; k < scores_.size(); ++k) update_score(int32_t(k));
        for (size_t r = 0; r < nodes_.size(); ++r) use_queue_if_large(int32_t(r));
    }

    // For each region the smallest region of its union; regions[that] then holds the sums. To be called once.
    std::vector<int32_t> run() {
        if (reads_regions_) {
            run_rounds();
        } else {
            run_chains();
        }
        for (size_t r = 0; r < parent_.size(); ++r) {
            parent_[r] = parent_[size_t(parent_[r])];  // parents are smaller: already final
            if (!reads_regions_ && parent_[r] != int32_t(r)) regions_[size_t(parent_[r])].absorb(regions_[r]);
        }
        return std::move(parent_);
    }

    // The budget ended it: unions may be parts of what they would have become.
    bool is_stopped() const { return is_stopped_; }

  private:
    static constexpr int32_t kLargeDegree = 32;  // nodes of more links keep a queue; with fewer, all are visited

    Region &union_of(int32_t n) { return regions_[size_t(node(n).region)]; }
    bool depends_on_shape(int32_t n) { return reads_regions_ && rule_.depends_on_shape(union_of(n).class_id); }

    // Whether the scores of some links change with the shape of a union.
    bool is_scored_by_shape() const { return rule_.evidence || (rule_.geometric && !rule_.with_affinity); }

    void run_rounds() {
        std::vector<int32_t> visited(parent_), pairs, merged;  // visited: nodes whose best link may have changed
        for (round_ = 0; !visited.empty(); ++round_) {
            find_mutual_pairs(visited, pairs);
            changed_.clear();
            merged.clear();
            for (const int32_t k : pairs)
                if (is_alive(k)) merged.push_back(merge(k));
            for (const int32_t n : merged) {
                fresh_.insert(n);
                if (depends_on_shape(n)) update_all_scores(n);
            }
            for (const int32_t k : changed_) update_changed_score(k);
            if (rescored_ > budget_) {
                is_stopped_ = true;
                break;
            }
            fresh_.take(visited);
        }
    }

    // The same result without rounds. A link that two links became is never better than both: its mean is not, nor is its quotient, which is
    // rounded. So a mutual pair stays one whatever merges elsewhere, and pairs may merge in any order: here from neighbor to neighbor, while
    // all of this is in the cache.
    void run_chains() {
        std::vector<int32_t> chain;
        for (int32_t start = 0; start < int32_t(nodes_.size()); ++start) {
            chain.assign(1, start);
            while (!chain.empty()) {
                const int32_t n = chain.back(), k = best_link(n);
                if (k < 0) {  // or n has merged
                    chain.pop_back();
                    continue;
                }
                const int32_t next = other_end(k, n);
                if (best_link(next) != k) {
                    chain.push_back(next);
                    continue;
                }
                chain.back() = merge(k);
            }
        }
    }

    // A pair is found from both its ends if both were visited; run_rounds() merges it once.
    void find_mutual_pairs(const std::vector<int32_t> &visited, std::vector<int32_t> &pairs) {
        pairs.clear();
        for (const int32_t n : visited) {
            const int32_t k = best_link(n);
            if (k >= 0 && best_link(other_end(k, n)) == k) pairs.push_back(k);
        }
    }

    int32_t best_link(int32_t n) {
        Node &of = node(n);
        if (!of.is_best_known) {
            of.best = of.queue >= 0 ? first_in_queue(queue_of(of)) : best_of_all(n);
            of.is_best_known = true;
        }
        return of.best;
    }

    int32_t best_of_all(int32_t n) {
        Node &of = node(n);
        if (of.links.size > 2 * of.degree + 8) erase_dead(of.links);
        int32_t best = -1;
        double highest = 0.0;
        for (const int32_t *k = lists_.begin(of.links), *end = lists_.end(of.links); k < end; ++k) {
            const double score = scores_[size_t(*k)];
            if (score > highest || (score == highest && *k < best)) {
                best = *k;
                highest = score;
            }
        }
        return best;
    }

    // A link of a node has a new score. One of its ends has merged and will be visited: it asks the other end for its best link. So a node
    // that finds a better link need not be visited, only one that may have lost its best.
    void update_best(int32_t n, int32_t k, double old_score) {
        Node &of = node(n);
        if (!of.is_best_known) return;
        const double score = scores_[size_t(k)];
        if (of.best == k) {
            if (score < old_score) forget_best(n, k);
            return;
        }
        const double highest = of.best < 0 ? 0.0 : scores_[size_t(of.best)];
        if (score > highest || (score == highest && k < of.best)) of.best = k;
    }

    void use_queue_if_large(int32_t n) {
        Node &of = node(n);
        if (of.queue >= 0 || of.degree <= kLargeDegree || depends_on_shape(n)) return;
        of.queue = int32_t(queues_.size());
        queues_.emplace_back();
        Queue &queue = queues_.back();
        for (const int32_t *k = lists_.begin(of.links), *end = lists_.end(of.links); k < end; ++k) {
            if (!is_alive(*k)) continue;
            const int32_t neighbor = other_end(*k, n);
            ++node(neighbor).links.to_large;
            mark_[size_t(neighbor)] = *k;
            if (score(*k) > 0.0) queue.push_back({score(*k), *k});
            index_link(*k);
        }
        std::make_heap(queue.begin(), queue.end());
    }

    // Merge the two nodes of a link; returns the one that stays.
    int32_t merge(int32_t k) {
        int32_t keep = ends(k)[0], drop = ends(k)[1];
        if (node(keep).degree < node(drop).degree) std::swap(keep, drop);
        const int32_t first = std::min(node(keep).region, node(drop).region), second = std::max(node(keep).region, node(drop).region);
        const int64_t peak = reads_regions_ ? union_of(keep).peak : 0;
        if (reads_regions_) regions_[size_t(first)].absorb(regions_[size_t(second)]);
        parent_[size_t(second)] = first;
        node(keep).region = first;
        node(keep).is_best_known = false;
        kill(k);
        --node(keep).degree;
        if (is_large(drop)) --node(keep).links.to_large;
        move_links(drop, keep);
        use_queue_if_large(keep);
        if (reads_regions_ && union_of(keep).peak != peak && !depends_on_shape(keep))  // then all of its links changed
            changed_.insert(changed_.end(), lists_.begin(node(keep).links), lists_.end(node(keep).links));
        return keep;
    }

    // Links of both nodes to one neighbor become one.
    void move_links(int32_t from, int32_t to) {
        make_room(node(to), node(from).degree);
        if (!is_large(to)) mark_neighbors(to);
        for (const int32_t *k = lists_.begin(node(from).links), *end = lists_.end(node(from).links); k < end; ++k) {
            if (!is_alive(*k)) continue;
            const int32_t neighbor = other_end(*k, from), twin = find_link(to, neighbor);
            if (is_large(from)) --node(neighbor).links.to_large;
            if (twin >= 0 && twin < *k) {
                join_links(twin, *k, neighbor);
                announce_link(twin, to, true);
                continue;
            }
            ends(*k)[ends(*k)[1] == from] = to;
            list_link(to, neighbor, *k);
            if (twin >= 0) {
                join_links(*k, twin, neighbor);
            } else {
                count_link(to, neighbor);
            }
            announce_link(*k, to, twin >= 0);
        }
        lists_.release(node(from).links);
        if (is_large(from)) queue_of(node(from)) = Queue();
        node(from) = Node();
    }

    // The one with the smaller number stays, since that decides between equal scores.
    void join_links(int32_t stays, int32_t other, int32_t neighbor) {
        sums_.absorb(stays, other);
        kill(other);
        --node(neighbor).degree;
        forget_best(neighbor, other);
    }

    // A link of node n has other sums, or is new there. Where its score reads nothing else, it gets its new score while all of this is in the
    // cache; else at the end of the round, when its ends no longer change.
    void announce_link(int32_t k, int32_t n, bool has_new_sums) {
        if (reads_regions_) {
            changed_.push_back(k);
        } else if (has_new_sums) {
            update_changed_score(k);
        } else {
            enqueue(k, n);
        }
    }

    void forget_best(int32_t n, int32_t k) {
        if (node(n).best != k) return;
        node(n).is_best_known = false;
        if (reads_regions_) fresh_.insert(n);
    }

    void update_score(int32_t k) {
        if (!reads_regions_) {
            score(k) = sums_.score(k, rule_, kEmptyRegion, kEmptyRegion);
            return;
        }
        const int32_t a = node(ends(k)[0]).region, b = node(ends(k)[1]).region;
        score(k) = sums_.score(k, rule_, regions_[size_t(std::min(a, b))], regions_[size_t(std::max(a, b))]);
    }

    // Of a union whose shape decides: each link once a round, also where both ends merged.
    void update_all_scores(int32_t n) {
        Node &of = node(n);
        if (of.links.size > 2 * of.degree + 8) erase_dead(of.links);
        for (const int32_t *k = lists_.begin(of.links), *end = lists_.end(of.links); k < end; ++k) {
            if (!is_alive(*k)) continue;
            if (scored_in_[size_t(*k)] == round_) continue;
            scored_in_[size_t(*k)] = round_;
            ++rescored_;
            const double old_score = score(*k);
            update_score(*k);
            update_best(other_end(*k, n), *k, old_score);
        }
    }

    void update_changed_score(int32_t k) {
        if (!is_alive(k)) return;
        if (!scored_in_.empty()) {
            if (scored_in_[size_t(k)] == round_) return;
            scored_in_[size_t(k)] = round_;
        }
        const double old_score = score(k);
        update_score(k);
        for (const int32_t n : ends(k)) {
            update_best(n, k, old_score);
            enqueue(k, n);
        }
    }

    LargeVector<Region> &regions_;
    const MergeRule &rule_;
    const int64_t budget_;
    const bool reads_regions_;  // else regions are summed once, at the end: reading two for each merge takes longer
    int64_t rescored_ = 0;
    int32_t round_ = 0;
    bool is_stopped_ = false;
    NodeSet fresh_;  // nodes whose best link may have changed in this round; run_chains() needs none
    std::vector<int32_t> parent_;
    LargeVector<int32_t> scored_in_;  // the last round that updated a link's score, -1: the start; empty where shape does not count
    std::vector<int32_t> changed_;    // links whose score may have changed in this round
};

}  // namespace tfiseg
