"""A camera of the node: its topics, its tracker and its counts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tfiseg import Frame, InputError, Instances, Tracker
from visualization_msgs.msg import MarkerArray

from .image_conversion import bgr_of, bgr_of_compressed, depth_of, image_message
from .newest_frames import FrameCounts
from .result_messages import detections_of, label_image, markers_of, status_of, vision_messages

_MAX_DEPTH_NS = 50_000_000  # maximum time between an image and its depth
_DEPTHS = 8  # number of depth images to keep, because they may arrive before or after their image
_TIMED_FRAMES = 100  # number of frames whose times are reported


@dataclass(frozen=True)
class CameraSettings:
    """The parameters of the node for each camera, see README.md."""

    compressed: bool = False
    reliable: bool = False
    queue: int = 5
    track: bool = True
    depth: bool = False
    stale_ms: int = 500


@dataclass(frozen=True)
class Arrival:
    """An image message and its arrival time, time.monotonic_ns()."""

    message: Image | CompressedImage
    arrival_ns: int


class Camera:
    """Subscriptions and publishers of one camera.

    Args:
        node: the node.
        name: name of the camera, part of its topics; "" for the only camera.
        settings: parameters of the node.
        counts: counts of the camera's slot.
        put: puts an ``Arrival`` into that slot.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        settings: CameraSettings,
        counts: FrameCounts,
        put: Callable[[Arrival], None],
    ) -> None:
        self.name, self._node, self._settings = name, node, settings
        self._counts, self._put = counts, put
        self._prefix = f"{name}/" if name else ""
        reliability = ReliabilityPolicy.RELIABLE if settings.reliable else ReliabilityPolicy.BEST_EFFORT
        self._qos = QoSProfile(depth=settings.queue, reliability=reliability)
        self._vision = vision_messages()
        self._label_map = self._publisher(Image, "label_map")
        self._semantic_map = self._publisher(Image, "semantic_map")
        self._overlay = self._publisher(Image, "overlay")
        self._markers = self._publisher(MarkerArray, "markers")
        self._detections = None
        if self._vision is not None:
            self._detections = self._publisher(self._vision.Detection2DArray, "detections")
        self._subscriptions: list[Any] = []
        self._start()

    def _start(self) -> None:
        self._tracker = Tracker() if self._settings.track else None
        self._depths: deque[Image] = deque(maxlen=_DEPTHS)
        self._intrinsics: NDArray[np.float64] | None = None
        self.lost = self.published = self.failed = 0
        self._last_error = ""
        self._times_ms: dict[str, deque[float]] = {
            name: deque(maxlen=_TIMED_FRAMES) for name in ("age", "node", "segmenter")
        }
        self._reported = (time.monotonic(), 0, 0)  # time, published, failed
        self._arrival_ns = 0

    def _publisher(self, kind: Any, topic: str) -> Any:
        return self._node.create_lifecycle_publisher(kind, f"~/{self._prefix}{topic}", self._qos)

    def subscribe(self) -> None:
        """Start receiving images."""
        lost = SubscriptionEventCallbacks(message_lost=self._count_lost)
        kind, topic = (CompressedImage, "image/compressed") if self._settings.compressed else (Image, "image")
        topics: list[tuple[Any, str, Callable[[Any], None], Any]] = [(kind, topic, self._on_image, lost)]
        if self._settings.depth:
            topics.append((Image, "depth", self._on_depth, None))
        topics.append((CameraInfo, "camera_info", self._on_camera_info, None))
        self._subscriptions = [
            self._node.create_subscription(
                kind, self._prefix + topic, callback, self._qos, event_callbacks=events
            )
            for kind, topic, callback, events in topics
        ]

    def unsubscribe(self) -> None:
        """Stop receiving images."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def close(self) -> None:
        """Remove all topics."""
        self.unsubscribe()
        publishers = [self._label_map, self._semantic_map, self._overlay, self._markers, self._detections]
        for publisher in publishers:
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._arrival_ns = time.monotonic_ns()
        self._put(Arrival(message, self._arrival_ns))

    def _count_lost(self, event: Any) -> None:
        self.lost = event.total_count

    def _on_depth(self, message: Image) -> None:
        self._depths.append(message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        matrix = np.array(message.k).reshape(3, 3)
        if matrix[0, 0] > 0 and matrix[1, 1] > 0:  # zeros: the camera is not calibrated
            self._intrinsics = matrix

    def process(self, segmenter: Callable[[Frame], Instances], arrival: Arrival) -> None:
        """Segment one image and publish the topics that have subscribers.

        Raises:
            TfisegError: the image or its depth is invalid.
        """
        message = arrival.message
        image = bgr_of_compressed(message) if self._settings.compressed else bgr_of(message)
        stamp_ns = _nanoseconds(message.header.stamp)
        began_ns = time.monotonic_ns()
        found = segmenter(Frame(image, self._counts.taken, stamp_ns or arrival.arrival_ns))
        segmenter_ns = time.monotonic_ns() - began_ns
        if self._tracker is not None:
            found = self._tracker(found)
        self._publish(found, image, message.header)
        self.published += 1
        self._times_ms["node"].append((time.monotonic_ns() - arrival.arrival_ns) / 1e6)
        self._times_ms["segmenter"].append(segmenter_ns / 1e6)
        if stamp_ns:
            self._times_ms["age"].append((self._node.get_clock().now().nanoseconds - stamp_ns) / 1e6)

    def fail(self, error: Exception) -> None:
        """Count an image that could not be segmented."""
        self.failed += 1
        self._last_error = str(error)

    def _publish(self, found: Instances, image: NDArray[np.uint8], header: Any) -> None:
        """Publish the topics with subscribers; the label map first, because drawing takes time."""
        if _has_subscribers(self._label_map):
            self._label_map.publish(image_message(label_image(found), "mono16", header))
        if _has_subscribers(self._semantic_map):
            self._semantic_map.publish(image_message(found.semantic_map, "mono8", header))
        if self._settings.depth and (_has_subscribers(self._markers) or _has_subscribers(self._detections)):
            found = self._with_depth(found, _nanoseconds(header.stamp))
        if self._detections is not None and _has_subscribers(self._detections):
            self._detections.publish(detections_of(found, header, self._vision))
        if self._intrinsics is not None and _has_subscribers(self._markers):
            k = self._intrinsics
            self._markers.publish(markers_of(found, header, (k[0, 0], k[1, 1], k[0, 2], k[1, 2])))
        if _has_subscribers(self._overlay):
            self._overlay.publish(image_message(found.draw(image), "bgr8", header))

    def _with_depth(self, found: Instances, stamp_ns: int) -> Instances:
        """Return the instances with the depth image nearest in time, if it is near enough."""
        depths = list(self._depths)
        if not depths or self._intrinsics is None:
            return found
        distances_ns = [abs(_nanoseconds(depth.header.stamp) - stamp_ns) for depth in depths]
        nearest = int(np.argmin(distances_ns))
        if distances_ns[nearest] > _MAX_DEPTH_NS:
            return found
        return found.with_depth(depth_of(depths[nearest]), self._intrinsics)

    def status(self) -> DiagnosticStatus:
        """Return rate, ages and counts for /diagnostics."""
        now, published, failed = time.monotonic(), self.published, self.failed
        before, published_before, failed_before = self._reported
        self._reported = now, published, failed
        waiting_ms = (time.monotonic_ns() - self._arrival_ns) / 1e6
        level, text = DiagnosticStatus.OK, "segmenting"
        if failed > failed_before:
            level, text = DiagnosticStatus.ERROR, self._last_error
        elif not self._arrival_ns:
            level, text = DiagnosticStatus.WARN, "no image has arrived yet"
        elif waiting_ms > self._settings.stale_ms:
            level, text = DiagnosticStatus.WARN, f"no image for {waiting_ms:.0f} ms"
        values: dict[str, object] = {
            "rate_hz": f"{(published - published_before) / max(now - before, 1e-3):.2f}",
            "received": self._counts.received,
            "dropped": self._counts.dropped,
            "lost": self.lost,
            "published": published,
            "failed": failed,
        }
        for name, times in self._times_ms.items():
            recent = list(times)
            for share in (50, 99) if recent else ():
                values[f"{name}_ms_p{share}"] = f"{np.percentile(recent, share):.2f}"
        title = f"{self._node.get_fully_qualified_name()}: {self.name or 'camera'}"
        return status_of(title, self.name or "camera", level, text, values)


def _has_subscribers(publisher: Any) -> bool:
    return publisher is not None and publisher.get_subscription_count() > 0


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec * 1_000_000_000 + stamp.nanosec)


def check_names(names: list[str]) -> list[str]:
    """Return the names of cameras.

    Raises:
        InputError: there is no name, a duplicate name, or an invalid topic name.
    """
    is_valid = all(name.replace("_", "a").isalnum() and not name[0].isdigit() for name in names if name)
    if not names or len(set(names)) < len(names) or not is_valid or (len(names) > 1 and "" in names):
        raise InputError(
            f"cameras must be different names of letters, digits and underscores, got {names}: "
            '[""] is one camera without a name'
        )
    return names
