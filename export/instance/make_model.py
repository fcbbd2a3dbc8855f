"""Make an instance network from images and class maps: train it, fit the rules, export the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...plugins.settings import check_min_area
from ...runtime.networks.instance_session import InstanceMaps
from ..training import print_line
from .composites import Composer
from .contact_sheets import bank_sheet, composite_sheet
from .export_onnx import ViewMaps, export_instance
from .mask_refinement import RoughMaskComposer, train_mask_refinement
from .network import InstanceNetwork
from .rule_fitting import ViewInference, fit_rules, rules_report
from .train import InstanceRecipe, held_seed, prepare_banks, train_instance


def make_instance_model(
    images: Path,
    semantic: Path,
    confidence: Path | None,
    start: Path,
    checkpoint: Path,
    output: Path,
    recipe: InstanceRecipe,
    teacher: Path | None = None,
    cutouts: Path | None = None,
    rule_composites: int = 8000,
    sheets: Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    training_data: str = "not stated",
    licence: str = "not stated",
    min_area: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train an instance network, fit its rules and write ``output``.

    ``prepare_banks``, ``train_instance`` and ``export_instance`` document the arguments. ``sheets`` is a
    folder for contact sheets of the training data.

    Returns:
        The report of ``export_instance``, with the rules' held-out errors, the number of dropped objects, and
        ``lone_odds``, the single-to-group ratio (None without a teacher).
    """
    if min_area is not None:
        check_min_area(min_area)
    banks = prepare_banks(images, semantic, confidence, recipe, teacher, cutouts, rule_composites, quiet)
    if sheets is not None:
        bank_sheet(banks.used, recipe.view_px, sheets / "bank.jpg")
        composite_sheet(Composer(banks.used, recipe.seed, recipe.view_px), sheets / "composites.jpg")
        if recipe.outline_steps:
            composite_sheet(RoughMaskComposer(banks.used, recipe.seed, recipe.view_px), sheets / "rough.jpg")
        print_line(f"check {sheets}/bank.jpg (one object per cell) and composites.jpg")
    network, dropped = train_instance(banks, start, checkpoint, recipe, workers, threads, quiet=quiet)
    if sheets is not None and dropped:
        bank_sheet(banks.used, recipe.view_px, sheets / "dropped.jpg", sorted(dropped))
    train_mask_refinement(
        network, banks, checkpoint.with_name(checkpoint.name + ".outlines"), recipe, workers, quiet
    )
    fits = fit_rules(
        banks.held,
        held_seed(recipe) + 1,
        _inference(network),
        recipe.view_px,
        rule_composites,
        recipe.seed,
        quiet,
        banks.single_to_group_ratio,
    )
    rules = {name: f.rule for name, f in fits.items()}
    ratio = None if banks.single_to_group_ratio is None else round(banks.single_to_group_ratio, 2)
    outlines = recipe.outline_steps > 0
    report = export_instance(
        network, output, recipe.view_px, rules, training_data, licence, outlines, min_area, ratio
    )
    return report | {"rules": rules_report(fits), "dropped": len(dropped), "lone_odds": ratio}


def _inference(network: InstanceNetwork) -> ViewInference:
    """Return the network as a function from views and masks to maps, in torch."""
    maps = ViewMaps(network, outlines=False)

    @torch.no_grad()
    def infer(views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> InstanceMaps:
        return InstanceMaps(*(m.numpy() for m in maps(torch.from_numpy(views), torch.from_numpy(masks))))

    return infer
