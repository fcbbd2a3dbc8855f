"""Write small videos for tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = Fraction(1, 90_000)


def picture_of(k, size_wh=(64, 48)):
    """Return image number ``k``: its top left corner is blue, the other pixels encode the number."""
    picture = np.full((size_wh[1], size_wh[0], 3), 40 + 3 * (k % 60), np.uint8)
    picture[: size_wh[1] // 3, : size_wh[0] // 3] = (250, 20, 20)
    return picture


def write_clip(path, times, codec="libx264", rate=30, pictures=None, **options):
    """Write a clip whose frames have these times in seconds."""
    with av.open(str(path), "w") as container:
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
