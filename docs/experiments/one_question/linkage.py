"""Instances of a class map by the one question: evidence of pairs of regions by the network and by shape,
average linkage, joins."""

import numpy as np
import tfiseg
import torch
from contact import near_groups, neck_evidence
from network import VIEW_PX, Encoded, OneQuestionNetwork
from tfiseg.runtime.refine.partition import Partition, instances_from_labels, nearest_label
from tfiseg.runtime.refine.view import View, make_view, render_mask, sample_labels, solidity
from tfiseg.runtime.refine.view_planning import PlannedView, plan_views, render_views
from train import LOGIT_LIMIT

from samples import LEAST_PIECE_PX, MOST_REGIONS, REGION_PX, cell_shares, largest_regions, regions_of

_CONVEX = 0.97
_LEAST_SHARE = 0.04  # of a component: smaller parts go with their neighbors


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
    """One picture's components, and the views of those worth asking about, whatever the network.

    Attributes:
        components: connected components of each class.
        views: of each component that could be several objects: the view, the component's mask, its regions,
            and what shape says of each pair of them.
    """

    def __init__(self, image: np.ndarray, semantic: np.ndarray) -> None:
        self.image = image
        self.components = tfiseg.cluster(semantic, split=0.0)
        self._rendered: dict[tuple[View, int], tuple[np.ndarray, np.ndarray]] = {}
        self.views: list[tuple[PlannedView, np.ndarray, np.ndarray, np.ndarray]] = []
        for p in plan_views(self.components, VIEW_PX):
            if not p.component:
                continue
            own = render_mask((self.components.label_map == p.component).astype(np.uint8), p.view, REGION_PX)
            if not own.any() or solidity(own) > _CONVEX:
                continue
            label = largest_regions(regions_of(own))
            if label.max() > 1:
                self.views.append((p, own, label, neck_evidence(own, label)))

    def render(self, planned: PlannedView) -> tuple[np.ndarray, np.ndarray]:
        """Images and class masks of one view, rendered once."""
        key = planned.view, planned.class_id
        if key not in self._rendered:
            self._rendered[key] = render_views(self.image, self.components, [planned], VIEW_PX)
        return self._rendered[key]


class Answers:
    """What a network says of a picture, asked once for all thresholds."""

    def __init__(self, network: OneQuestionNetwork, picture: Picture) -> None:
        self.network, self.picture, self.components = network, picture, picture.components
        self._encoded: dict[tuple[View, int], Encoded] = {}
        self.asked = [
            (*view, *pair_evidence(network, self._encode(view[0]), view[2])) for view in picture.views
        ]

    @torch.no_grad()
    def _encode(self, planned: PlannedView) -> Encoded:
        key = planned.view, planned.class_id
        if key not in self._encoded:
            images, masks = self.picture.render(planned)
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
        boxes = boxes_of(snapshot.label_map)
        for class_id in np.unique(snapshot.class_of[numbers]):
            its = numbers[snapshot.class_of[numbers] == class_id]
            component = snapshot.component_of[its]
            group = near_groups(boxes[its], snapshot.areas[its], component[:, None] != component[None])
            for first in np.unique(group):
                members, xywh = its[group == first], boxes[its[group == first]]
                if len(np.unique(component[group == first])) > 1:
                    low, high = xywh[:, :2].min(0), (xywh[:, :2] + xywh[:, 2:]).max(0)
                    size_hw = snapshot.label_map.shape
                    view = make_view((*low.tolist(), *high.tolist()), size_hw, VIEW_PX)
                    largest = members[np.argsort(-snapshot.areas[members], kind="stable")]
                    yield view, int(class_id), largest[:MOST_REGIONS].tolist()

    def _render_parts(self, label_map: np.ndarray, view: View, pieces: list[int]) -> np.ndarray:
        """The pieces that can be seen in a view, int32 (2 S, 2 S), by their numbers."""
        kept = np.zeros(int(label_map.max()) + 1, np.int32)
        kept[pieces] = pieces
        label = kept[sample_labels(label_map, view, REGION_PX)]
        count = np.bincount(label.ravel())
        return np.where(count[label] >= LEAST_PIECE_PX, label, 0)


def boxes_of(label_map: np.ndarray) -> np.ndarray:
    """The box of each label of a label map, int64 (n + 1, 4), x, y, width, height; 0 without pixels."""
    ys, xs = np.nonzero(label_map)
    its, at = label_map[ys, xs], np.stack([xs, ys], 1)
    low = np.full((int(label_map.max()) + 1, 2), max(label_map.shape))
    high = np.zeros_like(low)
    for axis in range(2):
        np.minimum.at(low[:, axis], its, at[:, axis])
        np.maximum.at(high[:, axis], its, at[:, axis] + 1)
    return np.where(high[:, :1] > 0, np.concatenate([low, high - low], 1), 0)
