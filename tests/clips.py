"""Writers of small videos for the tests."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = Fraction(1, 90_000)


def picture_of(k, size_wh=(64, 48)):
    """Return frame k: gray of a brightness that depends on k, with a blue corner at the top left."""
    picture = np.full((size_wh[1], size_wh[0], 3), 40 + 3 * (k % 60), np.uint8)
    picture[: size_wh[1] // 3, : size_wh[0] // 3] = (250, 20, 20)
    return picture


@contextlib.contextmanager
def same_priority() -> Iterator[None]:
    """Restore the scheduling policy of the calling thread.

    As root, SVT-AV1 gives it the highest real-time priority for good. On one core, it then starves threads
    that it waits for, also in the kernel, so that the test process hangs and cannot be killed.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_clip(path, times, codec="libx264", rate=30, pictures=None, **options):
    """Write a video whose frames have these times in seconds."""
    with same_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        clock = CLOCK if codec == "libx264" and Path(path).suffix != ".avi" else 1 / Fraction(rate)
        stream.codec_context.time_base = clock
        for k, seconds in enumerate(times):
            picture = picture_of(k) if pictures is None else pictures[k]
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = round(seconds / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
