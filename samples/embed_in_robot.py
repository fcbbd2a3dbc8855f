"""Use instance masks in a robot's control loop: stop if a person is near or the masks are old.

Run `python samples/embed_in_robot.py 0` with a camera, or "synthetic" without one. Replace `print` with your
motor commands. The tracker needs `pip install ".[live]"`.
"""

import argparse
import signal
import sys
import time

import tfiseg

LOOP_HZ = 20
STALE_MS = 400  # stop if the masks are older
NEAR = 0.08  # stop if a person covers a larger share of the image's lower half
KEEP_CLEAR_S = 0.5  # wait this long after the way is clear


def obstacle(result: tfiseg.Result | None) -> str | None:
    """Return why the robot must stop, or None."""
    if result is None:
        return "no image yet"
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
parser.add_argument("--seconds", type=float, default=float("inf"), help="drive this long")
args = parser.parse_args()

signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemd and docker stop a program with it
# before the camera, because its frames would get old meanwhile
segmenter = tfiseg.Segmenter(things=["person"])
try:
    source = tfiseg.open_source(args.source, realtime=True)
except tfiseg.SourceError as error:
    sys.exit(str(error))
command = last_command = f"STOP: {obstacle(None)}"  # the robot stands until masks show that the way is clear
print(command, flush=True)
clear_since = None
# the pipeline runs in its own threads; this loop never waits for a frame
with source, tfiseg.Pipeline(source, segmenter, tracker=tfiseg.Tracker()) as pipeline:
    end = time.monotonic() + args.seconds
    try:
        while time.monotonic() < end:
            reason = obstacle(pipeline.newest())
            now = time.monotonic()
            clear_since = None if reason else clear_since or now
            if reason:
                command = f"STOP: {reason}"
            elif now - clear_since > KEEP_CLEAR_S:
                command = "GO"
            if command != last_command:
                print(command, flush=True)
                last_command = command
            time.sleep(1 / LOOP_HZ)
        print("STOP: time is up", flush=True)
    except KeyboardInterrupt:
        print("STOP: interrupted", flush=True)
    except tfiseg.TfisegError as error:  # a stage failed or the source ended
        print(f"STOP: {error}", flush=True)
        sys.exit(1)
    except Exception as error:  # a bug must not leave the robot driving
        print(f"STOP: {error!r}", flush=True)
        raise
counts = pipeline.stats()
print(f"{counts['captured']} frames, {counts['dropped']} dropped")
