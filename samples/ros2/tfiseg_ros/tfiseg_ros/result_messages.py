"""Instances as ROS messages: label map, markers, detections, diagnostics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA
from tfiseg import Instance, Instances
from visualization_msgs.msg import Marker, MarkerArray

MAX_LABEL = 65535  # of mono16
_MARKER_S = 0.5  # lifetime of markers
_OUTLINE_PX = 1.5  # maximum deviation of a marker's outline from that of the mask
_PLANE_M = 1.0  # distance of outlines without depth


def labels_of(instances: Instances) -> NDArray[np.int64]:
    """Return the value of each instance in the published label map, (n,), 1..65535.

    The values are track IDs, which start again from 1 after 65535, or row numbers without tracking.
    """
    if instances.track_id is None:
        return np.arange(1, len(instances) + 1)
    return (instances.track_id.astype(np.int64) - 1) % MAX_LABEL + 1


def label_image(instances: Instances) -> NDArray[np.uint16]:
    """Return the label map to publish, uint16 (H, W); 0 = no instance."""
    values = np.concatenate([[0], labels_of(instances)]).astype(np.uint16)
    if len(values) > 256:
        return values[instances.label_map]
    table = np.zeros(256, np.uint16)
    table[: len(values)] = values
    return np.asarray(cv2.LUT(instances.label_map.astype(np.uint8), table), np.uint16)


def markers_of(
    instances: Instances, header: Any, intrinsics: tuple[float, float, float, float]
) -> MarkerArray:
    """Return outlines and names in the camera's optical frame.

    Outlines are at the distance of the instance, or at 1 m without depth.

    Args:
        instances: instances of one frame.
        header: header of the image.
        intrinsics: (fx, fy, cx, cy) in pixels.
    """
    markers = []
    for instance, label in zip(instances, labels_of(instances).tolist(), strict=True):
        has_depth = instance.distance_m is not None and np.isfinite(instance.distance_m)
        z = instance.distance_m if has_depth else _PLANE_M
        b, g, r = (instances.colors[instance.number] / 255).tolist()
        color = ColorRGBA(r=r, g=g, b=b, a=1.0)
        outline = _marker(header, instance.class_name, label, Marker.LINE_STRIP, color)
        outline.scale.x = 0.01 * z
        outline.points = [_point(x, y, z, intrinsics) for x, y in _outline_xy(instances, instance)]
        text = _marker(header, f"{instance.class_name} text", label, Marker.TEXT_VIEW_FACING, color)
        text.scale.z = 0.05 * z
        text.text = f"{instance.title} {z:.2f} m" if has_depth else instance.title
        text.pose.position = _point(instance.centroid_xy[0], instance.box_xyxy[1], z, intrinsics)
        markers += [outline, text]
    return MarkerArray(markers=markers)


def _marker(header: Any, namespace: str, number: int, kind: int, color: ColorRGBA) -> Marker:
    marker = Marker(header=header, ns=namespace, id=number, type=kind, action=Marker.ADD, color=color)
    marker.pose.orientation.w = 1.0
    marker.lifetime.nanosec = round(_MARKER_S * 1e9)
    return marker


def _outline_xy(instances: Instances, instance: Instance) -> list[tuple[float, float]]:
    """Return the closed outline of the largest part in pixels."""
    polygon = cv2.approxPolyDP(instances.polygon(instance.index)[0], _OUTLINE_PX, True)[:, 0].tolist()
    return [*polygon, polygon[0]]


def _point(x: float, y: float, z: float, intrinsics: tuple[float, float, float, float]) -> Point:
    fx, fy, cx, cy = intrinsics
    return Point(x=(x - cx) * z / fx, y=(y - cy) * z / fy, z=float(z))


def vision_messages() -> Any | None:
    """Return the module vision_msgs.msg, or None if it is not installed."""
    try:
        import vision_msgs.msg
    except ImportError:
        return None
    return vision_msgs.msg


def detections_of(instances: Instances, header: Any, vision: Any) -> Any:
    """Return a vision_msgs/Detection2DArray with class names, scores, boxes, and labels as IDs.

    Args:
        instances: instances of one frame.
        header: header of the image.
        vision: the module vision_msgs.msg.
    """
    detections = vision.Detection2DArray(header=header)
    for instance, label in zip(instances, labels_of(instances).tolist(), strict=True):
        detection = vision.Detection2D(header=header, id=str(label))
        x0, y0, x1, y1 = instance.box_xyxy
        detection.bbox.center.position.x, detection.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
        detection.bbox.size_x, detection.bbox.size_y = x1 - x0, y1 - y0
        hypothesis = vision.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = instance.class_name, instance.score
        if instance.centroid_xyz_m is not None and np.isfinite(instance.centroid_xyz_m).all():
            position = hypothesis.pose.pose.position
            position.x, position.y, position.z = instance.centroid_xyz_m
        detection.results.append(hypothesis)
        detections.detections.append(detection)
    return detections


def status_of(name: str, camera: str, level: bytes, message: str, values: Mapping[str, object]) -> Any:
    """Return the diagnostic_msgs/DiagnosticStatus of one camera."""
    return DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=camera,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
