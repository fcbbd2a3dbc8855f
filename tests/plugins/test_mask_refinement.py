"""Mask refinement: reference, native library and GPU phases are equal; bad arguments are refused."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from field_equality import assert_fields_equal
from tfiseg.errors import InputError
from tfiseg.plugins.mask_refinement import MaskRefinementCall, refine_masks
from tfiseg.plugins.native import library
from tfiseg.plugins.reference_mask_refinement import refine_masks_reference

SMALL_WORKSPACE, BAD_VIEWS, BAD_STRUCT_SIZE = 6, 10, 1


@pytest.fixture(scope="module")
def phases(shuffled_library, refinement_by_phases):
    return refinement_by_phases(shuffled_library)


@pytest.mark.parametrize("seed", range(60))
def test_reference_native_and_phases_agree(seed, random_predicted_masks, phases):
    predicted = random_predicted_masks(seed, half=seed % 2 == 1)
    expected = refine_masks_reference(predicted)
    assert_fields_equal(refine_masks(predicted, threads=1 + seed % 3), expected)
    for order in range(2):
        assert_fields_equal(phases(predicted, seed=order, threads=1 + order), expected)


def test_random_cases_reach_every_part_of_the_rule(random_predicted_masks):
    """The comparison above would be empty if nothing moved."""
    added = removed = taken = kept_whole = 0
    for seed in range(60):
        predicted = random_predicted_masks(seed)
        refined = refine_masks_reference(predicted)
        moved = np.concatenate([[0], refined.instance_of])[refined.label_map]
        before = predicted.label_map
        added += ((before == 0) & (moved > 0)).sum()
        removed += ((before > 0) & (moved == 0)).sum()
        taken += ((before > 0) & (moved > 0) & (moved != before)).sum()
        kept_whole += (moved == before).all()
    assert added > 1000
    assert removed > 1000
    assert taken > 100
    assert kept_whole < 30


@pytest.mark.parametrize("seed", range(0, 60, 4))
def test_result_does_not_depend_on_the_order_of_views(seed, random_predicted_masks):
    predicted = random_predicted_masks(seed)
    views = predicted.views
    _, first = np.unique(views[:, 4], return_index=True)  # one view of each component
    order = np.random.default_rng(seed).permutation(first)

    def refined(indices):
        maps = [predicted.foregrounds[k] for k in indices]
        return refine_masks(replace(predicted, views=views[indices], foregrounds=maps))

    one, other = refined(first), refined(order)
    assert (one.label_map != other.label_map).mean() < 1e-3  # of equal probabilities, the earlier view wins
    assert len(one.table) == len(other.table)


@pytest.mark.parametrize("seed", range(20))
def test_no_instance_is_lost(seed, random_predicted_masks):
    predicted = random_predicted_masks(seed)
    refined = refine_masks(predicted)
    assert sorted(refined.instance_of) == np.unique(predicted.label_map[predicted.label_map > 0]).tolist()
    numbers, areas = np.unique(refined.label_map[refined.label_map > 0], return_counts=True)
    assert numbers.tolist() == list(range(1, len(refined.table) + 1))
    assert refined.table[:, 6].tolist() == areas.tolist()
    assert np.array_equal(refined.table[:, :2], predicted.table[refined.instance_of - 1, :2])


def test_invalid_arrays_raise_input_error(random_predicted_masks):
    predicted = random_predicted_masks(4)
    maps = list(predicted.foregrounds)
    for wrong in (
        {"label_map": predicted.label_map.astype(np.int64)},
        {"component_map": predicted.component_map[:-1]},
        {"table": predicted.table[:, :9].copy()},
        {"views": predicted.views[:, :4].copy()},
        {"views": predicted.views[:0], "foregrounds": []},
        {"foregrounds": [maps[0].astype(np.float64), *maps[1:]]},
        {"foregrounds": [maps[0][:-1] if len(maps[0]) > 1 else maps[0][:, :0], *maps[1:]]},
    ):
        with pytest.raises(InputError):
            refine_masks(replace(predicted, **wrong))


def test_library_refuses_arguments_out_of_range(random_predicted_masks):
    call = MaskRefinementCall(random_predicted_masks(4))

    def status(**changes):
        struct = type(call.struct).from_buffer_copy(call.struct)
        for name, value in changes.items():
            setattr(struct, name, value)
        sizes = int(library().tfiseg_refine_masks_workspace_size(ctypes.byref(struct)))
        return sizes, library().tfiseg_refine_masks_cpu(ctypes.byref(struct))

    assert status(struct_size=8) == (0, BAD_STRUCT_SIZE)
    for wrong in (
        {"height": 0},
        {"width": 32768},
        {"view_count": 0},
        {"view_count": 65536},
        {"view_count": 65535, "height": 30000, "width": 30000},
        {"max_map_side": 1025},
        {"max_components": 0},
        {"max_instances": 1 << 24},
        {"value_type": 2},
    ):
        assert status(**wrong) == (0, BAD_VIEWS), wrong
    for missing in ("label_map", "foreground", "map_sides", "views", "instance_of", "workspace"):
        assert status(**{missing: None})[1] == BAD_VIEWS, missing
    assert status(threads=0)[1] == BAD_VIEWS
    assert status(workspace_bytes=10)[1] == SMALL_WORKSPACE


def test_an_overflow_of_the_operator_is_passed_on(random_predicted_masks):
    call = MaskRefinementCall(random_predicted_masks(4))
    overflow = np.array([-1], np.int32)
    call.struct.count = overflow.ctypes.data
    assert library().tfiseg_refine_masks_cpu(ctypes.byref(call.struct)) == 0
    assert call._count[0] == -1
    assert not call._label_map.any()
