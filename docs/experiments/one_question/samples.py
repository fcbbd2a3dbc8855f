"""Training samples: views of composites, their regions, and which object each region belongs to."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tfiseg
import torch
from composites import QuestionComposer
from contact import neck_evidence
from network import STRIDE, VIEW_PX
from tfiseg.export.instance.bank import Bank, build_bank, remove_dented_objects
from tfiseg.export.instance.teacher import predict_pseudo_labels, split_groups
from tfiseg.export.instance.train import split_bank

REGION_PX = 2 * VIEW_PX  # regions are found at twice the view's side: their borders limit every cut
MOST_REGIONS = 40
LEAST_REGION_PX = 12  # pixels at REGION_PX; smaller ones go with their nearest neighbor
LEAST_PIECE_PX = 80  # of a piece to join
_CELL = REGION_PX * STRIDE // VIEW_PX
_PROMPTS = 8  # of a view, at most
BATCH_PROMPTS = 64  # of a batch, always: each other number costs oneDNN new kernels
_PURE = 0.7  # share of a region's pixels that must be one object's
_PIECES = 0.4  # share of samples that ask of pieces of the whole class, as joining does
_MERGED_WHOLE = 0.7  # of these, components whose regions of one object are all merged
_SINGLE_WEIGHT = 3.5  # photos show still more single objects than composites do
_ATTEMPTS = 64  # numbers of composites kept for each sample
# of views to join: the shares kept of those with this number of pieces at most, if all pairs are different
# objects, and if some are one, so that few pieces and wrong pairs are as common as in photos
_KEPT = ((4, 1.0, 0.6), (8, 0.5, 0.15), (MOST_REGIONS, 0.15, 0.02))
_ALIKE, _KEPT_ALIKE = 4.0, 0.3  # and of those whose pieces of one object have areas this close


def regions_of(mask: np.ndarray) -> np.ndarray:
    """Basins of a mask uint8 (REGION_PX, REGION_PX) 0/1: int32, 1.., 0 outside of the mask."""
    return np.asarray(tfiseg.cluster(mask, split=1.0, min_area=0).label_map)


def cell_shares(label: np.ndarray, count: int) -> np.ndarray:
    """The share of each cell of stride 4 that each label 1.. covers, float32 (count, S / 4, S / 4)."""
    cells = label.shape[0] // _CELL
    rows = np.arange(label.shape[0]) // _CELL
    cell = (rows[:, None] * cells + rows[None])[label > 0]
    index = (label[label > 0] - 1).astype(np.int64) * cells * cells + cell
    found = np.bincount(index, minlength=count * cells * cells).reshape(count, cells, cells)
    return (found / _CELL**2).astype(np.float32)


def enlarged_mask(mask: np.ndarray) -> np.ndarray:
    """A mask of the view, uint8 0/1, at twice its side."""
    soft = cv2.resize(mask * np.uint8(255), (REGION_PX, REGION_PX), interpolation=cv2.INTER_LINEAR)
    return (soft > 127).astype(np.uint8)


@dataclass(frozen=True)
class Sample:
    """One view.

    Attributes:
        image: uint8 (S, S, 3) BGR.
        mask: of the class, uint8 (S, S) 0/1.
        owner: the object of each cell, int16 (S / 4, S / 4), 0 = none or unknown.
        regions: the share of each cell that belongs to each region, float32 (R, S / 4, S / 4).
        region_owner: the object of each region, int64 (R,), 0 = several or unknown.
        pairs: whether linkage would ask about each pair of regions, bool (R, R).
        necks: what shape says of each pair, float32 (R, R), see ``neck_evidence``.
        prompts: the regions that are asked about, int64 (P,).
        weight: how much the sample counts.
    """

    image: np.ndarray
    mask: np.ndarray
    owner: np.ndarray
    regions: np.ndarray
    region_owner: np.ndarray
    pairs: np.ndarray
    necks: np.ndarray
    prompts: np.ndarray
    weight: float


class SampleSet:
    """Samples by number."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.composer = QuestionComposer(bank, seed, VIEW_PX)
        self.seed = seed

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, 1, number])
        self.composer.joins = bool(rng.random() < _PIECES)
        for attempt in range(_ATTEMPTS):
            composite = self.composer(number * _ATTEMPTS + attempt)
            sample = (pieces_sample if self.composer.joins else component_sample)(composite, rng)
            if sample is not None:
                return sample
        raise RuntimeError(f"no composite of sample {number} has two regions")


def component_sample(composite, rng: np.random.Generator) -> Sample | None:
    """The question of cuts: all regions of one component; None where it has no two."""
    mask = enlarged_mask(composite.mask)
    _, component = cv2.connectedComponents(mask, connectivity=8)
    areas = np.bincount(component[component > 0], minlength=2)[1:]
    own = (component == 1 + rng.choice(len(areas), p=areas / areas.sum())).astype(np.uint8)
    label = largest_regions(regions_of(own))
    if label.max() < 2:
        return None
    region_owner = owners_of(label, _enlarged_owner(composite))
    necks = neck_evidence(own, label).astype(np.float32)
    single = len(np.unique(region_owner[region_owner > 0])) == 1
    weight = _SINGLE_WEIGHT if single else 1.0
    return _sample(composite, label, region_owner, np.ones_like(necks, bool), necks, weight, rng)


def pieces_sample(composite, rng: np.random.Generator) -> Sample | None:
    """The question of joins: pieces of different components, at the odds of photos; None where there are no
    two."""
    mask, owner = enlarged_mask(composite.mask), _enlarged_owner(composite)
    label = largest_regions(_merged(regions_of(mask), owner, rng), LEAST_PIECE_PX)
    count = int(label.max())
    if count < 2:
        return None
    _, component = cv2.connectedComponents(mask, connectivity=8)
    its_component = np.zeros(count + 1, np.int64)
    its_component[label.ravel()] = component.ravel()
    pairs = its_component[1:, None] != its_component[None, 1:]
    region_owner = owners_of(label, owner)
    area = np.bincount(label.ravel())[1:]
    right = pairs & (region_owner[:, None] == region_owner[None]) & (region_owner > 0)[None]
    kept = next(shares[bool(right.any())] for most, *shares in _KEPT if count <= most)
    if right.any() and (area[:, None] / area[None])[right].max() < _ALIKE:
        kept *= _KEPT_ALIKE
    if not pairs.any() or rng.random() > kept:
        return None
    return _sample(composite, label, region_owner, pairs, np.zeros(pairs.shape, np.float32), 1.0, rng)


def _enlarged_owner(composite) -> np.ndarray:
    return np.maximum(composite.owner, 0).repeat(2, 0).repeat(2, 1)


def owners_of(label: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The object that has nearly all of each region, int64 (n,), 0 = none."""
    count, owners = int(label.max()), int(owner.max()) + 1
    votes = np.bincount(label.ravel() * owners + owner.ravel(), minlength=(count + 1) * owners)
    votes = votes.reshape(count + 1, -1)[1:]
    votes[:, 0] = 0
    sure = votes.max(1) > _PURE * np.bincount(label.ravel(), minlength=count + 1)[1:]
    return np.where(sure, votes.argmax(1), 0).astype(np.int64)


def _sample(composite, label, region_owner, pairs, necks, weight, rng) -> Sample | None:
    asked = np.flatnonzero(region_owner)
    if not len(asked):
        return None
    cells = np.maximum(composite.owner, 0)[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    return Sample(
        composite.image,
        composite.mask,
        cells.astype(np.int16),
        cell_shares(label, len(region_owner)),
        region_owner,
        pairs,
        necks,
        rng.permutation(asked)[:_PROMPTS],
        weight,
    )


def largest_regions(label: np.ndarray, least_px: int = LEAST_REGION_PX) -> np.ndarray:
    """The largest regions, numbered from 1 on."""
    area = np.bincount(label.ravel())
    area[0] = 0
    kept = np.argsort(-area, kind="stable")[:MOST_REGIONS]
    kept = kept[area[kept] >= least_px]
    number = np.zeros(len(area), np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    return number[label]


def _merged(label: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Regions merged as cutting would have merged them: those of one object in one component, all of them or
    some."""
    _, component = cv2.connectedComponents((label > 0).astype(np.uint8), connectivity=8)
    count, owners = int(label.max()) + 1, int(owner.max()) + 1
    votes = np.bincount(label.ravel() * owners + owner.ravel(), minlength=count * owners).reshape(
        count, owners
    )
    votes[:, 0] = 0
    its_owner = votes.argmax(1)
    its_component = np.zeros(count, np.int64)
    its_component[label.ravel()] = component.ravel()
    number = np.arange(count)
    for key in {(c, o) for c, o in zip(its_component[1:], its_owner[1:], strict=True) if o}:
        its = np.flatnonzero((its_component == key[0]) & (its_owner == key[1]))
        its = its[its > 0]
        if rng.random() > _MERGED_WHOLE:
            its = its[rng.random(len(its)) < 0.6]
        if len(its):
            number[its] = its[0]
    return number[label]


def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """A batch: views stacked, regions and prompts in a row with the number of their view or region."""
    first = np.cumsum([0, *(len(s.regions) for s in samples)])
    prompts = np.concatenate([s.prompts + f for s, f in zip(samples, first, strict=False)])
    prompts = np.random.default_rng(len(prompts)).permutation(prompts)
    stacked = {
        "images": np.stack([s.image for s in samples]),
        "masks": np.stack([s.mask for s in samples]),
        "owners": np.stack([s.owner for s in samples]),
        "regions": np.concatenate([s.regions for s in samples]),
        "region_owners": np.concatenate([s.region_owner for s in samples]),
        "pairs": torch.block_diag(*(torch.from_numpy(s.pairs) for s in samples)),
        "necks": torch.block_diag(*(torch.from_numpy(s.necks) for s in samples)),
        "region_views": np.repeat(np.arange(len(samples)), np.diff(first)),
        "prompts": np.resize(prompts, BATCH_PROMPTS),
        "weights": np.array([s.weight for s in samples], np.float32),
    }
    return {name: torch.as_tensor(array) for name, array in stacked.items()}


def banks(data: Path, cutouts: Path | None, cache: Path) -> tuple[Bank, Bank]:
    """Objects to train on and objects kept apart, of the development data, kept in ``cache``; the network
    that ships tells groups."""
    if cache.exists():
        return pickle.loads(cache.read_bytes())
    train, drawn = data / "train", [data / "semantic" / name for name in ("voc12", "msrc", "ccp")]
    bank = build_bank(
        train / "images", train / "semantic", train / "confidence", cutouts, round(2.5 * VIEW_PX), drawn
    )
    bank = split_groups(bank, predict_pseudo_labels(bank, tfiseg.Refiner(max_views=100_000)))
    both = split_bank(remove_dented_objects(bank), 0.1, 0)
    cache.write_bytes(pickle.dumps(both, protocol=5))
    return both
