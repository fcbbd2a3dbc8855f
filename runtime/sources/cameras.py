"""Cameras: USB and CSI cameras and GStreamer pipelines."""

from __future__ import annotations

import shutil
import sys

import cv2

from ...images import strip_secrets_from_text
from .base import Source
from .capture import require_open
from .gstreamer import PROGRAM, PipelineCapture
from .live_stream import CameraRequest, LiveStream

_CSI_SIZE_WH, _CSI_FPS = (1280, 720), 30  # all CSI sensors support this mode


def open_camera(device: int | str, request: CameraRequest) -> Source:
    """Open a camera by its index or device path: by V4L2 on Linux, by OpenCV's default backend elsewhere."""
    name = f"camera-{device}" if isinstance(device, int) else device.removeprefix("/dev/")
    message = (
        f"camera {device} can't be opened: check that it is plugged in (`ls /dev/video*`) and that no other "
        "program uses it"
    )
    backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY

    def opener() -> cv2.VideoCapture:
        capture = require_open(cv2.VideoCapture(device, backend), message)
        if request.pixel_format is not None:  # first, because the available sizes depend on it
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*request.pixel_format))
        if request.size_wh is not None:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, request.size_wh[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, request.size_wh[1])
        if request.fps is not None:
            capture.set(cv2.CAP_PROP_FPS, request.fps)
        return capture

    return LiveStream(name, opener, request)


def csi_pipeline(sensor: int, request: CameraRequest) -> str:
    """Return the GStreamer pipeline that delivers the newest frame of a Jetson's CSI camera as BGR."""
    width, height = request.size_wh or _CSI_SIZE_WH
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={round(request.fps or _CSI_FPS)}/1 ! nvvidconv "
        "! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 "
        "sync=false"
    )


def open_gstreamer(name: str, pipeline: str, request: CameraRequest | None = None) -> Source:
    """Open a GStreamer pipeline with an appsink.

    gst-launch-1.0 runs the pipeline if it is installed, otherwise an OpenCV that is built with GStreamer.
    """
    if shutil.which(PROGRAM) is not None or not opencv_has_gstreamer():
        return LiveStream(name, lambda: PipelineCapture(name, pipeline), request)
    message = (
        f"GStreamer can't start {name}: try the pipeline with {PROGRAM}: {strip_secrets_from_text(pipeline)}"
    )
    return LiveStream(
        name, lambda: require_open(cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), message), request
    )


def opencv_has_gstreamer() -> bool:
    """Return whether OpenCV is built with GStreamer. pip's OpenCV lists the backend but lacks it."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))
