"""GStreamer pipelines run by gst-launch-1.0, because pip's OpenCV is built without GStreamer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shlex
import shutil
import subprocess
import threading
import time
import weakref
from collections import deque
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, SourceError
from ...images import strip_secrets_from_text

PROGRAM = "gst-launch-1.0"
_START_SECONDS = 10.0
_SILENT_SECONDS = 5.0  # without a frame, after which the pipeline counts as lost
_STOP_SECONDS = 2.0
_MAX_PIPE_BYTES = 1 << 20
# gst-launch-1.0 may omit the caps of a pad when two threads print at once, so any of our elements counts
_CAPS = re.compile(r"tfiseg-\w+\.GstPad:\w+: caps = video/x-raw,(.*)")
_FIELD = re.compile(r"(format|width|height|framerate)=\(\w+\)([\w/]+)")  # in any order
_ERROR = re.compile(r"(?:ERROR: from element \S+: |WARNING: erroneous pipeline: |ERROR: )(.*)")


class _Report:
    """The output of a running gst-launch-1.0: size and rate of the frames, and errors."""

    def __init__(self) -> None:
        self.size_wh: tuple[int, int] | None = None
        self.fps = 0.0
        self.known = threading.Event()
        self.errors: deque[str] = deque(maxlen=20)

    def parse(self, stream: IO[str]) -> None:
        for line in stream:
            caps = _CAPS.search(line)
            fields = dict(_FIELD.findall(caps[1])) if caps else {}
            if fields.get("format") == "BGR" and "width" in fields and "height" in fields:
                self.size_wh = int(fields["width"]), int(fields["height"])
                frames, _, seconds = fields.get("framerate", "0/1").partition("/")
                self.fps = int(frames) / max(int(seconds or 1), 1)
                self.known.set()
            elif (error := _ERROR.match(line)) is not None:
                self.errors.append(error[1].strip().rstrip("."))


class PipelineCapture:
    """A running pipeline with the interface of ``cv2.VideoCapture``.

    gst-launch-1.0 writes raw BGR rows into a pipe and the frame size to its standard output. The process ends
    with ``release``, with the interpreter, or when the read end of the pipe is closed.

    Args:
        name: name of the source in messages.
        pipeline: a pipeline in GStreamer's syntax with one appsink, whose ``drop`` and ``sync`` are kept.

    Raises:
        InputError: the number of appsinks is not one, or a quote is not closed.
        SourceError: gst-launch-1.0 is missing, or the pipeline does not start.
    """

    def __init__(self, name: str, pipeline: str) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise SourceError(
                f"{name} needs GStreamer: apt install gstreamer1.0-tools gstreamer1.0-plugins-base "
                "gstreamer1.0-plugins-good, or use an OpenCV that is built with GStreamer"
            )
        self.ended = False  # whether the pipeline ended regularly, at the end of a file
        self._name = name
        report = self._report = _Report()
        self._pipe, write_end = os.pipe()
        try:
            _resize(self._pipe, 1)
            command = [program, "-v", *_with_fd_sink(pipeline, write_end)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[write_end],
                start_new_session=True,  # Ctrl-C goes to this program only, which then ends the pipeline
                env={**os.environ, "LC_ALL": "C"},
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(write_end)
        self._end = weakref.finalize(self, _stop, self._process, self._pipe)
        self._readers = [
            threading.Thread(target=report.parse, args=(stream,), name="tfiseg-gstreamer", daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._wait_for_start(pipeline)
        except BaseException:
            self.release()
            raise
        self._size_wh = report.size_wh or (0, 0)
        _resize(self._pipe, 3 * self._size_wh[0] * self._size_wh[1])

    def _wait_for_start(self, pipeline: str) -> None:
        until = time.monotonic() + _START_SECONDS
        while not self._report.known.wait(0.05):
            if self._process.poll() is None and time.monotonic() < until:
                continue
            for reader in self._readers:
                reader.join(_STOP_SECONDS if self._process.poll() is not None else 0)
            if self._report.known.is_set():  # a pipeline of a few frames has already ended
                return
            reason = (
                self._report.errors[0] if self._report.errors else f"no frame within {_START_SECONDS:.0f} s"
            )
            raise SourceError(
                f"GStreamer can't start {self._name}: {strip_secrets_from_text(reason)}. "
                f"Try it with {PROGRAM}; the pipeline is {strip_secrets_from_text(pipeline)}"
            )

    def read(self) -> tuple[bool, Any]:
        if self._report.size_wh != self._size_wh:
            return False, None  # the size changed at an unknown place in the pipe: start the pipeline again
        width, height = self._size_wh
        rows = np.empty((height, -(-3 * width // 4) * 4), np.uint8)  # GStreamer pads rows to 4 bytes
        if not self._fill(rows):
            return False, None
        return True, np.ascontiguousarray(rows[:, : 3 * width].reshape(height, width, 3))

    def _fill(self, rows: NDArray[np.uint8]) -> bool:
        rest = memoryview(rows.reshape(-1).data)
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while rest:
            if not poll.poll(_SILENT_SECONDS * 1e3):
                return False
            count = os.readv(self._pipe, [rest])
            if not count:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.ended = self._process.wait(_STOP_SECONDS) == 0
                return False
            rest = rest[count:]
        return True

    def grab(self) -> bool:
        return self.read()[0]

    def get(self, property_id: int, /) -> float:
        width, height = self._size_wh
        values = {
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FPS: self._report.fps,
        }
        return float(values.get(property_id, 0))

    def release(self) -> None:
        self._end()

    def getBackendName(self) -> str:
        return "GSTREAMER"


def _resize(pipe: int, frame_bytes: int) -> None:
    """Make a pipe large for fewer reads, but smaller than a frame, because frames in it get old."""
    size = 4096
    while 2 * size <= min(frame_bytes, _MAX_PIPE_BYTES):
        size *= 2
    with contextlib.suppress(OSError, AttributeError):  # not every system allows it
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


def _stop(process: subprocess.Popen[str], pipe: int) -> None:
    """End the process and close its pipe."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    os.close(pipe)


def _with_fd_sink(pipeline: str, fd: int) -> list[str]:
    """Return the arguments of gst-launch-1.0, with an fdsink for raw BGR instead of the appsink."""
    shown = strip_secrets_from_text(pipeline)
    try:
        words = shlex.split(pipeline)
    except ValueError as error:
        raise InputError(f"the pipeline {shown} can't be parsed: {error}") from None
    if words.count("appsink") != 1:
        raise InputError(f"a pipeline must have one appsink, got {words.count('appsink')} in: {shown}")
    at = words.index("appsink")
    end = at + 1
    while end < len(words) and re.match(r"[\w-]+=", words[end]):
        end += 1
    properties = dict(word.split("=", 1) for word in words[at + 1 : end])
    sink = ["videoconvert", "!", "capsfilter", "name=tfiseg-bgr", "caps=video/x-raw,format=BGR", "!"]
    if properties.get("drop", "").lower() in ("true", "1", "yes"):
        newest = "leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"
        sink += ["queue", "name=tfiseg-queue", *newest.split(" "), "!"]
    if "caps" in properties:
        sink = ["capsfilter", f"caps={properties['caps']}", "!", *sink]
    sink += ["fdsink", "name=tfiseg-out", f"fd={fd}", f"sync={properties.get('sync', 'true')}"]
    return [*words[:at], *sink, *words[end:]]
