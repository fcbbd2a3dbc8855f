"""Segment an archive of pictures on a Ray cluster: one segmenter per worker, results to Parquet."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import InputError, MissingDependencyError, SourceError, TfisegError, check_choice
from ...files import FolderLock, printable, writable_folder
from ...images import read_image
from ...plugins.native import usable_threads
from ..networks.engine_file import SUFFIX as ENGINE_SUFFIX
from ..output.coco import COCO_NAME, write_coco_frames
from ..output.run import OUTPUT_FORMATS
from ..output.run_writer import frame_record, write_summary
from ..segmenter import Segmenter
from ..segmenter_settings import SegmenterSettings
from ..sources.base import Frame
from .archive_folder import ArchiveFolder
from .picture_list import Picture, list_pictures

LOCAL = "local"  # address that starts a cluster on this machine for one run
_MAX_PER_TASK = 64  # pictures, which are segmented again if a worker dies
_TASKS_PER_WORKER = 8  # at least, so that all workers end at about the same time
_MAX_RETRIES = 3  # of a task whose worker died, because a picture may be the cause


class PictureWorker:
    """An actor of Ray Data with one ``Segmenter``."""

    def __init__(self, settings: SegmenterSettings) -> None:
        self.segmenter = Segmenter.from_settings(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Segment pictures.

        Args:
            batch: columns "path" and "file_name".

        Returns:
            Columns "path", "record" (JSON, see ``frame_record``), "error" (a message or ""), and
            "class_names" (JSON).
        """
        pairs = list(zip(batch["path"], batch["file_name"], strict=True))
        results = [self.segment(str(path), str(name)) for path, name in pairs]
        names = json.dumps(self.segmenter.class_names)
        return {
            "path": list(batch["path"]),
            "record": [record for record, _ in results],
            "error": [error for _, error in results],
            "class_names": [names if k == 0 else "" for k in range(len(pairs))],
        }

    def segment(self, path: str, file_name: str) -> tuple[str, str]:
        """Return the record and the error of one picture; one of them is empty."""
        try:
            frame = Frame(read_image(path), name=Path(path).stem, file_name=file_name)
            return json.dumps(frame_record(frame, self.segmenter(frame))), ""
        except TfisegError as error:
            return "", str(error)
        except Exception as error:  # one file must not end an archive
            return "", f"{path}: {type(error).__name__}: {error}"


def segment_archive(
    source: str,
    out: str | Path,
    settings: SegmenterSettings,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    output_format: str = "jsonl",
    quiet: bool = False,
    worker: type[PictureWorker] = PictureWorker,
) -> dict[str, Any]:
    """Segment the pictures of an archive on a Ray cluster.

    Pictures in the output folder are skipped, so that an interrupted run continues. Workers that die are
    replaced, and their current pictures are segmented again. This process writes all results.

    Args:
        source: see ``list_pictures``. Each machine of the cluster must find the files under the same paths.
        settings: settings of the segmenters; 0 ``threads`` means one thread per worker.
        address: address of a Ray cluster, e.g. "auto" or "ray://host:10001"; "local" starts one on this
            machine.
        workers: number of segmenters; default: one per CPU, or per GPU with an engine.
        output_format: "jsonl", or "coco" to also write coco.json.

    Returns:
        The content of summary.json.

    Raises:
        SourceError: there are no pictures, or no cluster at the address.
        InputError: an option is out of range, or the output folder is not writable, is in use, or has results
            of other settings.
        ModelError: a model file is missing or damaged.
        MissingDependencyError: Ray is missing.
    """
    check_choice("output_format", output_format, OUTPUT_FORMATS)
    began = time.monotonic()
    ray = _ray()
    pictures = list_pictures(source)
    path = writable_folder(out)
    with FolderLock(path):
        folder = ArchiveFolder(path, settings)
        todo = [picture for picture in pictures if picture.path not in folder.done]
        count = len(pictures) - len(todo)
        names: list[str] = []
        cpus = workers * max(1, settings.threads) if workers else usable_threads()
        if todo and not _needs_gpu(settings):  # a wrong model or class is one error, not one per worker
            names = list(Segmenter.from_settings(settings).class_names)
        with _cluster(ray, address, cpus) as resources, _flush_at_end(folder):
            size = _pool_size(resources, settings, workers, len(todo))
            rows = _results(ray, todo, settings, size, worker)
            bar = tqdm(
                rows, total=len(pictures), initial=count, unit="image", desc="tfiseg run", disable=quiet
            )
            names, error = _add_results(bar, folder, todo, names)
        coco_json = _write_coco(folder, names) if output_format == "coco" and error is None else None
        seconds = time.monotonic() - began
        return _write_summary(source, folder, pictures, count, size, seconds, coco_json, error)


@contextmanager
def _flush_at_end(folder: ArchiveFolder) -> Iterator[None]:
    """Write the added records at the end of the block, even after an error."""
    try:
        yield
    finally:
        folder.flush()


def _ray() -> Any:
    try:
        import ray.data
    except ImportError as missing:
        raise MissingDependencyError('--ray needs Ray: pip install ".[ray]" in the repository') from missing
    return ray


@contextmanager
def _cluster(ray: Any, address: str, cpus: int) -> Iterator[dict[str, float]]:
    """Connect to a cluster, or start one with this number of CPUs, and yield its resources."""
    was_connected = ray.is_initialized()
    if not was_connected:
        options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if address == LOCAL:
            options |= {"include_dashboard": False, "num_cpus": cpus}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"there is no Ray cluster at {address!r}: start one with `ray start --head`, or use this "
                f"machine alone with --ray and no address ({error})"
            ) from error
        # Ray's handler would end the process at once
        if on_terminate is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield ray.cluster_resources()
    finally:
        if not was_connected:
            ray.shutdown()


def _needs_gpu(settings: SegmenterSettings) -> bool:
    return Path(settings.model or "").suffix == ENGINE_SUFFIX


def _pool_size(
    resources: dict[str, float], settings: SegmenterSettings, workers: int | None, pictures: int
) -> int:
    """Return the number of workers, limited by the cluster, because others would wait forever."""
    usable = int(resources.get("CPU", 0) // max(1, settings.threads))
    if _needs_gpu(settings):
        usable = min(usable, int(resources.get("GPU", 0)))
    if not usable:
        raise InputError(
            f"the Ray cluster has no room for a worker of {max(1, settings.threads)} CPUs"
            f"{' and a GPU' if _needs_gpu(settings) else ''}: it has {resources.get('CPU', 0):g} CPUs and "
            f"{resources.get('GPU', 0):g} GPUs"
        )
    return max(1, min(workers or usable, usable, pictures))


def _results(
    ray: Any, todo: list[Picture], settings: SegmenterSettings, size: int, worker: type[PictureWorker]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``worker`` for each picture, in the order in which they are finished."""
    import pyarrow as pa

    if not todo:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the pictures of failed tasks are reported as errors
    context.execution_options.preserve_order = False
    threads = max(1, settings.threads)
    per_task = max(1, min(_MAX_PER_TASK, len(todo) // (size * _TASKS_PER_WORKER)))
    tables = [
        pa.table({name: [getattr(p, name) for p in todo[k : k + per_task]] for name in ("path", "file_name")})
        for k in range(0, len(todo), per_task)
    ]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns about max_task_retries but has no other option yet
        found = ray.data.from_arrow(tables).map_batches(
            worker,
            fn_constructor_args=[replace(settings, threads=threads)],
            batch_size=per_task,
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=threads,
            num_gpus=1 if _needs_gpu(settings) else 0,
            max_task_retries=_MAX_RETRIES,
        )
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield from batch.to_pylist()


def _add_results(
    rows: Iterable[dict[str, Any]], folder: ArchiveFolder, todo: list[Picture], names: list[str]
) -> tuple[list[str], str | None]:
    """Add all rows to the folder; return the class names, and the error that ended this early or None."""
    try:
        for row in rows:
            names = names or json.loads(row["class_names"] or "[]")
            if row["error"]:
                folder.add_error(row["path"], row["error"])
            else:
                folder.add(row["path"], json.loads(row["record"]))
        _add_missing(folder, todo)
    except KeyboardInterrupt:
        return names, "interrupted"
    return names, None


def _add_missing(folder: ArchiveFolder, todo: list[Picture]) -> None:
    """Add errors for the pictures of tasks whose workers died repeatedly."""
    reported = {error["path"] for error in folder.errors}
    for picture in todo:
        if picture.path not in folder.done and printable(picture.path) not in reported:
            folder.add_error(
                picture.path, "its worker died several times; an image of the same task may be the cause"
            )


def _write_coco(folder: ArchiveFolder, names: list[str]) -> str:
    path = folder.folder / COCO_NAME
    write_coco_frames(folder.records, path, names or _class_names(folder))
    return printable(str(path))


def _class_names(folder: ArchiveFolder) -> list[str]:
    """Return the names of the classes in the results, for a folder that was already complete."""
    names: dict[int, str] = {}
    for record in folder.records():
        names |= {instance["class_id"]: instance["class_name"] for instance in record["instances"]}
    return [names.get(k, f"class {k}") for k in range(max(names, default=0) + 1)]


def _write_summary(
    source: str,
    folder: ArchiveFolder,
    pictures: list[Picture],
    done_before: int,
    workers: int,
    seconds: float,
    coco_json: str | None,
    error: str | None,
) -> dict[str, Any]:
    errors = folder.errors
    listed = {picture.path for picture in pictures}
    segmented = len(folder.done & listed) - done_before
    summary = {
        "source": printable(source),
        "pictures": len(pictures),
        "done_before": done_before,
        "segmented": segmented,
        "failed": len(errors),
        "workers": workers,
        "seconds": round(seconds, 2),
        "parts": printable(str(folder.parts)),
        "coco_json": coco_json,
        "errors": errors[:20],
        "error": error or (f"{len(errors)} of {len(pictures)} images failed" if errors else None),
    }
    write_summary(folder.folder, summary)
    return summary
