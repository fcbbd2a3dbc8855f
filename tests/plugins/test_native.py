"""The native operator equals the numpy reference, bit for bit, for any number of threads."""

import subprocess
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfiseg.errors import TfisegError
from tfiseg.plugins.native import API_VERSION, cluster_native, load_library, region_graph
from tfiseg.plugins.problem import Problem, problem_of
from tfiseg.plugins.reference import cluster_reference
from tfiseg.plugins.settings import ClusterSettings, Split

THREADS = (1, 2, 5)


def problem(class_map: np.ndarray, split: Split = "auto", **rest) -> Problem:
    return problem_of(class_map, split=split, **rest)


def assert_equal(problem: Problem) -> None:
    expected = cluster_reference(problem)
    for threads in THREADS:
        got = cluster_native(problem, threads)
        assert np.array_equal(got.label_map, expected.label_map), f"label maps differ with {threads} threads"
        assert np.array_equal(got.semantic_map, expected.semantic_map)
        assert np.array_equal(got.count, expected.count)
        rows = [got.table[k, :n] for k, n in enumerate(got.count)]
        for got_row, expected_row in zip(rows, expected.table, strict=True):
            assert np.array_equal(np.delete(got_row, 1, 1), np.delete(expected_row[: len(got_row)], 1, 1))
            assert np.allclose(
                got_row[:, 1], expected_row[: len(got_row), 1], atol=1e-4
            )  # scores: softmax may differ in the last bits


@st.composite
def class_maps(draw) -> np.ndarray:
    """Blobs, blocks and noise of up to three classes, with some ignored pixels."""
    h, w = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.integers(1, 8))
    small = rng.integers(0, draw(st.integers(1, 3)) + 1, (-(-h // coarse), -(-w // coarse)))
    out = np.kron(small, np.ones((coarse, coarse), int))[:h, :w].astype(np.uint8)
    if draw(st.booleans()):
        out[rng.random((h, w)) < 0.03] = 255
    if draw(st.booleans()):
        out[rng.random((h, w)) < 0.1] = 0
    return out


@given(
    class_maps(),
    st.sampled_from(["auto", 0.0, 0.4, 0.9, 1.0]),
    st.integers(0, 30),
    st.sampled_from([1, 3, 65535]),
)
@settings(max_examples=120, deadline=None)
def test_geometric(class_map, split, min_area, max_instances):
    assert_equal(problem(class_map, split, min_area=min_area, max_instances=max_instances))


@given(class_maps(), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 2.0, 10.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_given_field(class_map, seed, spread, with_boundary):
    rng = np.random.default_rng(seed)
    field = rng.normal(0, spread, (1, 2, *class_map.shape)).astype(np.float32)
    boundary = rng.random((1, *class_map.shape)).astype(np.float32) if with_boundary else None
    assert_equal(problem(class_map, displacement=field, boundary=boundary))


@given(class_maps(), st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_learned_evidence(class_map, seed, stride, with_boundary, with_scores):
    rng = np.random.default_rng(seed)
    h, w = class_map.shape
    assert_equal(
        problem(
            class_map,
            affinity=rng.random((1, 4, -(-h // stride), -(-w // stride))).astype(np.float32),
            affinity_offsets=rng.integers(-3, 4, (4, 2)).astype(np.int32),
            affinity_stride=stride,
            boundary=rng.random((1, h, w)).astype(np.float32) if with_boundary else None,
            scores=rng.random((1, h, w)).astype(np.float32) if with_scores else None,
        )
    )


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 3),
    st.sampled_from([0, 9]),
)
@settings(max_examples=60, deadline=None)
def test_logits_to_full_resolution(seed, h, w, out_h, out_w, batch, min_area):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (batch, 4, h, w)).astype(np.float32)
    smooth = np.stack([[cv2.GaussianBlur(p, (0, 0), 1.5).reshape(h, w) for p in one] for one in logits]) * 8
    assert_equal(
        Problem(
            None, np.ascontiguousarray(smooth, np.float32), (out_h, out_w), ClusterSettings(min_area=min_area)
        )
    )


def spiral(side: int) -> np.ndarray:
    out = np.zeros((side, side), np.uint8)
    y, x, dy, dx = 1, 1, 0, 1
    out[y, x] = 1
    for _ in range(side * side):
        ny, nx = y + dy, x + dx
        ahead = out[min(max(ny + dy, 0), side - 1), min(max(nx + dx, 0), side - 1)]
        if not (1 <= ny < side - 1 and 1 <= nx < side - 1) or out[ny, nx] or ahead:
            dy, dx = dx, -dy
            ny, nx = y + dy, x + dx
            if not (1 <= ny < side - 1 and 1 <= nx < side - 1) or out[ny, nx]:
                break
        y, x = ny, nx
        out[y, x] = 1
    return out


CHECKERBOARD = (np.indices((33, 40)).sum(0) % 2).astype(np.uint8)


@pytest.mark.parametrize(
    "class_map",
    [
        pytest.param(np.zeros((7, 9), np.uint8), id="empty"),
        pytest.param(np.ones((1, 1), np.uint8), id="one pixel"),
        pytest.param(np.full((50, 60), 3, np.uint8), id="all one class"),
        pytest.param(np.full((50, 60), 255, np.uint8), id="all ignored"),
        pytest.param(CHECKERBOARD, id="checkerboard"),
        pytest.param(CHECKERBOARD + 1, id="checkerboard of two classes"),
        pytest.param(spiral(41), id="spiral"),
        pytest.param(np.kron(spiral(21), np.ones((3, 3), np.uint8)), id="thick spiral"),
        pytest.param(np.random.default_rng(0).integers(0, 2, (90, 80)).astype(np.uint8), id="noise"),
        pytest.param(
            np.random.default_rng(0).integers(0, 255, (60, 70)).astype(np.uint8), id="noise of 255 classes"
        ),
        pytest.param(np.ones((1, 300), np.uint8), id="one row"),
        pytest.param(np.ones((300, 1), np.uint8), id="one column"),
    ],
)
@pytest.mark.parametrize("split", ["auto", 0.0, 0.7])
def test_hard_class_maps(class_map, split):
    assert_equal(problem(class_map, split))


def test_more_than_max_instances_keeps_the_largest_in_raster_order():
    class_map = np.zeros((5, 40), np.uint8)
    for k in range(8):
        class_map[: k % 4 + 1, 5 * k : 5 * k + 3] = 1
    result = cluster_native(problem(class_map, 0.0, max_instances=3))
    assert result.count.tolist() == [3]
    assert result.table[0, :, 6].tolist() == [9, 12, 12]  # areas; of the two of 9 the earlier is kept


@given(class_maps())
@settings(max_examples=40, deadline=None)
def test_relabeling_classes_changes_nothing(class_map):
    lookup = np.arange(256, dtype=np.uint8)
    lookup[[1, 2, 3]] = [3, 1, 2]
    assert np.array_equal(
        cluster_native(problem(lookup[class_map])).label_map, cluster_native(problem(class_map)).label_map
    )


def partition(label_map: np.ndarray) -> np.ndarray:
    """Number labels by first pixel in raster order, so that equal partitions are equal arrays."""
    values, first, inverse = np.unique(label_map, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(np.where(values == 0, -1, first)))
    return (order + (0 if (values == 0).any() else 1))[inverse].reshape(label_map.shape)


@given(class_maps(), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=40, deadline=None)
def test_connected_components_follow_flips(class_map, axis, split):
    """With split 0, flipping the map flips the connected components."""
    flipped = np.flip(class_map, axis)
    counts = (
        cluster_native(problem(class_map, 0.0)).count,
        cluster_native(problem(np.ascontiguousarray(flipped), 0.0)).count,
    )
    assert counts[0] == counts[1]
    back = np.flip(cluster_native(problem(np.ascontiguousarray(flipped), 0.0)).label_map[0], axis)
    assert np.array_equal(partition(back), partition(cluster_native(problem(class_map, 0.0)).label_map[0]))


@given(class_maps(), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_translation_moves_the_result(class_map, dy, dx):
    """Translation within background translates the result."""
    h, w = class_map.shape
    near, far = np.zeros((h + 12, w + 12), np.uint8), np.zeros((h + 12, w + 12), np.uint8)
    near[1 : h + 1, 1 : w + 1] = class_map
    far[1 + dy : h + 1 + dy, 1 + dx : w + 1 + dx] = class_map
    a, b = cluster_native(problem(near)).label_map[0], cluster_native(problem(far)).label_map[0]
    assert np.array_equal(a[1 : h + 1, 1 : w + 1], b[1 + dy : h + 1 + dy, 1 + dx : w + 1 + dx])


def test_connected_components_equal_opencv():
    rng = np.random.default_rng(3)
    mask = (cv2.GaussianBlur(rng.random((200, 300)), (0, 0), 2) > 0.52).astype(np.uint8)
    n, labels = cv2.connectedComponents(mask, connectivity=8)
    got = cluster_native(problem(mask, 0.0))
    assert got.count[0] == n - 1
    assert np.array_equal(partition(got.label_map[0]), partition(labels))


def test_batch_equals_single_maps():
    rng = np.random.default_rng(5)
    maps = np.stack([np.kron(rng.integers(0, 3, (8, 9)), np.ones((5, 5), int)) for _ in range(3)]).astype(
        np.uint8
    )
    together = cluster_native(problem(maps))
    for k in range(3):
        alone = cluster_native(problem(maps[k]))
        assert np.array_equal(together.label_map[k], alone.label_map[0])
        assert np.array_equal(together.table[k, : alone.count[0]], alone.table[0])


def test_largest_grid():
    class_map = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((512, 512), np.uint8))
    assert cluster_native(problem(class_map)).count.tolist() == [63]


def test_smooth_evidence_is_fast():
    """A ramp of affinities merges one pair per round; a round must not scan every edge."""
    side = 128
    y, x = np.mgrid[:side, :side].astype(np.float32)
    ramp = np.stack([(x + 1.3 * y + 1) / (2.4 * side), (0.7 * x + y + 1) / (2.4 * side)])[None]
    began = time.perf_counter()
    got = cluster_native(
        problem(
            np.ones((side, side), np.uint8),
            displacement=np.zeros((1, 2, side, side), np.float32),
            centre_radius=0.0,
            affinity=ramp,
            affinity_offsets=np.array([[0, 1], [1, 0]], np.int32),
            merge_affinity=0.0,
        )
    )
    assert got.count.tolist() == [1]
    assert time.perf_counter() - began < 3  # 6 s if every round scans every edge, else 0.03 s


def test_region_graph_of_any_size():
    class_map = np.zeros((300, 300), np.uint8)
    class_map[::2, ::2] = 1
    region_map, regions, edges = region_graph(problem(class_map))
    assert len(regions) == 150 * 150 == region_map.max()
    assert len(edges) == 0


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pennfudan", "coco", "voc2007", "dsb2018"])
def test_every_shared_photo(eval_sets, name):
    paths = sorted((eval_sets / name / "semantic").glob("*.png"))
    assert paths
    for path in paths:
        class_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        expected = cluster_reference(problem(class_map, min_area=25))
        for threads in (1, 2):
            assert np.array_equal(
                cluster_native(problem(class_map, min_area=25), threads).label_map, expected.label_map
            ), path


def test_an_older_library_is_refused(tmp_path):
    source = tmp_path / "old.c"
    source.write_text(
        f"int tfiseg_api_version(void) {{ return {API_VERSION}; }}\n"
        'const char *tfiseg_status_string(int status) { return status ? "" : "ok"; }\n'
    )
    library = tmp_path / "old.so"
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    with pytest.raises(TfisegError, match=r"lacks a function .*tfiseg_workspace_size.*: run make"):
        load_library(library, "make")
