"""Show live instance masks of a camera or any source: `python samples/camera.py 0`. Esc or q quits.

This is a starting point for your own program; `tfiseg view` does more. Without a display, `--out view.mp4`
writes a video instead.
"""

import argparse
import sys

import cv2
import tfiseg

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("source", nargs="?", default="0", help='camera index, file, URL or "synthetic"')
parser.add_argument("--out", help="write this mp4 instead of opening a window")
parser.add_argument("--frames", type=int, help="stop after N frames")
args = parser.parse_args()

segmenter = tfiseg.Segmenter(refine="frame")
writer = None
try:
    source = tfiseg.open_source(args.source, realtime=not args.out)
    # capture, network and drawing run in parallel; a live source drops old frames
    with source, tfiseg.Pipeline(source, segmenter, draw=True, max_frames=args.frames) as pipeline:
        for result in pipeline:
            if not args.out:
                cv2.imshow("tfiseg", result.overlay)
                if cv2.waitKey(1) & 0xFF in (27, ord("q")):
                    break
                continue
            if writer is None:
                size_wh = result.overlay.shape[1::-1]
                writer = cv2.VideoWriter(args.out, cv2.VideoWriter.fourcc(*"mp4v"), source.fps or 30, size_wh)
            if not writer.isOpened():
                sys.exit(f"{args.out} can't be written")
            writer.write(cv2.resize(result.overlay, size_wh))  # OpenCV drops frames of another size
except cv2.error:
    sys.exit(
        "no window can be opened: use --out view.mp4, or install opencv-python instead of "
        "opencv-python-headless"
    )
except tfiseg.TfisegError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    pass
finally:
    if writer:
        writer.release()
