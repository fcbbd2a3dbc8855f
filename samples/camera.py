"""Live instance masks from a camera (or any source): `python samples/camera.py 0`, Esc or q ends it.

`tfiseg view` does more; this is what to start from. Without a display, `--out view.mp4` writes what the window would show.
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

try:
    source = tfiseg.open_source(args.source, realtime=True)
except tfiseg.SourceError as wrong:
    sys.exit(str(wrong))
writer = None
# capture, network and drawing overlap; the newest frame wins, so what is shown never gets old
with tfiseg.Pipeline(source, tfiseg.Segmenter(refine="frame"), draw=True, max_frames=args.frames) as pipeline:
    for result in pipeline:
        if args.out:
            writer = writer or cv2.VideoWriter(args.out, cv2.VideoWriter.fourcc(*"mp4v"), 30, result.view.shape[1::-1])
            if not writer.isOpened():
                sys.exit(f"{args.out} can't be written")
            writer.write(result.view)
            continue
        try:
            cv2.imshow("tfiseg", result.view)
        except cv2.error:
            sys.exit("no window can be opened here: use --out view.mp4, or put opencv-python in place of opencv-python-headless")
        if cv2.waitKey(1) in (27, ord("q")):
            break
if writer:
    writer.release()
