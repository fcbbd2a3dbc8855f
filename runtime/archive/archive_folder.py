"""The output folder of an archive: Parquet parts, with which an interrupted run continues."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import FormatError, InputError, ModelError, OutputError
from ...files import printable, whole_file, write_whole
from ...schema import MAX_TEXT, boolean, either, map_of, number, optional, read_file, text
from ..inspect.model_file import sha256
from ..networks.instance_session import DEFAULT_INSTANCE_MODEL
from ..networks.session import DEFAULT_MODEL, check_exists
from ..segmenter_settings import SegmenterSettings
from .picture_list import pyarrow_parquet

ROWS_PER_PART = 1000
_SECONDS_PER_PART = 60.0  # a crash loses at most this much work
SETTINGS_NAME, PARTS_NAME, ERRORS_NAME = "archive.json", "parts", "errors.jsonl"
_IGNORED_SETTINGS = ("threads", "providers")  # they do not change the results
_CONTENT = "_sha256"
_SETTINGS = map_of(optional(either("a text or a number", text(MAX_TEXT), number(-1e12, 1e12), boolean)))


class ArchiveFolder:
    """A writer of ``parts/part-000001.parquet`` and so on, and of ``errors.jsonl``.

    Parts appear when they are complete. Columns: path, file_name, height, width, and instances, a list of
    structs of class_id, class_name, score, box_xyxy, area and rle (COCO's compressed counts).

    Args:
        folder: an existing, writable folder.
        settings: settings of the segmenter, which must be those of the results in the folder.

    Raises:
        InputError: the folder contains results of other settings, or of another model file with this name.
        ModelError: a model file is missing or cannot be read.
        OutputError: a part cannot be read or written.
    """

    def __init__(self, folder: Path, settings: SegmenterSettings) -> None:
        self.folder, self.parts = folder, folder / PARTS_NAME
        self.parts.mkdir(exist_ok=True)
        self._settings = self._check_settings(settings)
        self._rows: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._errors: list[dict[str, str]] = []
        self.done: set[str] = set()
        parquet = pyarrow_parquet()
        for part in self.part_paths():
            self.done.update(_read(parquet, part, ["path"])["path"].to_pylist())

    def _check_settings(self, settings: SegmenterSettings) -> dict[str, Any]:
        """Return the settings as JSON types, or raise InputError if the folder has results of others."""
        given = {
            name: value if isinstance(value, int | float | str | None) else str(value)
            for name, value in vars(settings).items()
            if name not in _IGNORED_SETTINGS
        }
        given |= _hash_models(settings)
        record, shown = self.folder / SETTINGS_NAME, printable(str(self.folder))
        if not record.exists():
            return given
        try:
            known = read_file(record, _SETTINGS)
        except FormatError as error:
            raise InputError(
                f"{shown}/{SETTINGS_NAME} is damaged ({error}): name another folder with --out"
            ) from error
        differing = [name for name in given if known.get(name) != given[name]]
        if differing:
            name = differing[0]
            was = f"{name} {known.get(name)!r}, got {given[name]!r}"
            if name.endswith(_CONTENT):
                was = f"another content of {name.removesuffix(_CONTENT)}"
            raise InputError(f"{shown} was begun with {was}: name another folder with --out")
        return given

    def part_paths(self) -> list[Path]:
        """Return the paths of the parts in the order of writing."""
        return sorted(self.parts.glob("part-*.parquet"))

    def add(self, path: str, record: dict[str, Any]) -> None:
        """Add the record of a picture (see ``frame_record``) unless the folder already contains it."""
        if path in self.done:
            return
        self.done.add(path)
        self._rows.append(_row(path, record))
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._began > _SECONDS_PER_PART:
            self.flush()

    def add_error(self, path: str, error: str) -> None:
        """Add an error of a picture; the next run tries the picture again."""
        self._errors.append({"path": printable(path), "error": printable(error)})

    @property
    def errors(self) -> list[dict[str, str]]:
        """The paths and errors of this run's pictures that could not be segmented."""
        return list(self._errors)

    def flush(self) -> None:
        """Write the records since the last part, and all errors."""
        numbers = [int(part.stem.split("-")[1]) for part in self.part_paths()]
        path = self.parts / f"part-{max(numbers, default=0) + 1:06d}.parquet"
        try:
            if self._rows:
                write_whole(self.folder / SETTINGS_NAME, json.dumps(self._settings, indent=1).encode())
                with whole_file(path) as part:
                    pyarrow_parquet().write_table(_table(self._rows), part, compression="zstd")
            lines = "".join(json.dumps(error) + "\n" for error in self._errors)
            write_whole(self.folder / ERRORS_NAME, lines.encode())
        except OSError as cause:
            raise OutputError(f"can't write {printable(str(path))}: {cause}") from cause
        self._rows, self._began = [], time.monotonic()

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of all pictures, in the format of ``frame_record``."""
        parquet, index = pyarrow_parquet(), 0
        for part in self.part_paths():
            for row in _read(parquet, part).to_pylist():
                yield _record(index, row)
                index += 1


def _hash_models(settings: SegmenterSettings) -> dict[str, str]:
    """Return the SHA-256 of each model file, because the file of a name may change."""
    models = {"model": settings.model or DEFAULT_MODEL}
    if settings.wanted_refine == "components" or settings.outlines:
        models["instance_model"] = settings.instance_model or DEFAULT_INSTANCE_MODEL
    contents = {}
    for name, path in models.items():
        check_exists(Path(path))
        try:
            contents[name + _CONTENT] = sha256(Path(path))
        except OSError as error:  # a folder, or no permission
            raise ModelError(f"can't read the model {path}: {error.strerror}") from error
    return contents


def _row(path: str, record: dict[str, Any]) -> dict[str, Any]:
    height, width = record["size_hw"]
    return {
        "path": path,
        "file_name": record.get("file_name", record["name"]),
        "height": height,
        "width": width,
        "instances": [
            {
                "class_id": instance["class_id"],
                "class_name": instance["class_name"],
                "score": instance["score"],
                "box_xyxy": instance["box_xyxy"],
                "area": instance["area"],
                "rle": instance["segmentation"]["counts"],
            }
            for instance in record["instances"]
        ],
    }


def _record(index: int, row: dict[str, Any]) -> dict[str, Any]:
    size_hw = [row["height"], row["width"]]
    return {
        "frame_index": index,
        "name": Path(row["file_name"]).stem,
        "file_name": row["file_name"],
        "size_hw": size_hw,
        "instances": [
            {
                "class_id": instance["class_id"],
                "class_name": instance["class_name"],
                "score": instance["score"],
                "box_xyxy": instance["box_xyxy"],
                "area": instance["area"],
                "segmentation": {"size": size_hw, "counts": instance["rle"]},
            }
            for instance in row["instances"]
        ],
    }


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    instance = [
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("score", pa.float64()),
        ("box_xyxy", pa.list_(pa.float64())),
        ("area", pa.int32()),
        ("rle", pa.string()),
    ]
    columns = [
        ("path", pa.string()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("instances", pa.list_(pa.struct(instance))),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))


def _read(parquet: Any, part: Path, columns: list[str] | None = None) -> Any:
    try:
        return parquet.read_table(part, columns=columns)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"can't read {printable(str(part))}: {error}. Remove it to segment its images again"
        ) from error
