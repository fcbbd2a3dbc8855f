"""Recordings of a live view: overlay, instances.jsonl, and an MCAP file that Foxglove opens. All can be read
after a kill -9."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from ...errors import MissingDependencyError, OutputError
from ...instances import Instances
from ..pipeline.result import Result
from ..sources.base import Source
from .run_writer import WRITE_SECONDS, RunWriter

_IMAGE, _ANNOTATIONS, _LABELS = "/camera/image", "/tfiseg/annotations", "/tfiseg/labels"
_CAMERA = "camera"  # Foxglove's frame of reference
_JPEG_QUALITY = 90
_CHUNK_BYTES = 1 << 18  # a frame or two: what is in a chunk that isn't written yet is lost in a crash
# MCAP's records that end a file without an index (mcap.dev/spec): DataEnd and Footer with nothing in them,
# and the magic bytes
_MAGIC = b"\x89MCAP0\r\n"
_END = b"\x0f" + struct.pack("<QI", 4, 0) + b"\x02" + struct.pack("<QQQI", 20, 0, 0, 0) + _MAGIC


class Recorder:
    """Writes a folder: ``NAME-overlay.mp4``, ``instances.jsonl``, ``recording.mcap``; a pipeline's sink, used
    with ``with``.

    Raises:
        InputError: the folder can't be written to. OutputError: a result can't be written.
            MissingDependencyError: mcap or foxglove-sdk.
    """

    name = "record"
    timeout_s = WRITE_SECONDS
    backlog = 8  # frames that may wait for the disk; beyond that it misses some rather than slow the view

    def __init__(self, folder: Path, source: Source) -> None:
        _packages()  # what is missing is said now
        self._run = RunWriter(folder, source)
        self._mcap: McapWriter | None = None

    def write(self, result: Result) -> None:
        self._run.write(result)
        assert self._mcap is not None
        self._mcap.write(result)

    def __enter__(self) -> Recorder:
        self._run.__enter__()  # its lock keeps others' recordings from being overwritten
        try:
            self._mcap = McapWriter(self._run.folder / "recording.mcap")
        except BaseException:
            self._run.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run.__exit__(kind, error, trace)
        finally:
            if self._mcap is not None:
                self._mcap.close()


def _packages() -> tuple[Any, Any, Any]:
    """Foxglove's messages, and MCAP's compression types and writer."""
    try:
        import foxglove.messages as messages
        from mcap.writer import CompressionType, Writer
    except ImportError as missing:
        raise MissingDependencyError(
            'recording needs mcap and foxglove-sdk: pip install ".[live]" in the repository'
        ) from missing
    return messages, CompressionType, Writer


class McapWriter:
    """Into an MCAP file: frames (foxglove.CompressedImage), outlines and names (foxglove.ImageAnnotations),
    label maps (foxglove.RawImage, mono16; its values are track ids where there are some)."""

    def __init__(self, path: Path) -> None:
        messages, compression, writer = _packages()
        self._messages = messages
        self._wall_ns = (
            time.time_ns() - time.monotonic_ns()
        )  # frames carry monotonic times, recordings the time of day
        self._count = 0
        try:
            self._file = EndedFile(path)
            stream: Any = self._file
            self._writer: Any = writer(stream, chunk_size=_CHUNK_BYTES, compression=compression.ZSTD)
            self._writer.start(profile="", library="tfiseg")
            kinds: dict[str, Any] = {
                _IMAGE: messages.CompressedImage,
                _ANNOTATIONS: messages.ImageAnnotations,
                _LABELS: messages.RawImage,
            }
            self._channels = {topic: self._channel(topic, kind.get_schema()) for topic, kind in kinds.items()}
        except OSError as wrong:
            raise OutputError(f"can't write {path}: {wrong.strerror or wrong}") from wrong

    def _channel(self, topic: str, schema: Any) -> int:
        schema_id = self._writer.register_schema(schema.name, schema.encoding, schema.data)
        return int(self._writer.register_channel(topic, "protobuf", schema_id))

    def write(self, result: Result) -> None:
        """Add one frame."""
        frame, found, m = result.frame, result.instances, self._messages
        at_ns = frame.capture_time_ns + self._wall_ns
        at = m.Timestamp(at_ns // 10**9, at_ns % 10**9)
        jpeg = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
        height, width = found.label_map.shape
        labels = _values(found)
        self._add(_IMAGE, m.CompressedImage(timestamp=at, frame_id=_CAMERA, data=jpeg, format="jpeg"), at_ns)
        self._add(_ANNOTATIONS, self._annotations(at, found), at_ns)
        raw = m.RawImage(
            timestamp=at,
            frame_id=_CAMERA,
            width=width,
            height=height,
            encoding="mono16",
            step=2 * width,
            data=labels.tobytes(),
        )
        self._add(_LABELS, raw, at_ns)
        self._count += 1

    def _add(self, topic: str, message: Any, at_ns: int) -> None:
        try:
            self._writer.add_message(
                self._channels[topic],
                log_time=at_ns,
                publish_time=at_ns,
                data=message.encode(),
                sequence=self._count,
            )
        except OSError as wrong:
            raise OutputError(f"can't write {self._file.path}: {wrong.strerror or wrong}") from wrong

    def _annotations(self, at: Any, found: Instances) -> Any:
        m, outlines, texts = self._messages, [], []
        colours = found.colours[:, ::-1] / 255
        for one in found:
            r, g, b = colours[one.number].tolist()
            colour = m.Color(r=r, g=g, b=b, a=1.0)
            for outline in found.polygon(one.index):
                points = [m.Point2(x=float(x), y=float(y)) for x, y in outline]
                kind = m.PointsAnnotationType.LineLoop
                outlines.append(
                    m.PointsAnnotation(
                        timestamp=at, type=kind, points=points, outline_color=colour, thickness=2.0
                    )
                )
            x, y = one.box_xyxy[:2]
            texts.append(
                m.TextAnnotation(
                    timestamp=at,
                    position=m.Point2(x=x, y=y),
                    text=f"{one.title} {one.score:.2f}",
                    font_size=12.0,
                    text_color=colour,
                )
            )
        return m.ImageAnnotations(timestamp=at, points=outlines, texts=texts)

    def close(self) -> None:
        """Write the index and close the file."""
        try:
            self._writer.finish()
        except OSError as wrong:
            raise OutputError(f"can't write {self._file.path}: {wrong.strerror or wrong}") from wrong
        finally:
            self._file.close()


class EndedFile:
    """A file of whole MCAP records that ends properly after each write: readers open it whenever the writing
    stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self._length = 0
        self._ended = False

    def tell(self) -> int:
        return self._length

    def write(self, records: bytes) -> int:
        self._file.seek(self._length)
        self._ended = records.endswith(_MAGIC)  # the writer's own end
        rest = memoryview(records if self._ended else records + _END)
        while rest:  # a disk that is nearly full takes less than it is given, then nothing
            rest = rest[self._file.write(rest) :]
        self._length += len(records)
        return len(records)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        if not self._file.closed:
            self._file.truncate(self._length + (0 if self._ended else len(_END)))
            self._file.close()


def _values(found: Instances) -> Any:
    """The label map as uint16: track ids, where instances have them (modulo 65,536)."""
    if found.track_id is None:
        return found.label_map.astype(np.uint16)
    return np.concatenate([np.zeros(1, np.int32), found.track_id]).astype(np.uint16)[found.label_map]
