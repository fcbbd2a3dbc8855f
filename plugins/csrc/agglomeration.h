// Merging of regions on the CPU, in rounds: every region names its best edge (largest score; ties: smallest pair of regions), pairs that
// name each other merge, until no score is above 0. graph_phases.h does the same with many threads, and gives the same result.
//
// A round costs as much as what the last one changed. Where a score depends on the edge alone (affinity, boundary) or also on the peaks
// (a fixed split ratio), that is the part of the union with fewer edges, so all rounds together take O(E log^2 E). Where a score depends
// on the shape of both regions, every edge of a union changes with it; merge_budget() bounds these.
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

// A node holds the links of one union; when two unions merge, the node with more links takes the other's. `region` of a node is the smallest
// region of its union, which holds the union's sums and orders ties. Link k has the sums of edge k.
class Agglomeration {
  public:
    // pixels: of the picture, which bound the work (merge_budget).
    Agglomeration(LargeVector<Region> &regions, const LargeVector<Edge> &edges, const MergeRule &rule, int64_t pixels)
        : regions_(regions), rule_(rule), budget_(merge_budget(pixels)), nodes_(regions.size()), fresh_(regions.size()), parent_(regions.size()),
          edges_(edges.size()), links_(edges.size()), scored_in_(is_scored_by_shape() ? edges.size() : 0, -1), mark_(regions.size(), -1) {
        for (size_t r = 0; r < nodes_.size(); ++r) nodes_[r].region = parent_[r] = int32_t(r);
        create_links(edges);
        lists_.reserve(3 * links_.size());
        for (Node &n : nodes_) n.links = lists_.create(n.degree);
        for (size_t k = 0; k < links_.size(); ++k)
            for (const int32_t n : links_[k].ends) lists_.append(node(n).links, int32_t(k));
        for (size_t r = 0; r < nodes_.size(); ++r) use_queue_if_large(int32_t(r));
    }

    // For each region the smallest region of its union; regions[that] then holds the sums. To be called once.
    std::vector<int32_t> run() {
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
        for (size_t r = 0; r < parent_.size(); ++r) parent_[r] = parent_[size_t(parent_[r])];  // parents are smaller: already final
        return std::move(parent_);
    }

    // The budget ended it: unions may be parts of what they would have become.
    bool is_stopped() const { return is_stopped_; }

  private:
    static constexpr int32_t kLargeDegree = 32;  // nodes of more links keep a queue; with fewer, all are visited
    static constexpr int32_t kStays = INT32_MAX;  // a best link of which update_best() keeps track: no other has the same score

    // Apart from the sums, so that many links fit into the cache: most that are read do not change.
    struct Link {
        double score = 0.0;     // -1 of a dead link
        int32_t ends[2] = {};   // nodes; -1 of a dead link
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
        int32_t best = -1, best_in = -1;    // link, and the round it was chosen in; or kStays
        LinkLists::List links = {};         // some of them dead
        int32_t queue = -1;                 // in queues_; -1: all links are visited
    };

    Node &node(int32_t n) { return nodes_[size_t(n)]; }
    Link &link(int32_t k) { return links_[size_t(k)]; }
    Queue &queue_of(const Node &n) { return queues_[size_t(n.queue)]; }
    bool is_large(int32_t n) const { return nodes_[size_t(n)].queue >= 0; }
    bool is_alive(int32_t k) const { return links_[size_t(k)].ends[0] >= 0; }
    bool joins(int32_t k, int32_t a, int32_t b) const {
        const int32_t *ends = links_[size_t(k)].ends;
        return (ends[0] == a && ends[1] == b) || (ends[0] == b && ends[1] == a);
    }
    int32_t other_end(int32_t k, int32_t n) { return link(k).ends[link(k).ends[0] == n]; }
    int32_t region_at(int32_t k, int32_t n) { return node(other_end(k, n)).region; }
    Region &union_of(int32_t n) { return regions_[size_t(node(n).region)]; }
    bool depends_on_shape(int32_t n) { return rule_.depends_on_shape(union_of(n).class_id); }

    // Whether the scores of some links change with the shape of a union.
    bool is_scored_by_shape() const { return rule_.evidence || (rule_.geometric && !rule_.with_affinity); }

    // In the order of their first regions, as nodes are; those of one region keep their order.
    void create_links(const LargeVector<Edge> &edges) {
        std::vector<uint32_t> place(nodes_.size() + 1, 0);
        for (const Edge &e : edges) {
            ++place[size_t(e.a) + 1];
            ++node(e.a).degree;
            ++node(e.b).degree;
        }
        for (size_t r = 0; r < nodes_.size(); ++r) place[r + 1] += place[r];
        for (const Edge &e : edges) {
            const size_t k = place[size_t(e.a)]++;
            edges_[k] = e;
            links_[k] = {rule_.score(e, regions_[size_t(e.a)], regions_[size_t(e.b)]), {e.a, e.b}};
        }
    }

    // A pair is found from both its ends if both were visited; run() merges it once.
    void find_mutual_pairs(const std::vector<int32_t> &visited, std::vector<int32_t> &pairs) {
        pairs.clear();
        for (const int32_t n : visited) {
            const int32_t k = best_link(n);
            if (k >= 0 && best_link(other_end(k, n)) == k) pairs.push_back(k);
        }
    }

    int32_t best_link(int32_t n) {
        Node &of = node(n);
        if (of.best_in != round_ && of.best_in != kStays) {
            of.best_in = round_;
            if (of.queue >= 0) {
                of.best = first_in_queue(queue_of(of), n);
            } else {
                choose_of_all(n);
            }
        }
        return of.best;
    }

    void choose_of_all(int32_t n) {
        Node &of = node(n);
        if (of.links.size > 2 * of.degree + 8) erase_dead(of.links);
        int32_t best = -1;
        double highest = 0.0;
        bool is_only = true;
        for (const int32_t *k = lists_.begin(of.links), *end = lists_.end(of.links); k < end; ++k) {
            const double score = link(*k).score;
            if (score == highest && best >= 0) {
                is_only = false;
                if (region_at(*k, n) < region_at(best, n)) best = *k;
            } else if (score > highest) {
                is_only = true;
                best = *k;
                highest = score;
            }
        }
        of.best = best;
        if (is_only) of.best_in = kStays;
    }

    // A link of a node has a new score. Most changes leave the best link as it is: then there is nothing to visit.
    void update_best(int32_t n, int32_t k, double old_score) {
        Node &of = node(n);
        const double score = link(k).score, highest = of.best < 0 ? 0.0 : of.best == k ? old_score : link(of.best).score;
        if (of.best_in == kStays && (of.best == k ? score >= highest : score < highest || !(score > 0.0))) return;
        if (of.best_in == kStays && score > highest) {
            of.best = k;
        } else {
            of.best_in = -1;
        }
        fresh_.insert(n);
    }

    int32_t first_in_queue(Queue &queue, int32_t n) {
        while (!queue.heap.empty()) {
            const Candidate first = queue.heap.front();
            if (link(first.link).score == first.score && region_at(first.link, n) == first.neighbor) return first.link;
            std::pop_heap(queue.heap.begin(), queue.heap.end());
            queue.heap.pop_back();
        }
        return -1;
    }

    Candidate candidate(int32_t k, int32_t n) { return {link(k).score, region_at(k, n), k}; }

    void enqueue(int32_t k, int32_t n) {
        if (!is_large(n) || !(link(k).score > 0.0)) return;
        std::vector<Candidate> &heap = queue_of(node(n)).heap;
        heap.push_back(candidate(k, n));
        std::push_heap(heap.begin(), heap.end());
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
            if (link(*k).score > 0.0) queue.heap.push_back(candidate(*k, n));
            connect_queues(*k);
        }
        std::make_heap(queue.heap.begin(), queue.heap.end());
    }

    // Where both ends of a link have a queue, each must hear when the other's region changes.
    void connect_queues(int32_t k) {
        const int32_t a = link(k).ends[0], b = link(k).ends[1];
        if (!is_large(a) || !is_large(b)) return;
        queue_of(node(a)).links.push_back(k);
        queue_of(node(b)).links.push_back(k);
        index_.set(a, b, k);
    }

    void erase_dead(LinkLists::List &list) {
        const auto is_dead = [this](int32_t k) { return !is_alive(k); };
        list.size = int32_t(std::remove_if(lists_.begin(list), lists_.end(list), is_dead) - lists_.begin(list));
    }

    void kill(int32_t k) { link(k) = {-1.0, {-1, -1}}; }

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
        kill(k);
        --node(keep).degree;
        if (is_large(drop)) --node(keep).links.to_large;
        move_links(drop, keep);
        use_queue_if_large(keep);
        if (rule_.geometric && union_of(keep).peak != peak && !depends_on_shape(keep))  // then all of its links changed
            changed_.insert(changed_.end(), lists_.begin(node(keep).links), lists_.end(node(keep).links));
        if (is_renamed) announce_region(keep);
        node(keep).best_in = -1;
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
            if (twin >= 0) {
                edges_[size_t(twin)].absorb(edges_[size_t(*k)]);
                kill(*k);
                forget_best(neighbor, *k);
                --node(neighbor).degree;
                changed_.push_back(twin);
            } else {
                link(*k).ends[link(*k).ends[1] == from] = to;
                add_link(to, neighbor, *k);
                changed_.push_back(*k);
            }
        }
        lists_.release(node(from).links);
        if (is_large(from)) queue_of(node(from)) = Queue();
        node(from) = Node();
    }

    void add_link(int32_t n, int32_t neighbor, int32_t k) {
        lists_.append(node(n).links, k);
        ++node(n).degree;
        if (is_large(n)) ++node(neighbor).links.to_large;
        if (is_large(neighbor)) ++node(n).links.to_large;
        mark_[size_t(neighbor)] = k;
        connect_queues(k);
    }

    void forget_best(int32_t n, int32_t k) {
        if (node(n).best != k) return;
        node(n).best_in = -1;
        fresh_.insert(n);
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

    void announce_region(int32_t n) {
        if (!is_large(n)) {
            for (const int32_t *k = lists_.begin(node(n).links), *end = lists_.end(node(n).links); k < end; ++k)
                if (is_alive(*k)) enqueue(*k, other_end(*k, n));
            return;
        }
        std::vector<int32_t> &links = queue_of(node(n)).links;
        links.erase(std::remove_if(links.begin(), links.end(), [this](int32_t k) { return !is_alive(k); }), links.end());
        for (const int32_t k : links) enqueue(k, other_end(k, n));
    }

    void update_score(int32_t k) {
        const int32_t a = node(link(k).ends[0]).region, b = node(link(k).ends[1]).region;
        link(k).score = rule_.score(edges_[size_t(k)], regions_[size_t(std::min(a, b))], regions_[size_t(std::max(a, b))]);
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
            const double old_score = link(*k).score;
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
        const double old_score = link(k).score;
        update_score(k);
        for (const int32_t n : link(k).ends) {
            update_best(n, k, old_score);
            enqueue(k, n);
        }
    }

    LargeVector<Region> &regions_;
    const MergeRule &rule_;
    const int64_t budget_;
    int64_t rescored_ = 0;
    int32_t round_ = 0;
    bool is_stopped_ = false;
    LargeVector<Node> nodes_;
    NodeSet fresh_;  // nodes whose best link may have changed in this round
    std::vector<int32_t> parent_;
    LargeVector<Edge> edges_;
    LargeVector<Link> links_;
    LargeVector<int32_t> scored_in_;  // the last round that updated a link's score, -1: the start; empty where shape does not count
    std::vector<int32_t> changed_;    // links whose score may have changed in this round
    std::vector<int32_t> mark_;       // mark_neighbors()
    std::deque<Queue> queues_;
    LinkLists lists_;
    PairIndex index_;  // links between two nodes with a queue
};

}  // namespace tfiseg
