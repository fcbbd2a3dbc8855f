"""From pictures and class maps to an instance network in a file: train, fit the rules on what was kept apart,
export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...plugins.settings import check_min_area
from ...runtime.networks.instance_session import InstanceMaps
from ..training import say
from .composites import Composer
from .contact_sheets import bank_sheet, composite_sheet
from .export_onnx import ViewMaps, export_instance
from .mask_refinement import RoughComposer, train_outlines
from .network import InstanceNetwork
from .rule_fitting import Look, fit_rules, rules_report
from .train import InstanceRecipe, banks_of, held_seed, train_instance


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
    """Train on ``images`` and ``semantic`` (see ``build_bank``), fit the rules, write ``output``; returns
    what ``export_instance`` says, the rules' held-out errors, how many objects were dropped, ``lone_odds``
    (None where no teacher counted). Raises InputError as ``build_bank``, or for a ``min_area`` that none can
    have."""
    if min_area is not None:
        check_min_area(min_area)
    banks = banks_of(images, semantic, confidence, recipe, teacher, cutouts, quiet=quiet)
    if sheets is not None:
        bank_sheet(banks.used, recipe.view_px, sheets / "bank.jpg")
        composite_sheet(Composer(banks.used, recipe.seed, recipe.view_px), sheets / "composites.jpg")
        if recipe.outline_steps:
            composite_sheet(RoughComposer(banks.used, recipe.seed, recipe.view_px), sheets / "rough.jpg")
        say(f"look at {sheets}/bank.jpg and composites.jpg: one object in each picture of the bank?")
    network, dropped = train_instance(banks, start, checkpoint, recipe, workers, threads, quiet=quiet)
    if sheets is not None and dropped:
        bank_sheet(banks.used, recipe.view_px, sheets / "dropped.jpg", sorted(dropped))
    train_outlines(
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
        banks.lone_odds,
    )
    rules = {name: f.rule for name, f in fits.items()}
    odds = None if banks.lone_odds is None else round(banks.lone_odds, 2)
    outlines = recipe.outline_steps > 0
    report = export_instance(
        network, output, recipe.view_px, rules, training_data, licence, outlines, min_area, odds
    )
    return report | {"rules": rules_report(fits), "dropped": len(dropped), "lone_odds": odds}


def _inference(network: InstanceNetwork) -> Look:
    """The network as a function from views and masks to maps, in torch."""
    maps = ViewMaps(network, outlines=False)

    @torch.no_grad()
    def infer(views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> InstanceMaps:
        return InstanceMaps(*(m.numpy() for m in maps(torch.from_numpy(views), torch.from_numpy(masks))))

    return infer
