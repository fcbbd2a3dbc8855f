"""``cluster`` and ``cluster_batch``: instance masks from the output of any semantic network.

They check their input; functions below do not check it again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import as_numpy
from ..errors import InputError
from ..instances import Instances, instances_from_table
from .map_checks import (
    check_plausibility,
    check_sides,
    checked_affinity,
    checked_field,
    checked_plane,
    checked_semantic,
    checked_size,
    enlarge,
    is_logits,
)
from .native import cluster_native
from .problem import FLAG_MERGE_STOPPED, Clustering, Problem
from .settings import (
    AFFINITY_OFFSETS,
    CENTRE_RADIUS,
    MAX_INSTANCES,
    MAX_OUT_SIDE,
    MAX_THREADS,
    MERGE_AFFINITY,
    MIN_AREA_PX,
    ClusterSettings,
    Split,
)


class MergeStoppedWarning(UserWarning):
    """Merging stopped at its budget: the evidence is noise, and instances may be parts of objects."""


def cluster(
    semantic: ArrayLike,
    displacement: ArrayLike | None = None,
    boundary: ArrayLike | None = None,
    affinity: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    things: Iterable[int] | int | None = None,
    *,
    split: Split = "auto",
    affinity_offsets: Sequence[tuple[int, int]] | NDArray[np.int32] = AFFINITY_OFFSETS,
    merge_affinity: float = MERGE_AFFINITY,
    merge_rule: ArrayLike | None = None,
    part_rule: ArrayLike | None = None,
    centre_radius: float = CENTRE_RADIUS,
    sharpen: int = 0,
    min_area: int = MIN_AREA_PX,
    max_instances: int = MAX_INSTANCES,
    output_size_hw: tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
    threads: int | None = None,
) -> Instances:
    """Split a semantic segmentation into instances.

    Args:
        semantic: class map, integers (H, W), 0 = background, 255 = ignore; or logits, floats (C, h, w). Pass
            the logarithms of probabilities.
        displacement: float (2, H, W), (dy, dx) in grid pixels from each pixel to the center of its instance.
        boundary: float (H, W) in [0, 1], 1 = between two instances; or smaller by an integer factor.
        affinity: float (A, h, w) in [0, 1], probability that a cell and the cell at each of
            ``affinity_offsets`` lie on one object; as large as the grid, or smaller by an integer factor.
        scores: float (H, W) in [0, 1], per-pixel confidence; default: softmax of the logits, or 1.
        things: IDs of countable classes, or one ID; default: all but 0.
        split: "auto" decides from the shape of each neck; a float cuts where saddle / peak is below it (0 =
            never: connected components); {class id: float} sets it for these classes.
        min_area: smallest instance to keep, in pixels of the result.
        max_instances: maximum number of instances; the largest are kept.
        affinity_offsets, merge_affinity, merge_rule, part_rule, centre_radius, sharpen: how to use the maps
            of a network, see ``ClusterSettings``.
        output_size_hw: (H, W) of the result, with logits; default: the grid's.
        class_names: name of each class id, for the result.
        threads: CPU threads; default: all that the process may use.

    Raises:
        InputError: an argument is invalid; the message names it and the expected value.

    Example:
        >>> instances = cluster(class_map)
        >>> [(i.class_id, i.area) for i in instances]
    """
    offsets = as_numpy(affinity_offsets, "affinity_offsets")
    merge = None if merge_rule is None else as_numpy(merge_rule, "merge_rule")
    part = None if part_rule is None else as_numpy(part_rule, "part_rule")
    settings = ClusterSettings(
        things, split, min_area, max_instances, offsets, merge_affinity, merge, part, centre_radius, sharpen
    )
    _check_choices(settings, displacement is not None, affinity is not None)
    maps = (displacement, boundary, affinity, scores)
    problem = _checked_problem(semantic, *maps, settings, output_size_hw, batched=False)
    return _instances_of(cluster_native(problem, _checked_threads(threads)), class_names)[0]


def cluster_batch(
    semantic: ArrayLike,
    displacement: ArrayLike | None = None,
    boundary: ArrayLike | None = None,
    affinity: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    settings: ClusterSettings | None = None,
    *,
    output_size_hw: tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
    threads: int | None = None,
) -> list[Instances]:
    """Split several semantic segmentations of one size into instances, with the same settings.

    Args:
        semantic: class maps, integers (N, H, W), or logits, floats (N, C, h, w); see ``cluster``.
        displacement, boundary, affinity, scores: as for ``cluster``, each with a leading axis N.
        settings: clustering settings; default: ``ClusterSettings()``.
        output_size_hw, class_names, threads: as for ``cluster``.

    Returns:
        list[Instances]: N elements.

    Raises:
        InputError: an argument is invalid; the message names it and the expected value.
    """
    grids = as_numpy(semantic, "semantic")
    if grids.ndim and not len(grids):
        return []
    maps = (displacement, boundary, affinity, scores)
    settings = settings or ClusterSettings()
    problem = _checked_problem(semantic, *maps, settings, output_size_hw, batched=True)
    return _instances_of(cluster_native(problem, _checked_threads(threads)), class_names)


def _checked_problem(
    semantic: ArrayLike,
    displacement: ArrayLike | None,
    boundary: ArrayLike | None,
    affinity: ArrayLike | None,
    scores: ArrayLike | None,
    settings: ClusterSettings,
    output_size_hw: tuple[int, int] | None,
    batched: bool,
) -> Problem:
    grid = as_numpy(semantic, "semantic")
    logits = is_logits(grid)
    check_plausibility(grid, logits)
    if (grid.ndim == (4 if logits else 3)) != batched:
        axes = f"{'(N, C, h, w)' if logits else '(N, H, W)'}"
        raise InputError(
            f"semantic has shape {grid.shape}: "
            + (f"cluster_batch takes {axes}" if batched else "cluster takes one map, cluster_batch several")
        )
    checked = checked_semantic(grid if batched else grid[None], logits)
    n, (h, w) = len(checked), checked.shape[-2:]
    out_hw = (h, w) if output_size_hw is None else checked_size(output_size_hw, "output_size_hw")
    check_sides(out_hw, "output_size_hw", MAX_OUT_SIDE)
    if not logits and out_hw != (h, w):
        raise InputError(
            f"output_size_hw {out_hw} needs logits; a class map keeps its size {(h, w)}: resize it first "
            "(nearest)"
        )
    _check_effects(settings, affinity is not None, boundary is not None)
    boundaries, boundary_stride = checked_plane(boundary, batched, n, h, w, "boundary")
    affinities, stride = checked_affinity(affinity, batched, n, h, w, settings.affinity_offsets)
    return Problem(
        class_map=None if logits else checked,
        logits=checked if logits else None,
        out_hw=(out_hw[0], out_hw[1]),
        settings=settings,
        displacement=checked_field(displacement, batched, n, (2, h, w), "displacement"),
        boundary=boundaries,
        affinity=affinities,
        affinity_stride=stride,
        boundary_stride=boundary_stride,
        scores=enlarge(*checked_plane(scores, batched, n, h, w, "scores"), (h, w)),
    )


def _check_effects(settings: ClusterSettings, affinity: bool, boundary: bool) -> None:
    """Raise InputError for settings of maps that are missing."""
    if settings.merge_rule is not None and not affinity:
        raise InputError("merge_rule needs affinities: pass affinity too")
    if settings.part_rule is not None and not (affinity and boundary):
        raise InputError("part_rule needs affinities and boundaries: pass affinity and boundary too")
    if settings.sharpen and not boundary:
        raise InputError("sharpen moves cuts onto a boundary: pass boundary too")


def _check_choices(settings: ClusterSettings, displacement: bool, affinity: bool) -> None:
    """Raise InputError for values that have no effect with these maps."""
    if (displacement or affinity) and not np.isnan(settings.split_table).all():
        raise InputError("split has no effect with displacement or affinity: omit it")
    if settings.centre_radius != CENTRE_RADIUS and not displacement:
        raise InputError(
            "centre_radius has no effect without displacement: pass displacement too, or omit it"
        )
    if settings.merge_affinity != MERGE_AFFINITY and (not affinity or settings.merge_rule is not None):
        raise InputError(
            "merge_affinity has an effect only with affinity and without merge_rule: pass affinity or omit it"
        )


def _checked_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    if not isinstance(threads, Integral) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads must be an integer in 1..{MAX_THREADS}, got {threads!r}")
    return int(threads)


def warn_if_merging_stopped(table: NDArray[np.float32], stacklevel: int = 2) -> None:
    """Warn if merging stopped at its budget.

    Args:
        table: float32 (n, 10), the rows of instances, as in ``instances_from_table``.
        stacklevel: of ``warnings.warn``.
    """
    if (table[:, -1].astype(int) & FLAG_MERGE_STOPPED).any():
        warnings.warn(
            "merging stopped at its budget, so instances may be parts of objects. The class map or the "
            "evidence looks like noise: check the network's output",
            MergeStoppedWarning,
            stacklevel=stacklevel,
        )


def _instances_of(result: Clustering, class_names: Sequence[str]) -> list[Instances]:
    is_list = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if not is_list or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"class_names must be a list of texts, got {class_names!r}")
    rows = np.concatenate([result.table[k, :n] for k, n in enumerate(result.count)])
    warn_if_merging_stopped(rows, stacklevel=4)
    n = len(result.count)
    times = {"cluster": result.cluster_ms / n, "upsample": result.upsample_ms / n}
    return [
        instances_from_table(
            result.label_map[k],
            result.semantic_map[k],
            result.table[k, :count],
            class_names=class_names,
            stage_ms=dict(times),
        )
        for k, count in enumerate(result.count.tolist())
    ]
