"""Instance masks inside a robot's own loop: it looks at the newest masks and their age, and stops before a
person.

`python samples/embed_in_robot.py 0` with a camera; "synthetic" needs none. In place of `print`, your motors.
"""

import argparse
import sys
import time

import tfiseg

LOOP_HZ = 20
STALE_MS = 400  # masks older than this are no reason to drive on
NEAR = 0.08  # of the picture's lower half covered by people
KEEP_CLEAR_S = 0.5  # after the way is free again


def obstacle(result: tfiseg.Result | None) -> str | None:
    """Why the robot must stand still, or None."""
    if result is None:
        return "no picture yet"
    if result.age_ms > STALE_MS:
        return "the newest masks are old"
    lower = result.instances.label_map[result.instances.label_map.shape[0] // 2 :]
    for person in result.instances:
        share = (lower == person.number).mean()
        if person.class_name == "person" and share > NEAR:
            return f"person #{person.track_id} is near"
    return None


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("source", nargs="?", default="0", help='camera index, file, URL or "synthetic"')
parser.add_argument("--seconds", type=float, default=float("inf"), help="drive for so long")
args = parser.parse_args()

segmenter = tfiseg.Segmenter(
    refine="frame", things=["person"]
)  # before the camera, whose pictures would wait meanwhile
try:
    source = tfiseg.open_source(args.source, realtime=True)
except tfiseg.SourceError as wrong:
    sys.exit(str(wrong))
command, said, clear_since = "", "", None
# everything runs in threads of the pipeline's own; this loop never waits for a picture
with source, tfiseg.Pipeline(source, segmenter, tracker=tfiseg.Tracker()) as pipeline:
    end = time.monotonic() + args.seconds
    try:
        while time.monotonic() < end:
            why = obstacle(pipeline.newest())
            now = time.monotonic()
            clear_since = None if why else clear_since or now
            if why:
                command = f"STOP: {why}"
            elif now - clear_since > KEEP_CLEAR_S:
                command = "GO"
            if command != said:
                print(command, flush=True)
                said = command
            time.sleep(1 / LOOP_HZ)
        print("STOP: the time is over", flush=True)
    except KeyboardInterrupt:
        print("STOP: interrupted", flush=True)
    except tfiseg.TfisegError as failed:  # a stage failed, or the source has ended: never drive blind
        print(f"STOP: {failed}", flush=True)
        sys.exit(1)
counts = pipeline.stats()
print(f"{counts['captured']} frames, {counts['dropped']} dropped")
