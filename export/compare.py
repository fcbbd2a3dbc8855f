"""Compare two networks: ONNX models, engines or sources of ``tfiseg export``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..calibration.frames import sample_frames
from ..runtime.evaluate.comparison import compare, write_worst_sheet
from ..runtime.segmenter import Segmenter

_FILES = (".onnx", ".engine")


def compare_networks(
    reference: str,
    candidate: str,
    frames: str,
    count: int,
    seed: int,
    sheet: Path,
    threads: int = 0,
    quiet: bool = True,
) -> dict[str, Any]:
    """Compare two networks on a sample of frames and draw the worst frames.

    Args:
        reference, candidate: a .onnx in tfiseg's format, a .engine for this machine, or a source of
            ``tfiseg export``.
        frames: a source of frames, see ``open_source``.
        count, seed: size and seed of the sample.
        sheet: path of the contact sheet of the worst frames.
        threads: CPU threads; 0 = all.

    Returns:
        The report of ``Comparison.report()``, with the networks and the sheet's path.
    """
    sample = sample_frames(frames, count, seed, quiet)
    with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
        one = Segmenter(_file(reference, Path(folder, "reference.onnx")), threads=threads)
        other = Segmenter(_file(candidate, Path(folder, "candidate.onnx")), threads=threads)
        comparison = compare(one, other, sample, sample.names, quiet)
        write_worst_sheet(one, other, sample, comparison, sheet)
    return {**comparison.report(), "reference": reference, "candidate": candidate, "sheet": str(sheet)}


def _file(text: str, exported: Path) -> Path:
    """Return a network's file; another source is exported first, which checks it against the original."""
    if Path(text).suffix in _FILES:
        return Path(text)
    from .onnx_import.any_network import export_any

    export_any(text, exported, quiet=True)
    return exported
