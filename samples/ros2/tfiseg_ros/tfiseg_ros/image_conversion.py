"""Conversion between image messages and arrays, for every encoding of sensor_msgs, without cv_bridge."""

from __future__ import annotations

import array
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from tfiseg import InputError

# encoding -> dtype, channels, OpenCV's conversion to BGR (None for BGR)
_ENCODINGS: dict[str, tuple[Any, int, int | None]] = {
    "bgr8": (np.uint8, 3, None),
    "8UC3": (np.uint8, 3, None),
    "rgb8": (np.uint8, 3, cv2.COLOR_RGB2BGR),
    "bgra8": (np.uint8, 4, cv2.COLOR_BGRA2BGR),
    "8UC4": (np.uint8, 4, cv2.COLOR_BGRA2BGR),
    "rgba8": (np.uint8, 4, cv2.COLOR_RGBA2BGR),
    "mono8": (np.uint8, 1, cv2.COLOR_GRAY2BGR),
    "8UC1": (np.uint8, 1, cv2.COLOR_GRAY2BGR),
    "bgr16": (np.uint16, 3, None),
    "16UC3": (np.uint16, 3, None),
    "rgb16": (np.uint16, 3, cv2.COLOR_RGB2BGR),
    "bgra16": (np.uint16, 4, cv2.COLOR_BGRA2BGR),
    "16UC4": (np.uint16, 4, cv2.COLOR_BGRA2BGR),
    "rgba16": (np.uint16, 4, cv2.COLOR_RGBA2BGR),
    "mono16": (np.uint16, 1, cv2.COLOR_GRAY2BGR),
    "16UC1": (np.uint16, 1, cv2.COLOR_GRAY2BGR),
    "uyvy": (np.uint8, 2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422": (np.uint8, 2, cv2.COLOR_YUV2BGR_UYVY),
    "yuyv": (np.uint8, 2, cv2.COLOR_YUV2BGR_YUY2),
    "yuv422_yuy2": (np.uint8, 2, cv2.COLOR_YUV2BGR_YUY2),
}
# OpenCV names a Bayer pattern by the second and third pixel of the second row: its BG is ROS's rggb
for _pattern, _code in (
    ("rggb", cv2.COLOR_BayerBG2BGR),
    ("bggr", cv2.COLOR_BayerRG2BGR),
    ("gbrg", cv2.COLOR_BayerGR2BGR),
    ("grbg", cv2.COLOR_BayerGB2BGR),
):
    _ENCODINGS[f"bayer_{_pattern}8"] = (np.uint8, 1, _code)
    _ENCODINGS[f"bayer_{_pattern}16"] = (np.uint16, 1, _code)
_PLANAR = ("nv21", "nv24")
# BT.601 in studio range, as OpenCV's YUV conversions: rows B, G, R of Y - 16, U - 128, V - 128
_BGR_OF_YUV = np.array([[1.164, 2.018, 0.0], [1.164, -0.391, -0.813], [1.164, 0.0, 1.596]], np.float32)


def bgr_of(message: Image) -> NDArray[np.uint8]:
    """Return a message's image, uint8 (H, W, 3) BGR; 16-bit values keep their upper 8 bits.

    Raises:
        InputError: the encoding is not supported, or the message has too few bytes.
    """
    if message.encoding in _PLANAR:
        return _bgr_of_planes(message)
    if message.encoding not in _ENCODINGS:
        raise InputError(
            f"encoding {message.encoding!r} has no conversion to BGR: publish one of "
            f"{', '.join((*_ENCODINGS, *_PLANAR))}"
        )
    dtype, channels, conversion = _ENCODINGS[message.encoding]
    pixels = _pixels(message, dtype, channels)
    if dtype is np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if conversion is None:
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), conversion), np.uint8)


def bgr_of_compressed(message: CompressedImage) -> NDArray[np.uint8]:
    """Return the image of a compressed message (JPEG, PNG, ...), uint8 (H, W, 3) BGR.

    Raises:
        InputError: the data is no image.
    """
    content = np.frombuffer(message.data, np.uint8)
    image = None
    if content.size:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(f"a compressed image of format {message.format!r}, {content.size} bytes, is damaged")
    return np.asarray(image, np.uint8)


def depth_of(message: Image) -> NDArray[Any]:
    """Return a depth image: uint16 (H, W) in millimeters or float32 (H, W) in meters.

    Raises:
        InputError: the encoding is not 16UC1, mono16 or 32FC1.
    """
    dtypes = {"16UC1": np.uint16, "mono16": np.uint16, "32FC1": np.float32}
    if message.encoding not in dtypes:
        raise InputError(f"a depth image must have encoding 16UC1 or 32FC1, got {message.encoding!r}")
    return _pixels(message, dtypes[message.encoding], 1)


def image_message(pixels: NDArray[Any], encoding: str, header: Any) -> Image:
    """Return an image message with the header of another message.

    Args:
        pixels: uint8 or uint16 (H, W) or (H, W, 3).
        encoding: encoding of sensor_msgs, e.g. "mono16".
        header: header of the source message.
    """
    pixels = np.ascontiguousarray(pixels)
    data = array.array("B")  # rclpy does not check each byte of this type
    data.frombytes(memoryview(pixels).cast("B"))
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=pixels.strides[0],
        data=data,
    )


def _rows(message: Image, count: int, row_bytes: int) -> NDArray[np.uint8]:
    """Return the first bytes of ``count`` rows, uint8 (count, row_bytes)."""
    data = np.frombuffer(message.data, np.uint8)
    if message.step < row_bytes or data.size < message.step * count or not count * row_bytes:
        raise InputError(
            f"an image message of {message.width}x{message.height} pixels, encoding {message.encoding}, "
            f"needs {count} rows of {row_bytes} bytes; got {data.size} bytes with step {message.step}"
        )
    return data[: message.step * count].reshape(count, message.step)[:, :row_bytes]


def _pixels(message: Image, dtype: Any, channels: int) -> NDArray[Any]:
    """Return the pixels in the machine's byte order, (H, W) or (H, W, channels)."""
    itemsize = np.dtype(dtype).itemsize
    rows = _rows(message, message.height, message.width * channels * itemsize)
    order = ">" if message.is_bigendian else "<"
    pixels = np.ascontiguousarray(rows).view(np.dtype(dtype).newbyteorder(order)).astype(dtype, copy=False)
    shape = (message.height, message.width, channels)
    return pixels.reshape(shape[:2] if channels == 1 else shape)


def _bgr_of_planes(message: Image) -> NDArray[np.uint8]:
    """Convert nv21 (Y plane, then V and U per 2x2 pixels) or nv24 (Y plane, then U and V per pixel)."""
    height, width = message.height, message.width
    if message.encoding == "nv21":
        planes = np.ascontiguousarray(_rows(message, height + height // 2, width))
        return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV21), np.uint8)
    planes = np.ascontiguousarray(_rows(message, height * 3, width))
    luma, chroma = planes[:height], planes[height:].reshape(height, width, 2)
    yuv = np.dstack([luma, chroma]).astype(np.float32) - np.array([16, 128, 128], np.float32)
    return np.clip(np.rint(yuv @ _BGR_OF_YUV.T), 0, 255).astype(np.uint8)
