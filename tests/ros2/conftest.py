"""Fixtures for ROS 2 processes: the node, cameras and listeners, in their own domain."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "samples" / "ros2" / "tfiseg_ros"
WAIT_S = 90  # timeout for the start of a process; CI machines are slow
sys.path[:0] = [str(PACKAGE), str(HERE)]


class Process:
    """A process whose last line of output is JSON."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._out = open(log, "w+")  # noqa: SIM115 - closed in ``kill``
        self.popen = subprocess.Popen(command, env=environment, stdout=self._out, stderr=subprocess.STDOUT)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout_s: float = WAIT_S) -> None:
        """Wait until the output contains this text."""
        until = time.monotonic() + timeout_s
        while text not in self.text:
            assert self.popen.poll() is None, f"ended before {text!r}:\n{self.text}"
            assert time.monotonic() < until, f"no {text!r} within {timeout_s} s:\n{self.text}"
            time.sleep(0.05)

    def wait_for_more(self, topic: str, count: int) -> None:
        """Wait until a listener has received this number of further messages."""
        before = self.text.count(f"received {topic} ")
        self.wait_for(f"received {topic} {before + count}\n")

    def result(self, timeout_s: float = WAIT_S) -> dict:
        """Wait for the end of the process and return its last line."""
        assert self.popen.wait(timeout_s) == 0, self.text[-3000:]
        return json.loads(self.text.splitlines()[-1])

    def stop(self) -> dict:
        """End the process by SIGTERM and return its last line."""
        self.popen.terminate()
        return self.result()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._out.close()


class Ros:
    """A ROS domain in which processes find only each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.domain = str(1 + os.getpid() % 100)
        self.environment = {
            **os.environ,
            "ROS_DOMAIN_ID": self.domain,
            "ROS_LOG_DIR": str(folder / "log"),
            "RCUTILS_LOGGING_USE_STDOUT": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")]),
        }
        self.processes: list[Process] = []

    def start(self, *command: str) -> Process:
        log = self.folder / f"{len(self.processes)}.log"
        process = Process([sys.executable, *command], self.environment, log)
        self.processes.append(process)
        return process

    def node(self, *arguments: str, wait: bool = True, **parameters: object) -> Process:
        """Start the node with parameters; with ``wait``, wait until it segments."""
        given = [word for k, v in parameters.items() for word in ("-p", f"{k}:={json.dumps(v)}")]
        process = self.start("-m", "tfiseg_ros.node", "--ros-args", *given, *arguments)
        if wait:
            process.wait_for("segmenting")
        return process

    def peer(self, role: str, **options: object) -> Process:
        return self.start(str(HERE / "peers.py"), role, json.dumps(options))

    def listener(self, topics: dict[str, str] | None = None, **options: object) -> Process:
        """Start a listener and wait until it has found its publishers."""
        process = self.peer("listener", topics=topics or {"/tfiseg/label_map": "Image"}, **options)
        process.wait_for("matched")
        time.sleep(0.5)  # until the publishers have found the listener
        return process


@pytest.fixture
def ros(tmp_path):
    pytest.importorskip("rclpy", reason="ROS 2 is not installed: run `make test-ros`")
    ros = Ros(tmp_path)
    yield ros
    for process in ros.processes:
        process.kill()
