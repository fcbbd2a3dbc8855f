"""Live instance masks from a camera (or any source): `python samples/camera.py 0`, Esc or q ends it.

Without a display, `--out view.mp4` writes what the window would show.
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
    source = tfiseg.open_source(args.source)
except tfiseg.SourceError as wrong:
    sys.exit(str(wrong))
for frame in source:
    if frame.index == args.frames:
        break
    view = segmenter(frame).draw(frame)
    if args.out:
        writer = writer or cv2.VideoWriter(args.out, cv2.VideoWriter.fourcc(*"mp4v"), 30, view.shape[1::-1])
        if not writer.isOpened():
            sys.exit(f"{args.out} can't be written")
        writer.write(view)
        continue
    try:
        cv2.imshow("tfiseg", view)
    except cv2.error:
        sys.exit("no window can be opened here: use --out view.mp4, or put opencv-python in place of opencv-python-headless")
    if cv2.waitKey(1) in (27, ord("q")):
        break
if writer:
    writer.release()
