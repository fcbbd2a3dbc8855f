"""Video decoding through PyAV: upright pictures, each at its own time."""

from __future__ import annotations

import contextlib
import itertools
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import SourceError
from .base import DEFAULT_FPS

_OPEN_SECONDS = 30.0  # a pipe that nobody writes to, or a stalled disk, answers never
_MAX_FPS = 1000.0
_MAX_STEP_BACK_S = (
    1.0  # a clock that goes back by more has started again: joined clips, or a counter that wrapped
)
_MAX_READ_ERRORS = 100  # in a row
_COMPLETE = 0.95  # containers announce counts and durations loosely: this share of them is the whole
# FFmpeg's AV_DISPOSITION_ATTACHED_PIC and AVFMT_TS_DISCONT: PyAV's oldest allowed version has no names for
# them
_ATTACHED_PICTURE, _BEGINS_ANYWHERE = 0x400, 0x200
_MICROSECONDS = 1_000_000  # FFmpeg's unit of a container's times

T = TypeVar("T")


class VideoReader:
    """The frames of the best video stream of an open container, in order, and a record of what was lost.

    Args:
        container: of PyAV, open for reading.
        shown: what errors call it.
        low_latency: decode without holding frames back, for live streams.

    Raises:
        SourceError: there is no video in it, or none that can be decoded.
    """

    def __init__(self, container: Any, shown: str, *, low_latency: bool = False) -> None:
        self._container, self._shown = container, shown
        stream = container.streams.best("video")
        if stream is None or int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE:
            raise SourceError(f"{shown} is no image or video: it holds {_content(container)}")
        if stream.codec_context is None:
            raise SourceError(
                f"{shown} can't be decoded: PyAV has no decoder for its codec; "
                "convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
            )
        self._stream = stream
        stream.thread_type = "SLICE" if low_latency else "AUTO"  # frame threads hold frames back
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate and 0 < rate <= _MAX_FPS else None
        self.frame_count: int | None = stream.frames if stream.frames > 0 else None
        self.codec, self.size_wh = (
            stream.codec_context.name,
            (stream.codec_context.width, stream.codec_context.height),
        )
        start_s = (container.start_time or 0) / _MICROSECONDS
        own_timeline = not int(container.format.flags) & _BEGINS_ANYWHERE
        # broadcast formats begin anywhere; in files with a timeline of their own, 0 is a place on it
        self._origin_s = min(start_s, 0.0) if own_timeline else start_s
        self._last_s: float | None = None
        self._end_s = 0.0  # of all streams: a cut-off file ends early in each
        self._packets = self._frames = self._errors = self._spoiled = 0
        self.waited_s = 0.0  # for packets, in all

    @property
    def is_finite(self) -> bool:
        """Whether it has an end that is known beforehand: a file, not a live stream."""
        return self.frame_count is not None or (self._container.duration or 0) > 0

    def frames(self) -> Iterator[Any]:
        """Decoded frames of PyAV. Damaged packets are skipped and counted."""
        from av.error import FFmpegError

        for packet in self._timed(self._demuxed()):
            if packet.stream is not self._stream:
                self._note_end(packet)
                continue
            if packet.size:
                self._packets += 1
                self._note_end(packet)
            try:
                decoded = packet.decode()
            except FFmpegError:
                self._errors += 1
                continue
            for frame in decoded:
                if frame.is_corrupt and self._frames:  # the first ones of a stream may lack their references
                    self._spoiled += 1
                self._frames += 1
                yield frame

    def _timed(self, packets: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.monotonic()
            packet = next(packets, None)
            self.waited_s += time.monotonic() - began
            if packet is None:
                return
            yield packet

    def _demuxed(self) -> Iterator[Any]:
        from av.error import FFmpegError, InvalidDataError

        failures = 0
        while failures < _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux():
                    failures = 0
                    yield packet
                return
            except IndexError:  # PyAV does not know streams that begin later; each failure skips one packet
                continue
            except InvalidDataError:  # what follows may be readable
                failures += 1
                self._errors += 1
            except FFmpegError:
                self._errors += 1
                break
        with contextlib.suppress(FFmpegError):
            yield from self._flushed()

    def _flushed(self) -> Iterator[Any]:
        from av import Packet

        packet = Packet()
        packet.stream = self._stream
        yield packet

    def _note_end(self, packet: Any) -> None:
        if packet.pts is not None and packet.time_base:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            self._end_s = max(self._end_s, float(end) - (self._container.start_time or 0) / _MICROSECONDS)

    def time_of(self, frame: Any) -> float:
        """Media time of a frame in seconds; call it once for each frame, in order. It never goes back."""
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
        """After the last frame: one sentence about what is missing, or None."""
        if not self._frames:
            return f"{self._shown} has no frame that can be decoded: the file is empty, damaged or cut off"
        step_s, count = 1 / (self.fps or DEFAULT_FPS), self.frame_count
        announced_s = (self._container.duration or 0) / _MICROSECONDS
        if count is not None and "mp4" not in self._container.format.name:
            announced_s = max(
                announced_s, count * step_s
            )  # mp4: an edit list may leave out frames that are counted
        if self._end_s < min(_COMPLETE * announced_s, announced_s - 2 * step_s):
            counted = f"{count} frames" if count else f"{announced_s:.1f} s"
            reached = f"{self._frames}" if count else f"{self._end_s:.1f} s ({self._frames} frames)"
            return (
                f"{self._shown} ends after {reached} of the {counted} it announces: the file is damaged or "
                "cut off"
            )
        lost = max(self._errors, self._packets - self._frames) if self._errors else 0
        if lost or self._spoiled:
            total = max(count or 0, self._frames + lost)
            spoiled = f", and {self._spoiled} are spoiled" if self._spoiled else ""
            return f"{self._shown} is damaged: {lost} of {total} frames can't be decoded{spoiled}"
        return None

    def close(self) -> None:
        self._container.close()


def open_container(
    address: str,
    shown: str,
    *,
    options: dict[str, str] | None = None,
    timeout: tuple[float, float] | None = None,
) -> Any:
    """Open an address of FFmpeg; Ctrl-C and SIGTERM end the waiting at once.

    Args:
        address: a URL, or "file:" and a path.
        shown: what errors call it: without secrets.
        options: of FFmpeg.
        timeout: seconds for opening, and for each read; None: only opening is limited, to 30 s.

    Raises:
        SourceError: it takes too long. FFmpegError: as PyAV raises it.
    """

    import av

    def opened() -> Any:
        return av.open(address, metadata_errors="replace", options=options or {}, timeout=timeout)

    return within(
        _OPEN_SECONDS,
        opened,
        lambda late: late.close(),
        f"{shown} did not open within {_OPEN_SECONDS:.0f} s: it may be a pipe without a writer, or a stalled "
        "disk",
    )


def within(seconds: float, call: Callable[[], T], drop: Callable[[T], Any], message: str) -> T:
    """Call in another thread, so that signals are handled while this one waits.

    Args:
        seconds: after which SourceError with ``message`` is raised.
        call: whose result is returned.
        drop: called with a result that comes too late.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    given_up = threading.Event()

    def work() -> None:
        try:
            result = call()
        except BaseException as error:
            results.put((None, error))
            return
        results.put((result, None))
        if given_up.is_set():
            drop(result)

    threading.Thread(target=work, name="tfiseg-open", daemon=True).start()
    try:
        result, wrong = results.get(timeout=seconds)
    except queue.Empty:
        given_up.set()
        raise SourceError(message) from None
    except BaseException:
        given_up.set()
        raise
    if wrong is not None:
        raise wrong
    return result  # type: ignore[return-value]


def upright_bgr(frame: Any) -> NDArray[np.uint8]:
    """The picture of a frame, uint8 (H, W, 3) BGR, turned as its display matrix says."""
    picture: NDArray[np.uint8] = frame.to_ndarray(format="bgr24")
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            picture = _turned(picture, bytes(data))
    return np.ascontiguousarray(picture)


def _turned(picture: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """ISO 14496-12, 6.2.2: a pixel (x, y) is shown at (a x + c y, b x + d y), but for a shift."""
    a, b, _, c, d = struct.unpack("<5i", matrix[:20])
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if transposed else (a, d)
    if transposed:
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _content(container: Any) -> str:
    kinds = sorted(
        {s.type for s in itertools.islice(container.streams, 100) if s.type in ("audio", "subtitle", "data")}
    )
    return " and ".join(kinds) + " only" if kinds else "no stream that is known"
