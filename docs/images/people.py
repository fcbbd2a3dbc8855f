"""Make the README's animation docs/images/people.webp from the demo's overlay.

tfiseg demo --quality best --out tfiseg-demo
python docs/images/people.py tfiseg-demo/people-overlay.mp4 docs/images/people.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
from PIL import Image

_FRAMES = slice(24, 108, 2)
_SIZE_WH = (560, 315)
_FRAME_MS = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("overlay", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    with av.open(str(args.overlay)) as video:
        frames = [f.to_image().resize(_SIZE_WH, Image.Resampling.LANCZOS) for f in video.decode(video=0)]
    first, *others = frames[_FRAMES]
    first.save(
        args.output, save_all=True, append_images=others, duration=_FRAME_MS, loop=0, quality=60, method=6
    )


if __name__ == "__main__":
    main()
