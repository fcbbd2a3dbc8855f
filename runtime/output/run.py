"""``tfiseg run``: segment the frames of a source into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import OutputError, PipelineError, check_choice
from ...files import printable
from ..pipeline.pipeline import Pipeline
from ..pipeline.tracker import Tracker
from ..segmenter import Segmenter
from ..sources.base import Source
from ..sources.files import unreadable_message
from ..sources.open_source import open_source
from .coco import COCO_NAME, write_coco
from .run_writer import RunWriter, write_summary

OUTPUT_FORMATS = ("jsonl", "coco")
_INTERRUPTED = "interrupted"
_UNFINISHED = "the run has not ended: its process was killed, or is still running"


def run(
    source: Source | str,
    segmenter: Segmenter,
    out: Path,
    max_frames: int | None = None,
    quiet: bool = False,
    policy: str | None = None,
    nth: int = 1,
    workers: int = 1,
    tracker: Tracker | None = None,
    output_format: str = "jsonl",
) -> dict[str, Any]:
    """Segment the frames of a source into a folder.

    If the source fails, or at Ctrl-C or SIGTERM, the outputs of the finished frames are valid.

    Args:
        source: a ``Source``, or an argument of ``open_source``.
        out: the folder; it is created if needed.
        max_frames: see ``Pipeline``, as are ``policy``, ``nth``, ``workers`` and ``tracker``.
        output_format: "jsonl", or "coco" to also write coco.json.

    Returns:
        The content of summary.json. ``error`` is the error that ended the run early, or None; ``unreadable``
        lists the skipped image files.

    Raises:
        InputError: an option is out of range, or the folder is not writable or in use.
        SourceError: the source cannot be opened.
    """
    check_choice("output_format", output_format, OUTPUT_FORMATS)
    frames = source if isinstance(source, Source) else open_source(source)
    with frames:
        writer = RunWriter(out, frames)
        with writer.lock:
            write_summary(writer.folder, {"source": printable(frames.name), "error": _UNFINISHED})
            pipeline = Pipeline(
                frames,
                segmenter,
                policy=policy,
                nth=nth,
                workers=workers,
                tracker=tracker,
                draw=True,
                sinks=[writer],
                max_frames=max_frames,
            )
            error = _write_results(pipeline, writer, max_frames, quiet)
            coco_names = segmenter.class_names if output_format == "coco" else None
            try:
                return _finish(writer, pipeline, coco_names, error)
            except KeyboardInterrupt:  # all frames are finished: write the summary nevertheless
                return _finish(writer, pipeline, coco_names, error or _INTERRUPTED)


def _write_results(pipeline: Pipeline, writer: RunWriter, max_frames: int | None, quiet: bool) -> str | None:
    """Write all results and return the error that ended the run early, or None."""
    count = pipeline.source.frame_count
    total = count if max_frames is None else min(max_frames, count or max_frames)
    try:
        with (
            tqdm(total=total, unit="frame", desc="tfiseg run", mininterval=0.5, disable=quiet) as bar,
            writer,
            pipeline,
        ):
            for _ in pipeline:
                bar.update()
    except (PipelineError, OutputError) as error:
        return str(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return None


def _finish(
    writer: RunWriter, pipeline: Pipeline, coco_names: Sequence[str] | None, error: str | None
) -> dict[str, Any]:
    """Write the summary, and coco.json if there are class names for it; return the summary."""
    source, coco_json = pipeline.source, None
    if error is None and source.unreadable:
        error = unreadable_message(source)
    if coco_names is not None:
        coco_json = writer.folder / COCO_NAME
        try:
            write_coco(writer.folder / "instances.jsonl", coco_json, coco_names)
        except OutputError as coco_error:
            coco_json, error = None, error or str(coco_error)
    stats = pipeline.stats()
    summary = {
        "source": printable(source.name),
        **stats.pop("times"),
        "frames": writer.frame_count,  # an interruption may lose frames between the last two stages
        "instances": writer.instance_count,
        **{name: stats[name] for name in ("captured", "dropped", "skipped", "reconnects")},
        "overlay": writer.overlays,
        "instances_jsonl": printable(str(writer.folder / "instances.jsonl")),
        "coco_json": coco_json and printable(str(coco_json)),
        "unreadable": list(source.unreadable),
        "error": error,
    }
    try:
        write_summary(writer.folder, summary)
    except OutputError as summary_error:
        summary["error"] = error or str(summary_error)
    return summary


def summary_table(summary: dict[str, Any]) -> str:
    """Return the summary as readable text."""
    lines = [
        f"{summary['frames']} frames, {summary['instances']} instances, {summary['fps']:.1f} frames/s "
        "(drawing and writing included)"
    ]
    lost = [f"{summary[name]} {name}" for name in ("dropped", "skipped") if summary[name]]
    if lost:
        lines.append(f"of {summary['captured']} frames captured: {', '.join(lost)}")
    lines.append(f"  {'stage':<10}{'p50 ms':>9}{'p99 ms':>9}")
    for stage, times in summary["stages"].items():
        lines.append(f"  {stage:<10}{times['p50_ms']:>9.2f}{times['p99_ms']:>9.2f}")
    lines.append(f"overlay: {summary['overlay']}")
    lines.append(f"masks:   {summary['coco_json'] or summary['instances_jsonl']}")
    return "\n".join(lines)
