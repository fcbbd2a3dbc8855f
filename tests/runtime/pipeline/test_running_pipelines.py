"""Test the exit of programs that never close their pipeline."""

import subprocess
import sys

import pytest

ABANDONED = """
import sys, time
import numpy as np
import tfiseg

class Endless(tfiseg.Source):
    is_live = True

    def _read(self, index):
        time.sleep(0.001)
        return tfiseg.Frame(np.zeros((240, 320, 3), np.uint8), index, time.monotonic_ns())

segmenter = tfiseg.Segmenter(quality=sys.argv[1], threads=1)
pipeline = tfiseg.Pipeline(Endless("camera"), segmenter, tracker=tfiseg.Tracker())
while pipeline.newest() is None:
    time.sleep(0.01)
print("running", flush=True)
time.sleep(0.2)
"""


def end_of(*lines, quality="fast"):
    program = "\n".join([ABANDONED, *lines])
    return subprocess.run(
        [sys.executable, "-c", program, quality], capture_output=True, text=True, timeout=120
    )


# Python ended the threads inside C++ code, which aborted nearly every such program
@pytest.mark.parametrize("quality", ["fast", "balanced"])
def test_the_exit_status_is_that_of_the_program(quality):
    ended = end_of("sys.exit(7)", quality=quality)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "running\n", "")


def test_an_error_of_the_program_is_reported():
    ended = end_of("raise RuntimeError('the motor is hot')")
    assert ended.returncode == 1
    assert ended.stderr.endswith("RuntimeError: the motor is hot\n")


def test_an_abandoned_iteration_ends_with_the_program():
    assert end_of("for result in pipeline:", "    break", "del pipeline").returncode == 0


def test_a_closed_pipeline_is_not_closed_again():
    lines = "pipeline.close()", "pipeline.close = lambda: print('again')"
    assert end_of(*lines).stdout == "running\n"


def test_an_error_at_the_end_of_one_pipeline_leaves_no_other_running():
    lines = (
        "def fail():",
        "    raise OSError('the cable is cut')",
        "others = [tfiseg.Pipeline(Endless('camera'), segmenter).start() for _ in range(2)]",
        "for one in (pipeline, *others):",
        "    one.source.interrupt = fail",
        "    close = one.close",
        "    one.close = lambda close=close: (print('closed', flush=True), close())",
    )
    ended = end_of(*lines)
    assert ended.stdout == "running\n" + 3 * "closed\n"
    assert "the cable is cut" in ended.stderr


def test_a_forked_process_does_not_wait_for_the_pipeline_of_its_parent():
    lines = (
        "import os",
        "from tfiseg.runtime.pipeline import running_pipelines",
        "if os.fork() == 0:",
        "    os._exit(9 if list(running_pipelines._running) else 0)",
        "status = os.wait()[1]",
        "pipeline.close()",
        "sys.exit(os.waitstatus_to_exitcode(status))",
    )
    assert end_of(*lines).returncode == 0
