"""Instances of a class map by the one question: evidence of pairs of regions by the network and by shape,
average linkage, joins."""

import cv2
import numpy as np
import tfiseg
import torch
from network import VIEW_PX, Encoded, OneQuestionNetwork
from tfiseg.plugins.native import region_graph
from tfiseg.plugins.problem import problem_of
from tfiseg.plugins.reference_graph import neck_log_odds
from tfiseg.runtime.refine.partition import Partition, instances_from_labels, nearest_label
from tfiseg.runtime.refine.view import View, make_view, render_mask, sample_labels, solidity
from tfiseg.runtime.refine.view_planning import PlannedView, plan_views, render_views
from train import LOGIT_LIMIT

from samples import MOST_REGIONS, REGION_PX, cell_shares, largest_regions, regions_of

_CONVEX = 0.97
_LEAST_SHARE = 0.04  # of a component: smaller parts go with their neighbors
_NEAR = 0.6  # of the square root of the larger area: pieces further apart are not asked about
_LEAST_PIECE_PX = 80  # at REGION_PX


@torch.no_grad()
def pair_evidence(network: OneQuestionNetwork, encoded: Encoded, label: np.ndarray):
    """Ask of each region of a view.

    Args:
        encoded: the view, as ``OneQuestionNetwork.encode`` gives it.
        label: regions, int32 (2 S, 2 S), 1 to n, 0 = none.

    Returns:
        Evidence (n, n), both directions together, the larger prompt counting more, and areas (n,).
    """
    shares = torch.from_numpy(cell_shares(label, int(label.max())))
    view_index = torch.zeros(len(shares), dtype=torch.int64)
    logits = network.decoder(*encoded, shares[:, None], view_index)
    flat = shares.flatten(1)
    area = flat.sum(1)
    told = (logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).flatten(1) @ flat.T / area).numpy()
    weight = area.sqrt().numpy()
    both = (told * weight[:, None] + told.T * weight[None]) / (weight[:, None] + weight[None])
    return both, area.numpy().astype(np.float64)


def neck_evidence(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """What shape alone says of each pair of regions.

    Args:
        mask: of a component, uint8 (2 S, 2 S) 0/1.
        label: some of its basins, int32 (2 S, 2 S), 1 to n, 0 = none.

    Returns:
        The split rule's log-odds that the neck between two regions is inside one object, (n, n); 0 where they
        do not touch.
    """
    region_map, regions, edges = region_graph(problem_of(mask))
    number = np.zeros(len(regions) + 1, np.int64)
    number[region_map.ravel()] = label.ravel()
    ends = number[edges[:, :2] + 1]
    kept = (ends > 0).all(1)
    i, j = ends[kept].T - 1
    evidence = np.zeros((int(label.max()),) * 2)
    evidence[i, j] = evidence[j, i] = neck_log_odds(regions, edges[kept])
    return evidence


def linked(evidence: np.ndarray, area: np.ndarray, threshold: float, allowed: np.ndarray | None = None):
    """Average linkage: the group (n,) of each region, by the number of one of its regions. Groups that hold a
    pair which is not ``allowed`` (n, n) are never merged."""
    n = len(evidence)
    pairs, area = np.array(evidence, np.float64), area.copy()
    barred = np.eye(n, dtype=bool) if allowed is None else ~allowed | np.eye(n, dtype=bool)
    group = np.arange(n)
    while True:
        open_pairs = np.where(barred, -np.inf, pairs)
        i, j = np.unravel_index(open_pairs.argmax(), open_pairs.shape)
        if not open_pairs[i, j] > threshold:
            return group
        mean = (pairs[i] * area[i] + pairs[j] * area[j]) / (area[i] + area[j])
        pairs[i], pairs[:, i] = mean, mean
        barred[i] |= barred[j]
        barred[:, i] |= barred[:, j]
        barred[j], barred[:, j] = True, True
        area[i] += area[j]
        group[group == j] = i


class Picture:
    """One picture: what the network says of its components is asked once for all thresholds."""

    def __init__(self, network: OneQuestionNetwork, image: np.ndarray, semantic: np.ndarray) -> None:
        self.network, self.image = network, image
        self.components = tfiseg.cluster(semantic, split=0.0)
        self._encoded: dict[tuple[View, int], Encoded] = {}
        self.asked = []
        for p in plan_views(self.components, VIEW_PX):
            if not p.component:
                continue
            own = render_mask((self.components.label_map == p.component).astype(np.uint8), p.view, REGION_PX)
            if not own.any() or solidity(own) > _CONVEX:
                continue
            label = largest_regions(regions_of(own))
            if label.max() > 1:
                neck = neck_evidence(own, label)
                self.asked.append((p, own, label, neck, *pair_evidence(network, self._encode(p), label)))

    @torch.no_grad()
    def _encode(self, planned: PlannedView) -> Encoded:
        key = planned.view, planned.class_id
        if key not in self._encoded:
            images, masks = render_views(self.image, self.components, [planned], VIEW_PX)
            self._encoded[key] = self.network.encode(torch.from_numpy(images), torch.from_numpy(masks))
        return self._encoded[key]

    def cut(self, threshold: float, shape_weight: float = 0.0) -> Partition:
        """Return the components, split.

        Args:
            threshold: regions with more evidence are one object.
            shape_weight: how much the evidence of necks counts; that of the network counts 1.
        """
        partition = Partition(self.components)
        for p, own, label, neck, evidence, area in self.asked:
            group = linked(evidence + shape_weight * neck, area, threshold)
            pieces = np.concatenate([[0], group + 1])[label].astype(np.int32)
            count = np.bincount(pieces[pieces > 0])
            small = np.flatnonzero(count < _LEAST_SHARE * count.sum())
            pieces[np.isin(pieces, small)] = 0
            if pieces.any():
                partition.split(p, np.where(own > 0, nearest_label(pieces)[0], 0))
        return partition

    def instances(self, partition: Partition) -> tfiseg.Instances:
        """Without joins."""
        return instances_from_labels(partition.label_map, self.components)

    def joined(self, partition: Partition, rules: tuple[tuple[float, int], ...]) -> list[tfiseg.Instances]:
        """Join pieces of different components, once for each rule: a threshold, and a number of pieces; views
        that show more join none."""
        snapshot = partition.snapshot()
        numbers = [np.arange(len(snapshot.areas)) for _ in rules]
        for view, class_id, pieces in self._groups(snapshot):
            label = self._render_parts(snapshot.label_map, view, pieces)
            there = np.unique(label[label > 0])
            if len(there) < 2:
                continue
            encoded = self._encode(PlannedView(view, class_id, 0))
            rank = np.zeros(label.max() + 1, np.int32)
            rank[there] = np.arange(1, len(there) + 1)
            evidence, area = pair_evidence(self.network, encoded, rank[label])
            of_component = snapshot.component_of[there]
            allowed = of_component[:, None] != of_component[None]
            for number, (threshold, most_pieces) in zip(numbers, rules, strict=True):
                if len(there) <= most_pieces:
                    number[there] = there[linked(evidence, area, threshold, allowed)]
        return [
            instances_from_labels(n[snapshot.label_map].astype(np.int32), self.components) for n in numbers
        ]

    def _groups(self, snapshot):
        """Pieces of one class that are near one another: view, class and numbers of each group."""
        numbers = np.flatnonzero(snapshot.areas[1:] > 0) + 1
        boxes = {k: cv2.boundingRect((snapshot.label_map == k).astype(np.uint8)) for k in numbers.tolist()}
        for class_id in np.unique(snapshot.class_of[numbers]):
            its = [k for k in numbers.tolist() if snapshot.class_of[k] == class_id]
            leader = {k: k for k in its}
            for i, a in enumerate(its):
                for b in its[i + 1 :]:
                    reach = _NEAR * max(snapshot.areas[a], snapshot.areas[b]) ** 0.5
                    if (
                        snapshot.component_of[a] != snapshot.component_of[b]
                        and _gap(boxes[a], boxes[b]) <= reach
                    ):
                        old, new = leader[b], leader[a]
                        leader = {k: new if v == old else v for k, v in leader.items()}
            for first in set(leader.values()):
                group = [k for k in its if leader[k] == first]
                if len({int(snapshot.component_of[k]) for k in group}) > 1:
                    xywh = np.array([boxes[k] for k in group])
                    low, high = xywh[:, :2].min(0), (xywh[:, :2] + xywh[:, 2:]).max(0)
                    size_hw = snapshot.label_map.shape
                    view = make_view((*low.tolist(), *high.tolist()), size_hw, VIEW_PX)
                    yield view, int(class_id), sorted(group, key=lambda k: -snapshot.areas[k])[:MOST_REGIONS]

    def _render_parts(self, label_map: np.ndarray, view: View, pieces: list[int]) -> np.ndarray:
        """The pieces that can be seen in a view, int32 (2 S, 2 S), by their numbers."""
        kept = np.zeros(int(label_map.max()) + 1, np.int32)
        kept[pieces] = pieces
        label = kept[sample_labels(label_map, view, REGION_PX)]
        count = np.bincount(label.ravel())
        return np.where(count[label] >= _LEAST_PIECE_PX, label, 0)


def _gap(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Between two boxes (x, y, w, h), in pixels, along the axis on which they are further apart."""
    return max(a[0] - b[0] - b[2], b[0] - a[0] - a[2], a[1] - b[1] - b[3], b[1] - a[1] - a[3], 0)
