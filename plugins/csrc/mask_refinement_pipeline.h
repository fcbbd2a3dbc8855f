// The order of the phases in mask_refinement.h, and their arrays in the caller's workspace. Executors as in pipeline.h.
#pragma once
#include "mask_refinement.h"
#include "views_pipeline.h"

namespace tfiseg {

struct RefinementPlan {
    NumberingPlan numbering;
    int64_t bytes;
    int32_t max_values;
    RefinementCounters *counters;
    Zone *zones;
    uint16_t *foreground;
    uint32_t *rows;
    uint64_t *claims;
    int32_t *view_of, *has_foreground, *has_core, *link, *list;
    uint8_t *cls, *removed, *touches;

    explicit RefinementPlan(const tfiseg_mask_refinement &r) {
        const Grid grid = {1, r.height, r.width};
        const int64_t n = grid.pixels();
        max_values = r.view_count * r.max_map_side * r.max_map_side;
        Carver carver(r.workspace);
        numbering = NumberingPlan(carver, r.height, r.width, r.max_instances);
        counters = carver.take<RefinementCounters>(1);
        zones = carver.take<Zone>(r.view_count);
        foreground = carver.take<uint16_t>(max_values);
        rows = carver.take<uint32_t>(int64_t(grid.h) * grid.row_words());
        claims = carver.take<uint64_t>(n);
        view_of = carver.take<int32_t>(r.max_components);
        has_foreground = carver.take<int32_t>(r.view_count);
        has_core = carver.take<int32_t>(r.max_instances);
        link = carver.take<int32_t>(n);
        list = carver.take<int32_t>(n);
        cls = carver.take<uint8_t>(n);
        removed = carver.take<uint8_t>(n);
        touches = carver.take<uint8_t>(n);
        bytes = carver.bytes();
    }
};

inline RefinementScene refinement_scene(const tfiseg_mask_refinement &r, const RefinementPlan &plan) {
    RefinementScene s = {};
    s.grid = {1, r.height, r.width};
    s.label_map = r.label_map;
    s.count = r.count;
    s.max_instances = r.max_instances;
    s.component_map = r.component_map;
    s.component_count = r.component_count;
    s.component_table = r.component_table;
    s.max_components = r.max_components;
    s.views = reinterpret_cast<const View *>(r.views);
    s.map_sides = r.map_sides;
    s.view_count = r.view_count;
    s.max_map_side = r.max_map_side;
    s.foreground = plan.foreground;
    s.zones = plan.zones;
    s.view_of = plan.view_of;
    s.cls = plan.cls;
    return s;
}

struct RefinementSection {
    static constexpr int32_t kGroups = 1;
    RefinementPlan plan;
    RefinementScene scene;
    tfiseg_mask_refinement r;

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void operator()(Executor &run) const {
        find_zones(run);
        move_outlines(run);
        const NumberingPlan &numbering = plan.numbering;
        const CreateInstanceRegions create = {scene, r.table, plan.has_core, plan.counters, numbering.regions, numbering.parent};
        run.each_counted(&numbering.counters->regions, numbering.most, create);
        run.each_counted(&plan.counters->restored, scene.grid.pixels(), RestoreInstances{scene, plan.has_core, r.refined_map});
        const InstanceRows rows = {r.table, numbering.unions, numbering.number, r.refined_table, r.instance_of};
        number_regions(run, numbering, scene.grid, r.refined_map, r.refined_count, r.refined_table, rows);
    }

  private:
    TFISEG_SECTION template <class Executor>
    TFISEG_HD void find_zones(Executor &run) const {
        FindInstanceClasses classes = {};
        classes.scene = scene;
        classes.cls = plan.cls;
        classes.removed = plan.removed;
        classes.claims = plan.claims;
        classes.view_of = plan.view_of;
        classes.has_foreground = plan.has_foreground;
        classes.has_core = plan.has_core;
        classes.counters = plan.counters;
        classes.numbering_counters = plan.numbering.counters;
        classes.state = plan.numbering.state;
        classes.bits = plan.numbering.bits;
        classes.bit_words = plan.numbering.bit_words;
        run.each(classes.items(), classes);
        run.each(scene.view_count, FindViews{scene, plan.view_of});
        run.each(scene.view_count, MakeZones{scene, plan.zones});
        run.each(1, PlaceZones{scene.view_count, plan.zones, plan.counters});
        const RoundForeground round = {{r.foreground, r.value_type == TFISEG_FLOAT16}, plan.foreground};
        run.each_counted(&plan.counters->values, plan.max_values, round);
        const FindRowChanges changes = {scene.grid, plan.cls, plan.rows};
        run.each(changes.items(), changes);
    }

    TFISEG_SECTION template <class Executor>
    TFISEG_HD void move_outlines(Executor &run) const {
        const int64_t n = scene.grid.pixels();
        const int32_t *items = &plan.counters->items;
        run.each_counted(items, INT32_MAX, FindRemovedPixels{scene, plan.rows, plan.has_foreground, plan.removed});
        run.each_counted(items, INT32_MAX, ClaimPixels{scene, plan.rows, plan.has_foreground, plan.claims});
        run.each(n, ListClaims{plan.claims, plan.link, plan.list, plan.touches, plan.counters});
        run.each_counted(&plan.counters->claims, n, UniteClaims{scene.grid, plan.claims, plan.list, plan.link});
        const FindTouchingIslands touching = {scene, plan.claims, plan.removed, plan.list, plan.link, plan.touches};
        run.each_counted(&plan.counters->claims, n, touching);
        MoveOutlines move = {};
        move.scene = scene;
        move.claims = plan.claims;
        move.removed = plan.removed;
        move.touches = plan.touches;
        move.has_foreground = plan.has_foreground;
        move.link = plan.link;
        move.moved = r.refined_map;
        move.has_core = plan.has_core;
        run.each(n, move);
    }
};

template <class Executor>
void refine_masks_on(Executor &run, const tfiseg_mask_refinement &r) {
    const RefinementPlan plan(r);
    run.section(int64_t(r.height) * r.width, RefinementSection{plan, refinement_scene(r, plan), r});
}

}  // namespace tfiseg
