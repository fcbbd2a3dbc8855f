// Unions of regions and the links between them, for agglomeration.h.
//
// Noise has as many regions as pixels, more than a processor's cache holds. Regions and edges are therefore numbered along the rows of the
// picture, a round visits them in this order, and neighbors find each other in their short lists of links: neighbors in the picture are
// neighbors in memory. A hash table would spread them over all of it; only pairs of large unions have one, and these are few.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <new>
#include <vector>

#include "large_vector.h"
#include "merge.h"

namespace tfiseg {

// Numbers by pairs of nodes. Entries stay: a pair that merged is never looked up again.
class PairIndex {
  public:
    PairIndex() : slots_(64, Slot{0, 0, -1}) {}

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
        LargeVector<Slot> old(slots_.size() * 2, Slot{0, 0, -1});
        old.swap(slots_);
        for (const Slot &slot : old)
            if (slot.number >= 0) slots_[slot_of(slot.a, slot.b)] = slot;
    }

    LargeVector<Slot> slots_;
    size_t count_ = 0;
};

// Lists of links in one array, so that a short list needs no memory of its own. A list that needs more room than it has moves.
class LinkLists {
  public:
    struct List {
        uint32_t begin = 0;
        int32_t size = 0;
        uint16_t power = 0;     // of two: the room
        uint16_t to_large = 0;  // links to nodes with a queue, counted for nodes without one
    };

    int32_t *begin(const List &list) { return links_.data() + list.begin; }
    int32_t *end(const List &list) { return begin(list) + list.size; }

    List create(int64_t room) {
        List list;
        while ((int64_t(1) << list.power) < room) ++list.power;
        const size_t power = size_t(list.power);
        if (vacant_[power].empty()) {
            if (links_.size() + (size_t(1) << power) > UINT32_MAX) throw std::bad_alloc();
            list.begin = uint32_t(links_.size());
            links_.resize(links_.size() + (size_t(1) << power));
        } else {
            list.begin = vacant_[power].back();
            vacant_[power].pop_back();
        }
        return list;
    }

    int64_t room(const List &list) const { return int64_t(1) << list.power; }

    // There must be room.
    void append(List &list, int32_t link) { links_[list.begin + uint32_t(list.size++)] = link; }

    void grow(List &list, int64_t room) {
        List larger = create(room);
        std::copy_n(begin(list), list.size, begin(larger));
        larger.size = list.size;
        larger.to_large = list.to_large;
        release(list);
        list = larger;
    }

    // Give a list's room to later ones.
    void release(const List &list) { vacant_[list.power].push_back(list.begin); }

    // Memory for this many links; unused memory costs nothing.
    void reserve(size_t links) { links_.reserve(links); }

  private:
    LargeVector<int32_t> links_;
    std::array<std::vector<uint32_t>, 33> vacant_;  // begins of lists that were released, by the power of two that their room holds
};

// The sums of every link that its score is read from. Noise has four edges for each pixel: where one mean decides, its sum and its count
// share a word of 8 bytes instead of an edge's 48, so that more of them fit into the cache.
class LinkSums {
  public:
    // pairs: more than the count of all links, since some pairs reach beyond the picture. Every value is at most 2^16 - 1, so a sum fits where
    // the count does.
    LinkSums(const MergeRule &rule, size_t links, int64_t pairs)
        : has_affinity_(rule.with_affinity), is_packed_(rule.reads_one_mean() && pairs <= int64_t(1) << (64 - kSumBits)),
          means_(is_packed_ ? links : 0), edges_(is_packed_ ? 0 : links) {}

    void set(size_t k, const Edge &e) {
        if (is_packed_) {
            means_[k] = has_affinity_ ? packed(e.affinity_sum, e.affinity_count) : packed(e.boundary_sum, e.contact);
        } else {
            edges_[k] = e;
        }
    }

    void absorb(int32_t k, int32_t other) {
        if (is_packed_) {
            means_[size_t(k)] += means_[size_t(other)];
        } else {
            edges_[size_t(k)].absorb(edges_[size_t(other)]);
        }
    }

    double score(int32_t k, const MergeRule &rule, const Region &a, const Region &b) const {
        if (!is_packed_) return rule.score(edges_[size_t(k)], a, b);
        Edge e;
        (has_affinity_ ? e.affinity_sum : e.boundary_sum) = int64_t(means_[size_t(k)] & ((uint64_t(1) << kSumBits) - 1));
        (has_affinity_ ? e.affinity_count : e.contact) = int64_t(means_[size_t(k)] >> kSumBits);
        return rule.score(e, a, b);
    }

  private:
    static constexpr int32_t kSumBits = 40;

    static uint64_t packed(int64_t sum, int64_t count) { return uint64_t(count) << kSumBits | uint64_t(sum); }

    const bool has_affinity_, is_packed_;
    LargeVector<uint64_t> means_;
    LargeVector<Edge> edges_;
};

// A set of nodes; a bit for each keeps it free of duplicates.
class NodeSet {
  public:
    explicit NodeSet(size_t nodes) : words_((nodes + 63) / 64, 0) {}

    void insert(int32_t n) {
        uint64_t &word = words_[size_t(n) >> 6];
        const uint64_t bit = uint64_t(1) << (n & 63);
        if (!(word & bit)) list_.push_back(n);
        word |= bit;
    }

    // Move the nodes to a list, in order.
    void take(std::vector<int32_t> &nodes) {
        nodes.clear();
        nodes.swap(list_);
        if (nodes.size() < words_.size()) {
            std::sort(nodes.begin(), nodes.end());
            for (const int32_t n : nodes) words_[size_t(n) >> 6] = 0;
            return;
        }
        nodes.clear();
        for (size_t k = 0; k < words_.size(); ++k) {
            for (uint64_t word = words_[k]; word; word &= word - 1) nodes.push_back(int32_t(k * 64) + __builtin_ctzll(word));
            words_[k] = 0;
        }
    }

  private:
    std::vector<uint64_t> words_;
    std::vector<int32_t> list_;
};

// A node holds the links of one union. `region` of a node is the smallest region of its union.
class LinkGraph {
  protected:
    using Ends = std::array<int32_t, 2>;

    // A link as it was when it was queued: out of date where its score has changed since.
    struct Candidate {
        double score;
        int32_t link;

        bool operator<(const Candidate &o) const { return score != o.score ? score < o.score : link > o.link; }
    };

    using Queue = std::vector<Candidate>;  // a heap

    struct Node {
        int32_t region = 0, degree = 0;     // degree: links that are alive
        int32_t best = -1;                  // link
        bool is_best_known = false;
        LinkLists::List links = {};         // some of them dead
        int32_t queue = -1;                 // in queues_; -1: all links are visited
    };

    // A node for each region.
    LinkGraph(size_t regions, const LargeVector<Edge> &edges, const MergeRule &rule, int64_t pairs)
        : nodes_(regions), sums_(rule, edges.size(), pairs), scores_(edges.size(), 0.0), ends_(edges.size()), mark_(regions, -1) {
        for (size_t r = 0; r < nodes_.size(); ++r) nodes_[r].region = int32_t(r);
        create_links(edges);
        lists_.reserve(3 * ends_.size());
        for (Node &n : nodes_) n.links = lists_.create(n.degree);
        for (size_t k = 0; k < ends_.size(); ++k)
            for (const int32_t n : ends_[k]) lists_.append(node(n).links, int32_t(k));
    }

    Node &node(int32_t n) { return nodes_[size_t(n)]; }
    double &score(int32_t k) { return scores_[size_t(k)]; }
    Ends &ends(int32_t k) { return ends_[size_t(k)]; }
    Queue &queue_of(const Node &n) { return queues_[size_t(n.queue)]; }
    bool is_large(int32_t n) const { return nodes_[size_t(n)].queue >= 0; }
    bool is_alive(int32_t k) const { return ends_[size_t(k)][0] >= 0; }
    bool joins(int32_t k, int32_t a, int32_t b) const {
        const Ends &ends = ends_[size_t(k)];
        return (ends[0] == a && ends[1] == b) || (ends[0] == b && ends[1] == a);
    }
    int32_t other_end(int32_t k, int32_t n) { return ends(k)[ends(k)[0] == n]; }

    int32_t first_in_queue(Queue &queue) {
        while (!queue.empty()) {
            const Candidate first = queue.front();
            if (score(first.link) == first.score) return first.link;
            std::pop_heap(queue.begin(), queue.end());
            queue.pop_back();
        }
        return -1;
    }

    void enqueue(int32_t k, int32_t n) {
        if (!is_large(n) || !(score(k) > 0.0)) return;
        Queue &queue = queue_of(node(n));
        queue.push_back({score(k), k});
        std::push_heap(queue.begin(), queue.end());
    }

    // Enter a link whose two ends both have a queue, so that find_link() finds it.
    void index_link(int32_t k) {
        if (is_large(ends(k)[0]) && is_large(ends(k)[1])) index_.set(ends(k)[0], ends(k)[1], k);
    }

    void erase_dead(LinkLists::List &list) {
        const auto is_dead = [this](int32_t k) { return !is_alive(k); };
        list.size = int32_t(std::remove_if(lists_.begin(list), lists_.end(list), is_dead) - lists_.begin(list));
    }

    void kill(int32_t k) {
        score(k) = -1.0;
        ends(k) = {-1, -1};
    }

    // A link that is new at a node: count_link() follows, unless it takes the place of another link to this neighbor.
    void list_link(int32_t n, int32_t neighbor, int32_t k) {
        lists_.append(node(n).links, k);
        mark_[size_t(neighbor)] = k;
        index_link(k);
    }

    void count_link(int32_t n, int32_t neighbor) {
        ++node(n).degree;
        if (is_large(n)) ++node(neighbor).links.to_large;
        if (is_large(neighbor)) ++node(n).links.to_large;
    }

    // At least a quarter of the room is free after dead links were erased or the list has grown, so that this is rare.
    void make_room(Node &of, int32_t more) {
        if (of.links.size + more <= lists_.room(of.links)) return;
        erase_dead(of.links);
        const int64_t needed = int64_t(of.links.size) + more, room = lists_.room(of.links);
        if (4 * needed > 3 * room) lists_.grow(of.links, std::max(needed, 2 * room));
    }

    // Leave the link to each neighbor of a node at the neighbor. Marks stay, and joins() tells which are out of date.
    void mark_neighbors(int32_t n) {
        for (const int32_t *k = lists_.begin(node(n).links), *end = lists_.end(node(n).links); k < end; ++k)
            if (is_alive(*k)) mark_[size_t(other_end(*k, n))] = *k;
    }

    // The link of two nodes, -1 if there is none. Neighbors of the first one must be marked, unless it has a queue.
    int32_t find_link(int32_t n, int32_t neighbor) {
        const int32_t marked = mark_[size_t(neighbor)];
        if (marked >= 0 && joins(marked, n, neighbor)) return marked;
        if (!is_large(n)) return -1;
        if (is_large(neighbor)) return index_.find(n, neighbor);
        const LinkLists::List &links = node(neighbor).links;
        if (!links.to_large) return -1;
        for (const int32_t *k = lists_.begin(links), *end = lists_.end(links); k < end; ++k)
            if (joins(*k, n, neighbor)) return *k;
        return -1;
    }

    LargeVector<Node> nodes_;
    LinkSums sums_;
    // Of each link, apart from each other, so that more of what is read fits into the cache: a choice reads scores, a search reads ends.
    LargeVector<double> scores_;  // -1 of a dead link
    LargeVector<Ends> ends_;      // nodes; -1 of a dead link
    std::vector<int32_t> mark_;  // mark_neighbors()
    std::deque<Queue> queues_;
    LinkLists lists_;
    PairIndex index_;  // links between two nodes with a queue

  private:
    // In the order of their pairs of regions: of links with the same score, the one with the smaller number is better.
    void create_links(const LargeVector<Edge> &edges) {
        std::vector<uint32_t> end(nodes_.size() + 1, 0);  // by first region: first the number of links before its own, at last the end of these
        for (const Edge &e : edges) {
            ++end[size_t(e.a) + 1];
            ++node(e.a).degree;
            ++node(e.b).degree;
        }
        for (size_t r = 0; r < nodes_.size(); ++r) end[r + 1] += end[r];
        LargeVector<uint32_t> sorted(edges.size());
        for (size_t e = 0; e < edges.size(); ++e) sorted[end[size_t(edges[e].a)]++] = uint32_t(e);
        const auto is_before = [&edges](uint32_t e, uint32_t f) { return edges[e].b < edges[f].b; };
        for (size_t r = 0, begin = 0; r < nodes_.size(); begin = end[r++]) {
            const auto first = sorted.begin() + std::ptrdiff_t(begin), last = sorted.begin() + std::ptrdiff_t(end[r]);
            if (!std::is_sorted(first, last, is_before)) std::sort(first, last, is_before);
        }
        for (size_t k = 0; k < edges.size(); ++k) {
            const Edge &e = edges[sorted[k]];
            sums_.set(k, e);
            ends_[k] = {e.a, e.b};
        }
    }
};

}  // namespace tfiseg
