"""Video decoding by PyAV: upright images with their media times."""

from __future__ import annotations

import contextlib
import itertools
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import SourceError
from ...file_end import FileEnd, file_end
from .base import DEFAULT_FPS

_OPEN_SECONDS = 30.0  # a pipe without a writer, or a stalled disk, never answers
_MAX_FPS = 1000.0
_MAX_STEP_BACK_S = 1.0  # a clock that goes back further has restarted: joined clips, or a counter overflow
_MAX_READ_ERRORS = 100  # in a row
_MIN_COMPLETE = 0.95  # share of the announced frames or seconds, which are not exact in all containers
# FFmpeg's AV_DISPOSITION_ATTACHED_PIC and AVFMT_TS_DISCONT, which the oldest supported PyAV does not define
_ATTACHED_PICTURE, _DISCONTINUOUS_TIMES = 0x400, 0x200
_TIME_BASE = 1_000_000  # FFmpeg's time units of a container per second

T = TypeVar("T")


class VideoReader:
    """A decoder of the best video stream of a container, which counts lost frames.

    Args:
        low_latency: decode without delaying frames, for live streams.
        path: of the container, if it is a file on disk; ``damage`` then also checks its end.

    Raises:
        SourceError: the container has no video, or no decoder for it exists.
    """

    def __init__(
        self, container: Any, name: str, *, low_latency: bool = False, path: Path | None = None
    ) -> None:
        self._container, self._name, self._path = container, name, path
        stream = container.streams.best("video")
        if stream is None or int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE:
            raise SourceError(f"{name} is no image or video: it contains {_stream_types(container)}")
        if stream.codec_context is None:
            raise SourceError(
                f"{name} can't be decoded: PyAV has no decoder for its codec; "
                "convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
            )
        self._stream = stream
        stream.thread_type = "SLICE" if low_latency else "AUTO"  # frame threads delay frames
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate and 0 < rate <= _MAX_FPS else None
        self.frame_count: int | None = stream.frames if stream.frames > 0 else None
        self.codec = stream.codec_context.name
        self.size_wh = (stream.codec_context.width, stream.codec_context.height)
        start_s = (container.start_time or 0) / _TIME_BASE
        # the times of broadcast formats have an arbitrary origin; in other files, 0 is the start
        has_origin = not int(container.format.flags) & _DISCONTINUOUS_TIMES
        self._origin_s = min(start_s, 0.0) if has_origin else start_s
        self._last_s: float | None = None
        self._end_s = 0.0  # of all streams, because a truncated file ends early in each
        self._packets = self._frames = self._errors = self._corrupted = 0
        self._ends_incomplete = False  # in the middle of a packet
        self.waited_s = 0.0  # total time of reading packets

    @property
    def is_image(self) -> bool:
        """Whether it is a single image, such as a PNG."""
        return bool(self._container.format.name.endswith("_pipe"))

    @property
    def is_finite(self) -> bool:
        """Whether it is a file: its length is known, or it is an image or an animation."""
        has_end = self.frame_count is not None or (self._container.duration or 0) > 0
        return has_end or self.is_image or self._container.format.name in ("gif", "apng")

    def frames(self) -> Iterator[Any]:
        """Yield the decoded frames of PyAV. Damaged packets are skipped and counted."""
        from av.error import FFmpegError

        for packet in self._measure_wait(self._demux()):
            if packet.stream is not self._stream:
                self._update_end(packet)
                continue
            if packet.size:
                self._packets += 1
                self._ends_incomplete = bool(packet.is_corrupt)
                self._update_end(packet)
            try:
                decoded = packet.decode()
            except FFmpegError:
                self._errors += 1
                continue
            for frame in decoded:
                if frame.is_corrupt and self._frames:  # the first frames of a stream may lack references
                    self._corrupted += 1
                self._frames += 1
                yield frame

    def _measure_wait(self, packets: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.monotonic()
            packet = next(packets, None)
            self.waited_s += time.monotonic() - began
            if packet is None:
                return
            yield packet

    def _demux(self) -> Iterator[Any]:
        from av.error import FFmpegError, InvalidDataError

        failures = 0
        while failures < _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux():
                    failures = 0
                    yield packet
                return
            except IndexError:  # PyAV does not support streams that begin later; this skips one packet
                continue
            except InvalidDataError:  # later packets may be readable
                failures += 1
                self._errors += 1
            except FFmpegError:
                self._errors += 1
                break
        with contextlib.suppress(FFmpegError):
            yield self._flush_packet()

    def _flush_packet(self) -> Any:
        from av import Packet

        packet = Packet()
        packet.stream = self._stream
        return packet

    def _update_end(self, packet: Any) -> None:
        if packet.pts is not None and packet.time_base:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            # Matroska announces the time of its end, others the seconds from their first time
            is_absolute = "matroska" in self._container.format.name
            start_s = 0.0 if is_absolute else (self._container.start_time or 0) / _TIME_BASE
            self._end_s = max(self._end_s, float(end) - start_s)

    def time_of(self, frame: Any) -> float:
        """Return the media time of the next frame in seconds; it never decreases."""
        step_s = 1 / (self.fps or DEFAULT_FPS)
        last = self._last_s
        if frame.time is None:
            seconds = 0.0 if last is None else last + step_s
        else:
            seconds = max(0.0, float(frame.time) - self._origin_s)
            if last is not None and seconds < last:
                if last - seconds > _MAX_STEP_BACK_S:
                    self._origin_s = float(frame.time) - last - step_s
                    seconds = last + step_s
                else:
                    seconds = last
        self._last_s = seconds
        return seconds

    def damage(self) -> str | None:
        """Return one sentence about missing frames, or None; call it after the last frame."""
        if not self._frames:
            return f"{self._name} has no frame that can be decoded: the file is empty, damaged or truncated"
        step_s, count = 1 / (self.fps or DEFAULT_FPS), self.frame_count
        announced_s = (self._container.duration or 0) / _TIME_BASE
        if count is not None and "mp4" not in self._container.format.name:  # MP4 counts edited-out frames
            announced_s = max(announced_s, count * step_s)
        if self._end_s < min(_MIN_COMPLETE * announced_s, announced_s - 2 * step_s):
            announced = f"{count} frames" if count else f"{announced_s:.1f} s"
            decoded = f"{self._frames}" if count else f"{self._end_s:.1f} s ({self._frames} frames)"
            return (
                f"{self._name} ends after {decoded} of the {announced} it announces: the file is damaged or "
                "truncated"
            )
        end = self._file_end()
        if end.missing:
            return (
                f"{self._name} is truncated after {self._frames} frames ({self._end_s:.1f} s): at least "
                f"{end.missing} bytes are missing at its end"
            )
        if end.second_at:
            return (
                f"{self._name} contains another video after its first {end.second_at} bytes, which is not "
                "read, or not completely: join videos with FFmpeg's concat demuxer instead of cat"
            )
        lost = max(self._errors, self._packets - self._frames) if self._errors else 0
        corrupted = max(self._corrupted, int(self._ends_incomplete))
        if lost or corrupted:
            total = max(count or 0, self._frames + lost)
            faults = [f"{lost} of {total} frames can't be decoded"] if lost else []
            faults += [f"{corrupted} of {total} frames are corrupted"] if corrupted else []
            return f"{self._name} is damaged: {', and '.join(faults)}"
        return None

    def _file_end(self) -> FileEnd:
        if self._path is None or not self._path.is_file():  # a pipe has no end
            return FileEnd()
        try:
            with open(self._path, "rb") as file:
                return file_end(file)
        except OSError:  # renamed or removed while it was read: nothing is known of its end
            return FileEnd()

    def close(self) -> None:
        """Close the container."""
        self._container.close()


def open_container(
    address: str,
    name: str,
    *,
    options: dict[str, str] | None = None,
    timeout: tuple[float, float] | None = None,
) -> Any:
    """Open a container with FFmpeg; Ctrl-C and SIGTERM interrupt it at once.

    Args:
        address: a URL, or "file:" and a path.
        name: name of the container in errors, without secrets.
        timeout: seconds for opening and for each read; None limits only the opening, to 30 s.

    Raises:
        SourceError: opening takes too long.
        FFmpegError: PyAV cannot open the container.
    """

    import av

    def open_address() -> Any:
        return av.open(address, metadata_errors="replace", options=options or {}, timeout=timeout)

    return call_with_timeout(
        _OPEN_SECONDS,
        open_address,
        lambda container: container.close(),
        f"{name} did not open in {_OPEN_SECONDS:.0f} s: it may be a pipe without a writer or a stalled disk",
    )


def call_with_timeout(seconds: float, call: Callable[[], T], drop: Callable[[T], Any], message: str) -> T:
    """Call a function in another thread, so that signals are handled while this one waits.

    ``drop`` is called with a result that comes after the timeout.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    lock = threading.Lock()
    timed_out = False  # guarded by the lock, so that a result is either returned or dropped

    def work() -> None:
        try:
            result = call()
        except BaseException as error:
            results.put((None, error))
            return
        with lock:
            if not timed_out:
                results.put((result, None))
                return
        drop(result)

    threading.Thread(target=work, name="tfiseg-open", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except BaseException as reason:
        with lock:
            timed_out = True
        is_timeout = isinstance(reason, queue.Empty)
        if results.empty():
            if is_timeout:
                raise SourceError(message) from None
            raise
        result, error = results.get()  # it came in between
        if not is_timeout:  # a signal
            if error is None:
                drop(result)  # type: ignore[arg-type]
            raise
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def upright_bgr(frame: Any) -> NDArray[np.uint8]:
    """Return the image of a PyAV frame, uint8 (H, W, 3) BGR, rotated by its display matrix."""
    image: NDArray[np.uint8] = frame.to_ndarray(format="bgr24")
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            image = _rotate(image, bytes(data))
    return np.ascontiguousarray(image)


def _rotate(image: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """Map pixel (x, y) to (a x + c y, b x + d y) plus a shift (ISO 14496-12, 6.2.2)."""
    a, b, _, c, d = struct.unpack("<5i", matrix[:20])
    is_transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x_scale, y_scale = (c, b) if is_transposed else (a, d)
    if is_transposed:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if y_scale < 0 else 1, :: -1 if x_scale < 0 else 1]


def _stream_types(container: Any) -> str:
    types = sorted(
        {s.type for s in itertools.islice(container.streams, 100) if s.type in ("audio", "subtitle", "data")}
    )
    return " and ".join(types) + " only" if types else "no known stream"
