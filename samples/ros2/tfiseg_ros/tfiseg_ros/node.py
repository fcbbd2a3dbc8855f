"""The node: `ros2 run tfiseg_ros segmenter`, or `python -m tfiseg_ros.node` without a workspace."""

from __future__ import annotations

import dataclasses
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from tfiseg import TfisegError
from tfiseg.runtime.segmenter_settings import SegmenterSettings

from .camera import Arrival, Camera, CameraSettings, check_names
from .live_segmenter import LiveSegmenter
from .newest_frames import NewestFrames

RCLError = rclpy_implementation.RCLError
_LOG_EVERY_S = 5.0
# name -> default, description; these can be changed while the node runs
_CHANGEABLE = {
    "quality": ("balanced", "fast, balanced or best"),
    "min_score": (-1.0, "minimum score, 0 to 1; -1: the model's own"),
    "classes": ([""], 'names of the classes to segment; [""]: all countable ones'),
}
_FIXED = {
    "model": ("", 'path of a model or engine; "": the default network'),
    "cameras": ([""], 'names of cameras; [""]: one without a name'),
    "compressed": (False, "subscribe to image/compressed instead of image"),
    "reliable": (False, "reliable instead of best-effort delivery, in and out"),
    "queue": (5, "messages of a topic that may wait in the middleware"),
    "track": (True, "persistent track IDs in label_map"),
    "depth": (False, "subscribe to depth: distances in markers and detections"),
    "threads": (0, "CPU threads of the network; 0: all"),
    "stale_ms": (500, "diagnostics warn if no image arrives for this time"),
    "autostart": (True, "configure and activate at start"),
}


class SegmenterNode(LifecycleNode):
    """A lifecycle node that segments the images of one or several cameras with one network.

    ``configure`` loads the network, ``activate`` starts receiving images, ``deactivate`` stops it, and
    ``cleanup`` frees the network.
    """

    def __init__(self) -> None:
        super().__init__("tfiseg")
        for table, read_only in ((_CHANGEABLE, False), (_FIXED, True)):
            for name, (default, description) in table.items():
                descriptor = ParameterDescriptor(description=description, read_only=read_only)
                self.declare_parameter(name, default, descriptor)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._segmenter: LiveSegmenter | None = None
        self._frames = NewestFrames(0)
        self._cameras: list[Camera] = []
        self._worker: threading.Thread | None = None
        # diagnostics continue while the node is inactive, because a silent node looks dead
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0, self._report_status)

    # -- life cycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            names = check_names(self._value("cameras"))
            self._segmenter = LiveSegmenter(self._settings({}), self._log)
            self._segmenter.check(self._settings({}))
            settings = CameraSettings(
                **{field.name: self._value(field.name) for field in dataclasses.fields(CameraSettings)}
            )
            self._frames = NewestFrames(len(names))
            for number, name in enumerate(names):
                self._cameras.append(
                    Camera(self, name, settings, self._frames.counts[number], self._put_function(number))
                )
        except Exception as error:  # rclpy does not log exceptions in transitions
            self.get_logger().error(str(error) if isinstance(error, TfisegError) else traceback.format_exc())
            self._free()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = super().on_activate(state)  # publishers first
        self._frames.reopen()
        self._worker = threading.Thread(target=self._work, name="tfiseg-worker", daemon=True)
        self._worker.start()
        for camera in self._cameras:
            camera.subscribe()
        self.get_logger().info("segmenting")
        return done

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.get_logger().error("a transition failed")
        self.close()
        return super().on_error(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_shutdown(state)

    def close(self) -> None:
        """Stop the worker and free the network; safe to call twice."""
        self._stop()
        self._free()

    def _stop(self) -> None:
        for camera in self._cameras:
            camera.unsubscribe()
        self._frames.close()
        if self._worker is not None:
            self._worker.join()  # at most one frame
            self._worker = None

    def _free(self) -> None:
        for camera in self._cameras:
            camera.close()
        self._cameras = []
        if self._segmenter is not None:
            self._segmenter.close()
            self._segmenter = None

    # -- frames

    def _put_function(self, number: int) -> Any:
        return lambda arrival: self._frames.put(number, arrival)

    def _work(self) -> None:
        """Segment the newest frames until the slots are closed (in the worker's thread)."""
        assert self._segmenter is not None
        while (taken := self._frames.take()) is not None:
            number, arrival = taken
            self._process(self._cameras[number], arrival, self._segmenter)

    def _process(self, camera: Camera, arrival: Arrival, segmenter: LiveSegmenter) -> None:
        try:
            camera.process(segmenter, arrival)
        except Exception as error:  # one image must not end the node; diagnostics report it
            camera.fail(error)
            self.get_logger().error(
                f"{camera.name or 'camera'}: {type(error).__name__}: {error}",
                throttle_duration_sec=_LOG_EVERY_S,
            )

    def _report_status(self) -> None:
        message = DiagnosticArray(status=[camera.status() for camera in self._cameras])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _log(self, text: str, is_error: bool) -> None:
        if is_error:
            self.get_logger().error(text)
        else:
            self.get_logger().info(text)

    # -- parameters

    def _value(self, name: str) -> Any:
        value = self.get_parameter(name).value
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

    def _settings(self, changed: dict[str, Any]) -> SegmenterSettings:
        """Return the segmenter's options after a change of parameters, or raise InputError."""
        values = {name: changed.get(name, self._value(name)) for name in (*_CHANGEABLE, "model", "threads")}
        classes = [name for name in values["classes"] if name]
        return SegmenterSettings(
            model=values["model"] or None,
            quality=values["quality"],
            min_score=None if values["min_score"] == -1 else values["min_score"],
            things=tuple(classes) or None,
            threads=values["threads"],
        )

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changed = {parameter.name: parameter.value for parameter in parameters}
        try:
            settings = self._settings(changed)
            if self._segmenter is not None:
                self._segmenter.check(settings)
        except (TfisegError, TypeError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, parameters: list[Parameter]) -> None:
        if self._segmenter is not None and any(p.name in _CHANGEABLE for p in parameters):
            self._segmenter.change(self._settings({}))


def _spin(node: SegmenterNode) -> None:
    """Run callbacks until ROS shuts down. Transitions that the state does not allow are only logged."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while rclpy.ok():
        try:
            executor.spin_once()
        except RCLError as error:
            if not rclpy.ok():  # a signal arrived while the executor prepared to wait
                return
            if "lifecycle" not in str(error):
                raise
            node.get_logger().error(str(error))


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted; return 1 if it cannot start."""
    rclpy.init(args=args)
    node = SegmenterNode()
    try:
        if node.get_parameter("autostart").value:
            done = TransitionCallbackReturn.SUCCESS
            if node.trigger_configure() != done or node.trigger_activate() != done:
                return 1
        _spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
