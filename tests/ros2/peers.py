"""Programs around the node, each in a separate process: cameras, listeners, a recorder and clients.

`python peers.py ROLE OPTIONS-AS-JSON`; each prints a JSON object at the end. Times are time.monotonic_ns().
"""

import itertools
import json
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import rclpy
import tfiseg
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tfiseg_ros.image_conversion import image_message

WAIT_S = 60.0
TYPES = get_typestore(Stores.ROS2_JAZZY)


def qos(options: dict) -> QoSProfile:
    reliable = options.get("reliable", False)
    return QoSProfile(
        depth=options.get("depth", 1000 if reliable else 5),
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
    )


def nanoseconds(stamp) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def scenes(size_hw: tuple[int, int], count: int) -> list[np.ndarray]:
    """Return resized images of the synthetic source."""
    with tfiseg.open_source("synthetic") as source:
        return [cv2.resize(frame.image, size_hw[::-1]) for frame in itertools.islice(source, count)]


def wait_until(node: Node, condition) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        rclpy.spin_once(node, timeout_sec=0.05)
        if time.monotonic() > until:
            sys.exit("the condition never became true")


def spin_until_signal(node: Node, received: Callable[[], int]) -> Iterator[None]:
    """Spin until SIGTERM, and then until no message has arrived for a second.

    Diagnostics never end, so it stops five seconds after the signal at the latest.
    """
    signals: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: signals.append(time.monotonic()))
    count, newest = 0, time.monotonic()
    while not signals or (
        time.monotonic() - max(newest, signals[0]) < 1 and time.monotonic() - signals[0] < 5
    ):
        rclpy.spin_once(node, timeout_sec=0.05)
        if received() != count:
            count, newest = received(), time.monotonic()
        yield


def make_image(node: Node, pixels: np.ndarray, frame_id: str) -> Image:
    """Return an image message with the current time."""
    message = image_message(pixels, "bgr8", CameraInfo().header)
    message.header.frame_id = frame_id
    message.header.stamp = node.get_clock().now().to_msg()
    return message


def camera(options: dict) -> dict:
    """Publish ``count`` frames at ``hz`` once there are ``listeners``; SIGTERM ends it early.

    With ``compressed``, it publishes JPEG images, of which those in ``damaged`` are truncated. With
    ``depth_m``, it also publishes depth images of that distance.
    """
    node = Node(f"camera_{options.get('frame_id', '')}")
    name, compressed = options.get("name", ""), options.get("compressed", False)
    kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
    publisher = node.create_publisher(kind, name + topic, qos(options))
    infos = node.create_publisher(CameraInfo, name + "camera_info", qos(options))
    depths = node.create_publisher(Image, name + "depth", qos(options))
    pictures = scenes(tuple(options.get("size_hw", (480, 640))), 20)
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    wait_until(node, lambda: publisher.get_subscription_count() >= options.get("listeners", 1))
    time.sleep(0.5)  # until the listeners have found the publisher
    info = CameraInfo(k=[600.0, 0.0, 320.0, 0.0, 600.0, 240.0, 0.0, 0.0, 1.0])
    sent = []
    due = time.monotonic()
    for k in range(options["count"]):
        message = make_image(node, pictures[k % len(pictures)], options.get("frame_id", "optical"))
        info.header = message.header
        infos.publish(info)
        if "depth_m" in options:
            depth = np.full((message.height, message.width), options["depth_m"], np.float32)
            depths.publish(image_message(depth, "32FC1", message.header))
            time.sleep(0.2)  # so that it arrives before its image
        if compressed:
            jpeg = cv2.imencode(".jpg", pictures[k % len(pictures)])[1].tobytes()
            content = jpeg[:100] if k in options.get("damaged", ()) else jpeg
            message = CompressedImage(
                header=message.header, format="bgr8; jpeg compressed bgr8", data=content
            )
        sent.append((nanoseconds(message.header.stamp), time.monotonic_ns()))
        publisher.publish(message)
        due += 1 / options["hz"]
        time.sleep(max(0.0, due - time.monotonic()))
        if ended:
            break
    publisher.wait_for_all_acked(Duration(seconds=WAIT_S))  # messages in transit need the publisher
    return {"sent": sent}


def stepper(options: dict) -> dict:
    """Publish each image after the label map of the last one: ``count`` scenes, or the images of a bag.

    Returns the round trips in milliseconds.
    """
    node = Node("stepper")
    publisher = node.create_publisher(Image, "image", qos(options))
    received = []
    node.create_subscription(Image, "/tfiseg/label_map", received.append, qos(options))
    wait_until(node, lambda: publisher.get_subscription_count() >= options.get("listeners", 1))
    wait_until(node, lambda: node.count_publishers("/tfiseg/label_map"))
    time.sleep(0.5)
    if "bag" in options:
        messages = [deserialize_message(raw, Image) for raw in raw_messages(options["bag"], "/image")]
    else:
        messages = scenes((480, 640), 20)
    trips_ms, stamps = [], []
    for k in range(options.get("count", len(messages))):
        message = messages[k % len(messages)]
        if not isinstance(message, Image):
            message = make_image(node, message, "optical")
        began = time.perf_counter()
        received.clear()
        publisher.publish(message)
        wait_until(node, lambda: received)
        trips_ms.append((time.perf_counter() - began) * 1e3)
        assert received[0].header == message.header
        stamps.append(nanoseconds(message.header.stamp))
    publisher.wait_for_all_acked(Duration(seconds=WAIT_S))
    return {"trips_ms": trips_ms, "stamps": stamps}


def raw_messages(bag: str, topic: str) -> list[bytes]:
    """Return the serialized messages of a topic, in order."""
    with Reader(Path(bag)) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return [bytes(raw) for _, _, raw in reader.messages(connections=connections)]


def recorder(options: dict) -> dict:
    """Write the images of ``topics`` into a bag until SIGTERM.

    Prints "matched" when one of them has a publisher, so that the first message is not missed.
    """
    node, counts, subscriptions = Node("recorder"), dict.fromkeys(options["topics"], 0), []
    with Writer(Path(options["bag"]), version=9) as writer:
        for topic in options["topics"]:
            connection = writer.add_connection(topic, "sensor_msgs/msg/Image", typestore=TYPES)

            def take(raw, connection=connection, topic=topic):
                counts[topic] += 1
                writer.write(connection, time.time_ns(), raw)

            subscriptions.append(node.create_subscription(Image, topic, take, qos(options), raw=True))
        matched = False
        for _ in spin_until_signal(node, lambda: sum(counts.values())):
            if not matched and any(s.get_publisher_count() for s in subscriptions):
                matched = True
                print("matched", flush=True)
    return counts


def parameters(options: dict) -> dict:
    """Set parameters of the node one after another, and return the answers."""
    from rclpy.parameter import Parameter

    node = Node("parameters")
    client = node.create_client(SetParameters, "/tfiseg/set_parameters")
    assert client.wait_for_service(WAIT_S)
    answers = []
    for name, value in options["set"]:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future, timeout_sec=WAIT_S)
        answer = future.result().results[0]
        answers.append([answer.successful, answer.reason])
    return {"answers": answers}


def lifecycle(options: dict) -> dict:
    """Trigger transitions of the node one after another, and return whether they succeeded."""
    from lifecycle_msgs.srv import ChangeState

    node = Node("lifecycle")
    client = node.create_client(ChangeState, "/tfiseg/change_state")
    assert client.wait_for_service(WAIT_S)
    answers = []
    for number in options["transitions"]:
        request = ChangeState.Request()
        request.transition.id = number
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future, timeout_sec=options.get("timeout_s", WAIT_S))
        answers.append(future.done() and future.result().success)  # rclpy does not answer invalid transitions
    return {"answers": answers}


def listener(options: dict) -> dict:
    """Subscribe to ``topics`` (topic -> "Image", "MarkerArray", ...) until SIGTERM.

    Prints "matched" when each topic has a publisher. Returns the messages as JSON objects.
    """
    from diagnostic_msgs.msg import DiagnosticArray
    from visualization_msgs.msg import MarkerArray

    kinds = {"Image": Image, "MarkerArray": MarkerArray, "DiagnosticArray": DiagnosticArray}
    node = Node("listener")
    messages = {topic: [] for topic in options["topics"]}

    def append_to(topic):
        def append(message):
            messages[topic].append(describe(message, time.monotonic_ns()))
            print(f"received {topic} {len(messages[topic])}", flush=True)

        return append

    for topic, kind in options["topics"].items():
        profile = 10 if kind == "DiagnosticArray" else qos(options)
        node.create_subscription(kinds[kind], topic, append_to(topic), profile)
    matched = False
    for _ in spin_until_signal(node, lambda: sum(map(len, messages.values()))):
        if not matched and all(node.count_publishers(topic) for topic in messages):
            matched = True
            print("matched", flush=True)
    return messages


def describe(message, arrival_ns: int) -> dict:
    """Return the values of a message that the tests check."""
    if isinstance(message, Image):
        pixels = np.frombuffer(message.data, np.uint16 if message.encoding == "mono16" else np.uint8)
        return {
            "stamp_ns": nanoseconds(message.header.stamp),
            "frame_id": message.header.frame_id,
            "arrival_ns": arrival_ns,
            "encoding": message.encoding,
            "shape": [message.height, message.width, message.step],
            "crc": zlib.crc32(bytes(message.data)),
            "largest": int(pixels.max()),
        }
    if hasattr(message, "status"):
        for status in message.status:
            counts = {pair.key: pair.value for pair in status.values}
            print(f"{status.name} received {counts['received']}", flush=True)
        return {
            status.name: {
                "level": int.from_bytes(status.level, "little"),
                "message": status.message,
                **{pair.key: pair.value for pair in status.values},
            }
            for status in message.status
        }
    return {
        "arrival_ns": arrival_ns,
        "markers": [
            {"ns": marker.ns, "id": marker.id, "frame_id": marker.header.frame_id, "text": marker.text}
            | {"z": sorted({point.z for point in marker.points})}
            for marker in message.markers
        ],
    }


ROLES = {role.__name__: role for role in (camera, listener, stepper, recorder, parameters, lifecycle)}

if __name__ == "__main__":
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    print(json.dumps(ROLES[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
