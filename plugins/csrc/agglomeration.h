// Merging of regions on the CPU, in rounds: every region names its best edge (largest score; ties: smallest pair of regions), pairs that
// name each other merge, until no score is above 0. graph_phases.h does the same with many threads, and gives the same result.
//
// A round costs as much as what the last one changed. Where a score depends on the edge alone (affinity, boundary) or also on the peaks
// (a fixed split ratio), that is the part of the union with fewer edges, so all rounds together take O(E log^2 E). Where a score depends
// on the shape of both regions, every edge of a union changes with it; merge_budget() bounds these.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "merge.h"

namespace tfiseg {

// Numbers by pairs of regions. Entries stay: a pair that merged is never looked up again.
class PairIndex {
  public:
    PairIndex() : slots_(1024, Slot{0, 0, -1}) {}

    // The number of a pair; -1 if it has none.
    int32_t find(int32_t a, int32_t b) const { return slots_[slot_of(std::min(a, b), std::max(a, b))].number; }

    void set(int32_t a, int32_t b, int32_t number) {
        if (2 * (count_ + 1) > slots_.size()) grow();
        Slot &slot = slots_[slot_of(std::min(a, b), std::max(a, b))];
        if (slot.number < 0) ++count_;
        slot = {std::min(a, b), std::max(a, b), number};
    }

  private:
    struct Slot {
        int32_t a, b, number;  // number -1: free
    };

    size_t slot_of(int32_t a, int32_t b) const {
        const uint64_t key = (uint64_t(uint32_t(a)) << 32 | uint32_t(b)) * 0x9E3779B97F4A7C15ull;
        size_t slot = size_t(key >> 32) & (slots_.size() - 1);
        while (slots_[slot].number >= 0 && (slots_[slot].a != a || slots_[slot].b != b)) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    void grow() {
        std::vector<Slot> old(slots_.size() * 2, Slot{0, 0, -1});
        old.swap(slots_);
        for (const Slot &slot : old)
            if (slot.number >= 0) slots_[slot_of(slot.a, slot.b)] = slot;
    }

    std::vector<Slot> slots_;
    size_t count_ = 0;
};

// A node holds the links of one union; when two unions merge, the node with more links takes the other's. `region` of a node is the smallest
// region of its union, which holds the union's sums and orders ties.
class Agglomeration {
  public:
    // pixels: of the picture, which bound the work (merge_budget).
    Agglomeration(std::vector<Region> &regions, const std::vector<Edge> &edges, const MergeRule &rule, int64_t pixels)
        : regions_(regions), rule_(rule), budget_(merge_budget(pixels)), nodes_(regions.size()), parent_(regions.size()) {
        for (size_t r = 0; r < nodes_.size(); ++r) nodes_[r].region = parent_[r] = int32_t(r);
        links_.reserve(edges.size());
        for (const Edge &edge : edges) {
            const int32_t k = int32_t(links_.size());
            links_.push_back({edge, edge.a, edge.b, 0.0, -1});
            for (const int32_t end : {edge.a, edge.b}) {
                nodes_[size_t(end)].links.push_back(k);
                ++nodes_[size_t(end)].degree;
            }
            index_.set(edge.a, edge.b, k);
            update_score(k);
        }
        for (size_t r = 0; r < nodes_.size(); ++r) use_queue_if_large(int32_t(r));
    }

    // For each region the smallest region of its union; regions[that] then holds the sums.
    std::vector<int32_t> run() {
        std::vector<int32_t> fresh(parent_);  // nodes whose best link may have changed
        for (round_ = 0; !fresh.empty(); ++round_) {
            const std::vector<int32_t> pairs = mutual_pairs(fresh);
            fresh.clear();
            changed_.clear();
            for (const int32_t k : pairs) fresh.push_back(merge(k));
            const std::vector<int32_t> merged(fresh);
            for (const int32_t node : merged)
                if (depends_on_shape(node)) update_all_scores(node, fresh);
            for (const int32_t k : changed_) update_changed_score(k, fresh);
            if (rescored_ > budget_) {
                is_stopped_ = true;
                break;
            }
            std::sort(fresh.begin(), fresh.end());
            fresh.erase(std::unique(fresh.begin(), fresh.end()), fresh.end());
        }
        for (size_t r = 0; r < parent_.size(); ++r) parent_[r] = parent_[size_t(parent_[r])];  // parents are smaller: already final
        return parent_;
    }

    // The budget ended it: unions may be parts of what they would have become.
    bool is_stopped() const { return is_stopped_; }

  private:
    static constexpr int32_t kLargeDegree = 32;  // nodes of more links keep a queue; with fewer, all are looked at

    struct Link {
        Edge edge;         // the sums
        int32_t ends[2];   // nodes
        double score;
        int32_t scored_in;  // the last round that updated the score; -1: the start
        bool is_alive = true;

        Link(const Edge &sums, int32_t a, int32_t b, double start, int32_t round) : edge(sums), ends{a, b}, score(start), scored_in(round) {}
    };

    // A link as it was when it was queued: out of date where its score or the region at its other end has changed since.
    struct Candidate {
        double score;
        int32_t neighbor, link;

        bool operator<(const Candidate &o) const { return score != o.score ? score < o.score : neighbor > o.neighbor; }
    };

    struct Queue {
        std::vector<Candidate> heap;
        std::vector<int32_t> links;  // to other nodes with a queue; some of them dead
    };

    struct Node {
        int32_t region = 0, degree = 0;     // degree: links that are alive
        int32_t best = -1, best_in = -1;    // link, and the round it was chosen in
        std::vector<int32_t> links;         // some of them dead
        std::unique_ptr<Queue> queue = {};  // NULL: all links are looked at
    };

    Node &node(int32_t n) { return nodes_[size_t(n)]; }
    Link &link(int32_t k) { return links_[size_t(k)]; }
    int32_t other_end(int32_t k, int32_t n) { return link(k).ends[link(k).ends[0] == n]; }
    int32_t region_at(int32_t k, int32_t n) { return node(other_end(k, n)).region; }
    Region &union_of(int32_t n) { return regions_[size_t(node(n).region)]; }
    bool depends_on_shape(int32_t n) { return rule_.depends_on_shape(union_of(n).class_id); }

    std::vector<int32_t> mutual_pairs(const std::vector<int32_t> &fresh) {
        std::vector<int32_t> pairs;
        for (const int32_t n : fresh) {
            const int32_t k = best_link(n);
            if (k >= 0 && best_link(other_end(k, n)) == k) pairs.push_back(k);
        }
        std::sort(pairs.begin(), pairs.end());
        pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
        return pairs;
    }

    int32_t best_link(int32_t n) {
        Node &of = node(n);
        if (of.best_in != round_) {
            of.best_in = round_;
            of.best = of.queue ? first_in_queue(*of.queue, n) : best_of_all(n);
        }
        return of.best;
    }

    int32_t best_of_all(int32_t n) {
        std::vector<int32_t> &links = node(n).links;
        forget_dead(links, node(n).degree);
        int32_t best = -1;
        for (const int32_t k : links)
            if (link(k).is_alive && link(k).score > 0.0 && (best < 0 || candidate(best, n) < candidate(k, n))) best = k;
        return best;
    }

    int32_t first_in_queue(Queue &queue, int32_t n) {
        while (!queue.heap.empty()) {
            const Candidate first = queue.heap.front();
            const Link &its = link(first.link);
            if (its.is_alive && its.score == first.score && region_at(first.link, n) == first.neighbor) return first.link;
            std::pop_heap(queue.heap.begin(), queue.heap.end());
            queue.heap.pop_back();
        }
        return -1;
    }

    Candidate candidate(int32_t k, int32_t n) { return {link(k).score, region_at(k, n), k}; }

    void enqueue(int32_t k, int32_t n) {
        if (!node(n).queue || !(link(k).score > 0.0)) return;
        std::vector<Candidate> &heap = node(n).queue->heap;
        heap.push_back(candidate(k, n));
        std::push_heap(heap.begin(), heap.end());
    }

    void use_queue_if_large(int32_t n) {
        Node &of = node(n);
        if (of.queue || of.degree <= kLargeDegree || depends_on_shape(n)) return;
        of.queue = std::make_unique<Queue>();
        for (const int32_t k : of.links) {
            if (!link(k).is_alive) continue;
            if (link(k).score > 0.0) of.queue->heap.push_back(candidate(k, n));
            connect_queues(k);
        }
        std::make_heap(of.queue->heap.begin(), of.queue->heap.end());
    }

    // Where both ends of a link have a queue, each must hear when the other's region changes.
    void connect_queues(int32_t k) {
        const Node &a = node(link(k).ends[0]), &b = node(link(k).ends[1]);
        if (!a.queue || !b.queue) return;
        a.queue->links.push_back(k);
        b.queue->links.push_back(k);
    }

    void forget_dead(std::vector<int32_t> &links, int32_t alive) const {
        if (links.size() > 2 * size_t(alive) + 8) erase_dead(links);
    }

    void erase_dead(std::vector<int32_t> &links) const {
        links.erase(std::remove_if(links.begin(), links.end(), [this](int32_t k) { return !links_[size_t(k)].is_alive; }), links.end());
    }

    // Merge the two nodes of a link; returns the one that stays.
    int32_t merge(int32_t k) {
        int32_t keep = link(k).ends[0], drop = link(k).ends[1];
        if (node(keep).degree < node(drop).degree) std::swap(keep, drop);
        const int32_t first = std::min(node(keep).region, node(drop).region), second = std::max(node(keep).region, node(drop).region);
        const bool is_renamed = node(keep).region != first;
        const int64_t peak = union_of(keep).peak;
        regions_[size_t(first)].absorb(regions_[size_t(second)]);
        parent_[size_t(second)] = first;
        node(keep).region = first;
        link(k).is_alive = false;
        --node(keep).degree;
        move_links(drop, keep, k);
        use_queue_if_large(keep);
        if (rule_.geometric && union_of(keep).peak != peak && !depends_on_shape(keep))  // then all of its links changed
            changed_.insert(changed_.end(), node(keep).links.begin(), node(keep).links.end());
        if (is_renamed) announce_region(keep);
        return keep;
    }

    // Links of both nodes to one neighbor become one.
    void move_links(int32_t from, int32_t to, int32_t merged) {
        for (const int32_t k : node(from).links) {
            if (!link(k).is_alive || k == merged) continue;
            const int32_t neighbor = other_end(k, from), twin = index_.find(to, neighbor);
            if (twin >= 0) {
                link(twin).edge.absorb(link(k).edge);
                link(k).is_alive = false;
                --node(neighbor).degree;
                changed_.push_back(twin);
            } else {
                link(k).ends[link(k).ends[1] == from] = to;
                index_.set(to, neighbor, k);
                node(to).links.push_back(k);
                ++node(to).degree;
                connect_queues(k);
                changed_.push_back(k);
            }
        }
        node(from) = Node();
    }

    void announce_region(int32_t n) {
        std::vector<int32_t> &links = node(n).queue ? node(n).queue->links : node(n).links;
        if (node(n).queue) erase_dead(links);
        for (const int32_t k : links)
            if (link(k).is_alive) enqueue(k, other_end(k, n));
    }

    void update_score(int32_t k) {
        const int32_t a = node(link(k).ends[0]).region, b = node(link(k).ends[1]).region;
        link(k).score = rule_.score(link(k).edge, regions_[size_t(std::min(a, b))], regions_[size_t(std::max(a, b))]);
    }

    // Of a union whose shape decides: each link once a round, also where both ends merged.
    void update_all_scores(int32_t n, std::vector<int32_t> &fresh) {
        forget_dead(node(n).links, node(n).degree);
        for (const int32_t k : node(n).links) {
            if (!link(k).is_alive) continue;
            fresh.push_back(other_end(k, n));
            if (link(k).scored_in == round_) continue;
            link(k).scored_in = round_;
            ++rescored_;
            update_score(k);
        }
    }

    void update_changed_score(int32_t k, std::vector<int32_t> &fresh) {
        if (!link(k).is_alive || link(k).scored_in == round_) return;
        link(k).scored_in = round_;
        update_score(k);
        for (const int32_t n : link(k).ends) {
            fresh.push_back(n);
            enqueue(k, n);
        }
    }

    std::vector<Region> &regions_;
    const MergeRule &rule_;
    const int64_t budget_;
    int64_t rescored_ = 0;
    int32_t round_ = 0;
    bool is_stopped_ = false;
    std::vector<Node> nodes_;
    std::vector<Link> links_;
    std::vector<int32_t> parent_, changed_;  // changed_: links whose score may have changed in this round
    PairIndex index_;
};

}  // namespace tfiseg
