"""Live instance masks from a camera (or any source): `python samples/camera.py 0`, Esc or q ends it.

`tfiseg view` does more; this is what to start from. Without a display, `--out view.mp4` writes what the
window would show.
"""

import argparse
import sys

import cv2
import tfiseg

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("source", nargs="?", default="0", help='camera index, file, URL or "synthetic"')
parser.add_argument("--out", help="write the view to this mp4 instead of a window")
parser.add_argument("--frames", type=int, help="stop after this many")
args = parser.parse_args()

segmenter = tfiseg.Segmenter(refine="frame")
writer = None
try:
    source = tfiseg.open_source(args.source, realtime=not args.out)
    # capture, network and drawing overlap; of a live source the newest frame wins, so what is shown never
    # gets old
    with source, tfiseg.Pipeline(source, segmenter, draw=True, max_frames=args.frames) as pipeline:
        for result in pipeline:
            if not args.out:
                cv2.imshow("tfiseg", result.overlay)
                if cv2.waitKey(1) & 0xFF in (27, ord("q")):
                    break
                continue
            writer = writer or cv2.VideoWriter(
                args.out, cv2.VideoWriter.fourcc(*"mp4v"), source.fps or 30, result.overlay.shape[1::-1]
            )
            if not writer.isOpened():
                sys.exit(f"{args.out} can't be written")
            writer.write(result.overlay)
except cv2.error:
    sys.exit(
        "no window can be opened here: use --out view.mp4, or put opencv-python in place of opencv-python-headless"
    )
except tfiseg.TfisegError as wrong:
    sys.exit(str(wrong))
except KeyboardInterrupt:
    pass
finally:
    if writer:
        writer.release()
