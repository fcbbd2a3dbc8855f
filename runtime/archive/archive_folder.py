"""The output of an archive: Parquet parts that are written whole, from which an interrupted run goes on."""

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
_SECONDS_PER_PART = 60.0  # at most so much work is lost when the machine stops
SETTINGS_NAME, PARTS_NAME, ERRORS_NAME = "archive.json", "parts", "errors.jsonl"
# who segments does not change what is found
_NOT_COMPARED = ("threads", "providers")
_CONTENT = "_sha256"
_SETTINGS = map_of(optional(either("a text or a number", text(MAX_TEXT), number(-1e12, 1e12), boolean)))


class ArchiveFolder:
    """Writes rows of segmented pictures: ``parts/part-000001.parquet`` and so on, and ``errors.jsonl``.

    A part appears when it is complete. Columns: path, file_name, height, width, and instances, a list of
    structs of class_id, class_name, score, box_xyxy, area and rle (COCO's compressed counts).

    Args:
        folder: it exists and can be written to.
        settings: of the segmenter. A folder that was begun with others is refused.

    Raises:
        InputError: the folder holds results of other settings, or of another model file of this name.
        ModelError: there is no such model, or it can't be read.
        OutputError: a part can't be read or written.
    """

    def __init__(self, folder: Path, settings: SegmenterSettings) -> None:
        self.folder, self.parts = folder, folder / PARTS_NAME
        self.parts.mkdir(exist_ok=True)
        self._settings = self._checked_settings(settings)
        self._rows: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._errors: list[dict[str, str]] = []
        self.done: set[str] = set()
        parquet = pyarrow_parquet()
        for part in self.part_paths():
            self.done.update(_read(parquet, part, ["path"])["path"].to_pylist())

    def _checked_settings(self, settings: SegmenterSettings) -> dict[str, Any]:
        """The settings as JSON types, equal to those of the results that are here."""
        given = {
            name: value if isinstance(value, int | float | str | None) else str(value)
            for name, value in vars(settings).items()
            if name not in _NOT_COMPARED
        }
        given |= _contents_of_models(settings)
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
            was = (
                f"another content of {name.removesuffix(_CONTENT)}"
                if name.endswith(_CONTENT)
                else f"{name} {known.get(name)!r}, got {given[name]!r}"
            )
            raise InputError(f"{shown} was begun with {was}: name another folder with --out")
        return given

    def part_paths(self) -> list[Path]:
        """Paths of the parts, in the order in which they were written."""
        return sorted(self.parts.glob("part-*.parquet"))

    def add(self, path: str, record: dict[str, Any]) -> None:
        """Add a picture's record, see ``frame_record``. A picture that is done already counts once."""
        if path in self.done:
            return
        self.done.add(path)
        self._rows.append(_row(path, record))
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._began > _SECONDS_PER_PART:
            self.flush()

    def add_error(self, path: str, error: str) -> None:
        """Add a picture that could not be segmented; the next run tries it again."""
        self._errors.append({"path": printable(path), "error": printable(error)})

    @property
    def errors(self) -> list[dict[str, str]]:
        """Pictures of this run that could not be segmented: path and error."""
        return list(self._errors)

    def flush(self) -> None:
        """Write what has been added since the last part, and the errors so far."""
        numbers = [int(part.stem.split("-")[1]) for part in self.part_paths()]
        path = self.parts / f"part-{max(numbers, default=0) + 1:06d}.parquet"
        try:
            if self._rows:
                write_whole(self.folder / SETTINGS_NAME, json.dumps(self._settings, indent=1).encode())
                with whole_file(path) as part:
                    pyarrow_parquet().write_table(_table(self._rows), part, compression="zstd")
            lines = "".join(json.dumps(error) + "\n" for error in self._errors)
            write_whole(self.folder / ERRORS_NAME, lines.encode())
        except OSError as wrong:
            raise OutputError(f"can't write {printable(str(path))}: {wrong}") from wrong
        self._rows, self._began = [], time.monotonic()

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of all pictures, as ``frame_record`` makes them, one part at a time."""
        parquet, index = pyarrow_parquet(), 0
        for part in self.part_paths():
            for row in _read(parquet, part).to_pylist():
                yield _record(index, row)
                index += 1


def _contents_of_models(settings: SegmenterSettings) -> dict[str, str]:
    """The SHA-256 of each model's file: another network under the same name finds other instances."""
    models = {"model": settings.model or DEFAULT_MODEL}
    if settings.wanted_refine == "components" or settings.outlines:
        models["instance_model"] = settings.instance_model or DEFAULT_INSTANCE_MODEL
    contents = {}
    for name, path in models.items():
        check_exists(Path(path))
        try:
            contents[name + _CONTENT] = sha256(Path(path))
        except OSError as error:  # a folder, or a file of others
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
                "class_id": one["class_id"],
                "class_name": one["class"],
                "score": one["score"],
                "box_xyxy": one["box_xyxy"],
                "area": one["area"],
                "rle": one["segmentation"]["counts"],
            }
            for one in record["instances"]
        ],
    }


def _record(index: int, row: dict[str, Any]) -> dict[str, Any]:
    size_hw = [row["height"], row["width"]]
    return {
        "frame": index,
        "name": Path(row["file_name"]).stem,
        "file_name": row["file_name"],
        "size_hw": size_hw,
        "instances": [
            {
                "class_id": one["class_id"],
                "class": one["class_name"],
                "score": one["score"],
                "box_xyxy": one["box_xyxy"],
                "area": one["area"],
                "segmentation": {"size": size_hw, "counts": one["rle"]},
            }
            for one in row["instances"]
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
            f"can't read {printable(str(part))}: {error}. Remove it, and its pictures are segmented again"
        ) from error
