"""Add instance heads to a semantic network: train them, fit the rules, export the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.refine.refiner import Refiner
from ..engine.build import semantic_network
from ..instance.bank import bank_summary, build_bank, remove_dented_objects
from ..instance.rule_fitting import rules_report
from ..instance.teacher import predict_pseudo_labels
from ..training import print_line
from .backbone_taps import find_taps
from .composites import make_material
from .contact_sheets import frame_sheet
from .export_onnx import export_frame
from .rule_fitting import fit_frame_rules
from .train import FrameRecipe, held_seed, train_frame


def make_frame_model(
    model: Path,
    images: Path,
    semantic: Path,
    confidence: Path | None,
    checkpoint: Path,
    output: Path,
    recipe: FrameRecipe,
    instance_model: Path | None = None,
    rule_composites: int = 4000,
    sheets: Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    training_data: str = "not stated",
    quiet: bool = False,
    more: Sequence[Path] = (),
) -> dict[str, Any]:
    """Add instance heads to a semantic network and write ``output``.

    Args:
        model: semantic network in tfiseg's format; existing heads are replaced.
        images, semantic, confidence, more: see ``load_pictures``; with the model's class ids.
        checkpoint: written during training; an existing one is resumed.
        output: NAME.onnx, written atomically.
        instance_model: the teacher, whose minimum area is adopted; default: tfiseg's instance network.
        rule_composites: number of composites to fit the merge rules on.
        sheets: folder for pictures of composites.
        workers, threads: processes that make composites, and CPU threads of torch.

    Returns:
        The report of ``export_frame``, and the rules' held-out errors.

    Raises:
        ModelError: ``model`` is not in tfiseg's format, or has no features at stride 4.
    """
    network = semantic_network(model)
    taps = find_taps(network)
    print_line("features at " + ", ".join(f"stride {t.stride} ({t.channels} channels)" for t in taps))
    bank = build_bank(images, semantic, confidence, more=more)
    print_line(bank_summary(bank))
    teacher = Refiner(instance_model, threads=threads or 0)
    labels = predict_pseudo_labels(bank, teacher, quiet)
    material = make_material(remove_dented_objects(bank), labels, recipe.held_out, recipe.seed)
    if sheets is not None:
        frame_sheet(material.composer(recipe.seed), sheets / "frames.jpg")
        print_line(f"check {sheets}/frames.jpg: each object should have one color")
    heads = train_frame(material, network, taps, checkpoint, recipe, workers, threads, quiet)
    part = output.with_name(f"{output.stem}.unruled.onnx")
    try:
        export_frame(network, taps, heads, part)
        held = material.held_composer(held_seed(recipe) + 1)
        fits = fit_frame_rules(held, part, rule_composites, recipe.seed, quiet)
    finally:
        part.unlink(missing_ok=True)
    rules, min_area = {name: f.rule for name, f in fits.items()}, teacher.session.min_area
    report = export_frame(network, taps, heads, output, rules, images, training_data, min_area)
    return report | {"rules": rules_report(fits)}
