// Views for mask refinement: of the largest components, convex ones too. A component whose view was rendered before keeps that one, and its
// foreground map. Phases as in grid_phases.h, all in integers.
#pragma once
#include "views_pipeline.h"

namespace tfiseg {

constexpr int32_t kLeastMaskSide = 20;  // smaller components keep their outlines

// Gives labels other numbers, and pixels the classes of their labels.
struct Relabel {
    const int32_t *label_map, *numbers;  // numbers and classes: by label
    const uint8_t *classes;
    int32_t count;
    int32_t *relabeled;  // out
    uint8_t *class_map;  // out

    TFISEG_HD void operator()(int32_t i) const {
        const int32_t label = label_map[i] > 0 && label_map[i] < count ? label_map[i] : 0, number = label ? numbers[label] : 0;
        relabeled[i] = number;
        class_map[i] = number ? classes[label] : uint8_t(0);
    }
};

struct MaskViewPlan {
    View *planned;          // by rank
    int32_t *same, *first;  // by rank: the known view that shows the same; by known view: the first rank that does
    int64_t bytes;

    explicit MaskViewPlan(const tfiseg_mask_views &v) {
        Carver carver(v.workspace);
        planned = carver.take<View>(v.view_count);
        same = carver.take<int32_t>(v.view_count);
        first = carver.take<int32_t>(v.known_count + 1);
        bytes = carver.bytes();
    }
};

struct ClearMaskViews {
    MaskViewPlan plan;
    int32_t known_count, view_count;

    TFISEG_HD int32_t items() const { return known_count > view_count ? known_count : view_count; }

    TFISEG_HD void operator()(int32_t i) const {
        if (i < known_count) plan.first[i] = view_count;
        if (i >= view_count) return;
        plan.planned[i] = {0, 0, 1, 0, 0};
        plan.same[i] = known_count;
    }
};

// Plans the views of the largest components, largest first. One item is a component.
struct PlanMaskViews {
    Scene scene;  // size: side of the known views, which limits the zoom
    MaskViewPlan plan;
    const View *known;
    int32_t known_count, view_count;

    TFISEG_HD void operator()(int32_t k) const {
        const int32_t n = scene.components();
        if (k >= n || !is_large(k)) return;
        const float area = scene.row(k)[6];
        int32_t rank = 0;
        for (int32_t j = 0; j < n; ++j) {
            const float other = scene.row(j)[6];
            if ((other > area || (other == area && j < k)) && is_large(j)) ++rank;
        }
        if (rank >= view_count) return;
        const View view = scene.view_of(scene.box_of(k), scene.class_of(k), k + 1);
        int32_t same = 0;
        while (same < known_count && !shows_same(known[same], view)) ++same;
        plan.planned[rank] = view;
        plan.same[rank] = same;
        if (same < known_count) lower_to(plan.first + same, rank);
    }

  private:
    TFISEG_HD bool is_large(int32_t k) const { return scene.has_selected_class(k) && scene.box_of(k).longer() >= kLeastMaskSide; }
    TFISEG_HD static bool shows_same(const View &a, const View &b) {
        return a.class_id == b.class_id && a.x == b.x && a.y == b.y && a.side == b.side;
    }
};

// Lists the known views, each with the component that it shows, then the others, then empty ones.
struct ListMaskViews {
    MaskViewPlan plan;
    const View *known;
    int32_t known_count, view_count;
    View *list;  // out

    TFISEG_HD int32_t items() const { return known_count + view_count; }

    TFISEG_HD void operator()(int32_t i) const {
        if (i < known_count) {
            View view = known[i];
            view.component = plan.first[i] < view_count ? plan.planned[plan.first[i]].component : 0;
            list[i] = view;
            return;
        }
        View view = {0, 0, 1, 0, 0};
        for (int32_t rank = 0, others = 0; rank < view_count; ++rank)
            if (is_other(rank) && others++ == i - known_count) view = plan.planned[rank];
        list[i] = view;
    }

  private:
    TFISEG_HD bool is_other(int32_t rank) const {
        return plan.planned[rank].class_id && (plan.same[rank] >= known_count || plan.first[plan.same[rank]] != rank);
    }
};

struct MaskViewSection {
    static constexpr int32_t kGroups = 1;
    ClearMaskViews clear;
    PlanMaskViews find;
    ListMaskViews list;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        run.each(clear.items(), clear);
        run.each(find.scene.most, find);
        run.each(list.items(), list);
    }
};

inline Scene scene_of(const tfiseg_mask_views &v, int32_t side) {
    return scene_of(v, side, [](int32_t) { return true; });
}

template <class Executor>
void cut_mask_views_on(Executor &run, const tfiseg_mask_views &v) {
    const MaskViewPlan plan(v);
    const View *known = reinterpret_cast<const View *>(v.known);
    View *views = reinterpret_cast<View *>(v.views);
    const ClearMaskViews clear = {plan, v.known_count, v.view_count};
    const PlanMaskViews find = {scene_of(v, v.known_side), plan, known, v.known_count, v.view_count};
    const ListMaskViews list = {plan, known, v.known_count, v.view_count, views};
    run.section(1, MaskViewSection{clear, find, list});  // few items: one block
    RenderViews render = {};
    render.scene = scene_of(v, v.view_side);
    render.views = views + v.known_count;
    render.images = v.images;
    render.masks = v.masks;
    run.each(int64_t(v.view_count) * render.scene.cells(), render);
}

}  // namespace tfiseg
