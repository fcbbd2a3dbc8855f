"""Cameras: USB and CSI cameras and GStreamer pipelines."""

from __future__ import annotations

import shutil
import sys

import cv2

from ...images import text_without_secrets
from .base import Source
from .capture import opened
from .gstreamer import PROGRAM, PipelineCapture
from .live_stream import CameraRequest, LiveStream

_CSI_SIZE_WH, _CSI_FPS = (1280, 720), 30  # a mode that every CSI sensor has


def open_camera(which: int | str, wanted: CameraRequest) -> Source:
    """A camera by its number or device: V4L2 on Linux, OpenCV's own choice elsewhere."""
    name = f"camera-{which}" if isinstance(which, int) else which.removeprefix("/dev/")
    message = (
        f"camera {which} can't be opened: check that it is plugged in (`ls /dev/video*`) and that no other "
        "program holds it"
    )
    backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY

    def opener() -> cv2.VideoCapture:
        capture = opened(cv2.VideoCapture(which, backend), message)
        if wanted.pixel_format is not None:  # before the size: sizes depend on it
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*wanted.pixel_format))
        if wanted.size_wh is not None:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.size_wh[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.size_wh[1])
        if wanted.fps is not None:
            capture.set(cv2.CAP_PROP_FPS, wanted.fps)
        return capture

    return LiveStream(name, opener, wanted)


def csi_pipeline(sensor: int, wanted: CameraRequest) -> str:
    """GStreamer's pipeline for a CSI camera of a Jetson: the newest frame, as BGR."""
    width, height = wanted.size_wh or _CSI_SIZE_WH
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={round(wanted.fps or _CSI_FPS)}/1 ! nvvidconv "
        "! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 "
        "sync=false"
    )


def open_gstreamer(name: str, pipeline: str, wanted: CameraRequest | None = None) -> Source:
    """A GStreamer pipeline that ends in an appsink with BGR: by gst-launch-1.0, or by an OpenCV that is built
    with GStreamer where that program is missing."""
    if shutil.which(PROGRAM) is not None or not opencv_has_gstreamer():
        return LiveStream(name, lambda: PipelineCapture(name, pipeline), wanted)
    message = (
        f"GStreamer can't start {name}: try it with {PROGRAM}; the pipeline is "
        f"{text_without_secrets(pipeline)}"
    )
    return LiveStream(name, lambda: opened(cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), message), wanted)


def opencv_has_gstreamer() -> bool:
    """Whether this OpenCV can run pipelines; pip's lists the backend, and can't."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))
