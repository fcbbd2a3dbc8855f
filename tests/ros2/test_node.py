"""Test the node with ROS 2: camera, node and listeners in separate processes."""

import itertools
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed: run `make test-ros`")

HERE = Path(__file__).parent
LABELS, IMAGES = "/tfiseg/label_map", {"/tfiseg/label_map": "Image"}
DIAGNOSTICS = {"/diagnostics": "DiagnosticArray"}
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4  # constants of lifecycle_msgs/Transition


def last_status(messages: list[dict], camera: str = "camera") -> dict:
    return messages[-1][f"/tfiseg: {camera}"]


def test_stamps_and_frame_ids_are_kept(ros):
    ros.node(reliable=True)
    topics = {f"/tfiseg/{name}": "Image" for name in ("label_map", "semantic_map", "overlay")}
    listener = ros.listener(topics, reliable=True)
    stamps = ros.peer("stepper", count=8, reliable=True).result()["stamps"]
    labels, classes, overlays = listener.stop().values()
    for found, encoding, step in (
        (labels, "mono16", 1280),
        (classes, "mono8", 640),
        (overlays, "bgr8", 1920),
    ):
        assert {one["encoding"] for one in found} == {encoding}
        assert {tuple(one["shape"]) for one in found} == {(480, 640, step)}
        assert {one["frame_id"] for one in found} == {"optical"}
        assert [one["stamp_ns"] for one in found] == stamps
    assert max(one["largest"] for one in labels) >= 1


def test_counts_of_500_frames_are_exact(ros):
    ros.node(reliable=True, quality="fast", queue=500)  # so that the middleware drops none
    listener = ros.listener(IMAGES | DIAGNOSTICS, reliable=True)
    sent = ros.peer("camera", count=500, hz=40, reliable=True).result()["sent"]
    listener.wait_for("/tfiseg: camera received 500")
    time.sleep(2)  # for the last frame and the last status
    messages = listener.stop()
    status = last_status(messages["/diagnostics"])
    assert len(sent) == int(status["received"]) == 500
    assert int(status["dropped"]) + int(status["published"]) == 500
    assert status["lost"] == status["failed"] == "0"
    stamps = [one["stamp_ns"] for one in messages[LABELS]]
    assert len(stamps) == int(status["published"]) > 20
    places = [{stamp: k for k, (stamp, _) in enumerate(sent)}[stamp] for stamp in stamps]
    assert places == sorted(set(places)), "in order, without duplicates"
    assert places[-1] == 499, "the last frame is always segmented"
    print(f"500 frames at 40 Hz: {status['dropped']} dropped, {status['published']} published")


def test_latency_is_that_of_the_segmenter(ros):
    ros.node(reliable=True)
    listener = ros.listener(DIAGNOSTICS)
    trips_ms = sorted(ros.peer("stepper", count=100, reliable=True).result()["trips_ms"])
    time.sleep(1.5)
    status = last_status(listener.stop()["/diagnostics"])
    node_ms, segmenter_ms = float(status["node_ms_p50"]), float(status["segmenter_ms_p50"])
    print(f"node {node_ms:.1f} ms, segmenter {segmenter_ms:.1f} ms, round trip {trips_ms[50]:.1f} ms")
    assert node_ms < 1.3 * segmenter_ms


def test_a_killed_node_is_restarted(ros):
    first = ros.node(reliable=True, quality="fast")
    listener = ros.listener(reliable=True)
    camera = ros.peer("camera", count=2000, hz=10, reliable=True)
    listener.wait_for_more(LABELS, 5)
    first.kill()
    killed_ns = time.monotonic_ns()
    second = ros.node(reliable=True, quality="fast")
    restarted_ns = time.monotonic_ns()
    listener.wait_for_more(LABELS, 8)  # a few of them may be older
    times = dict(camera.stop()["sent"])
    assert second.popen.poll() is None
    messages = listener.stop()[LABELS]
    stamps = [one["stamp_ns"] for one in messages]
    assert stamps == sorted(set(stamps)), "in order, without duplicates"
    assert set(stamps) <= set(times)
    assert sum(times[stamp] < killed_ns for stamp in stamps) >= 3
    assert sum(times[stamp] > restarted_ns for stamp in stamps) >= 3
    late = [one for one in messages if times[one["stamp_ns"]] > restarted_ns]
    assert min(one["largest"] for one in late if one["largest"]) <= 3, "track IDs start again"


def test_another_middleware_receives_the_same(ros):
    pytest.importorskip("cyclonedds")
    ros.node(reliable=True)
    listener = ros.listener(reliable=True)
    foreign = ros.start(str(HERE / "foreign_listener.py"), ros.domain, LABELS)
    foreign.wait_for("matched")
    for _ in range(5):  # until the node has found the listener
        ros.peer("stepper", count=1, reliable=True).result()
        if "received" in foreign.text:
            break
    stamps = ros.peer("stepper", count=8, reliable=True).result()["stamps"]
    ours, theirs = listener.stop()[LABELS][-8:], foreign.stop()[-8:]
    assert [one["stamp_ns"] for one in theirs] == stamps
    assert theirs == [{name: one[name] for name in theirs[0]} for one in ours]


def test_a_recorded_bag_gives_the_same_results(ros, tmp_path):
    pytest.importorskip("rosbags")
    import numpy as np
    import tfiseg
    from peers import raw_messages
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import Image
    from tfiseg_ros.image_conversion import bgr_of

    bags = []
    for played in (None, 0):  # scenes first, then the images of the first bag
        node = ros.node(reliable=True)
        bags.append(str(tmp_path / f"bag{len(bags)}"))
        recorder = ros.peer("recorder", bag=bags[-1], topics=["/image", LABELS], reliable=True)
        recorder.wait_for("matched")
        source = {"count": 10} if played is None else {"bag": bags[played]}
        ros.peer("stepper", listeners=2, reliable=True, **source).result()
        assert recorder.stop() == {"/image": 10, LABELS: 10}
        node.kill()
    first, second = (raw_messages(bag, LABELS) for bag in bags)
    assert first == second, "byte for byte"
    segmenter, tracker = tfiseg.Segmenter(), tfiseg.Tracker()
    for image, labels in zip(raw_messages(bags[0], "/image"), second, strict=True):
        image, labels = (deserialize_message(raw, Image) for raw in (image, labels))
        stamp_ns = image.header.stamp.sec * 1_000_000_000 + image.header.stamp.nanosec
        found = tracker(segmenter(tfiseg.Frame(bgr_of(image), 0, stamp_ns)))
        expected = np.concatenate([[0], found.track_id])[found.label_map]
        assert np.array_equal(np.frombuffer(labels.data, np.uint16).reshape(480, 640), expected)


def test_options_can_be_changed_at_run_time(ros):
    node = ros.node(reliable=True)
    listener = ros.listener({"/tfiseg/semantic_map": "Image"} | IMAGES, reliable=True)
    ros.peer("stepper", count=3, reliable=True).result()
    answers = ros.peer(
        "parameters",
        set=[
            ["quality", "excellent"],
            ["min_score", 1.5],
            ["classes", ["person", "unicorn"]],
            ["threads", 3],
            ["classes", ["sheep"]],
        ],
    ).result()["answers"]
    assert [accepted for accepted, _ in answers] == [False, False, False, False, True]
    for (_, reason), words in zip(answers, ("'balanced'", "0..1", "'unicorn'", "read-only"), strict=False):
        assert words in reason
    ros.peer("stepper", count=3, reliable=True).result()
    changes = [["classes", [""]], ["quality", "fast"], ["min_score", 0.0]]
    assert ros.peer("parameters", set=changes).result()["answers"] == [[True, ""]] * 3
    for _ in range(20):  # frames go through the old network until the new one is loaded
        ros.peer("stepper", count=1, reliable=True).result()
        if "quality is 'fast' from now on" in node.text:
            break
    else:
        pytest.fail(node.text)
    ros.peer("stepper", count=3, reliable=True).result()
    largest = [one["largest"] for one in listener.stop()[LABELS]]
    assert max(largest[:3]) > 0
    assert max(largest[3:6]) == 0, "no sheep in these scenes"
    assert max(largest[-3:]) > 0


def test_two_cameras_share_one_network(ros):
    names = ["left", "right"]
    ros.node(reliable=True, cameras=names, quality="fast", queue=100)
    topics = {f"/tfiseg/{name}/label_map": "Image" for name in names}
    listener = ros.listener(topics | DIAGNOSTICS, reliable=True)
    cameras = [
        ros.peer("camera", name=f"{name}/", frame_id=name, count=40, hz=hz, reliable=True)
        for name, hz in zip(names, (20, 5), strict=True)
    ]
    sent = {name: camera.result()["sent"] for name, camera in zip(names, cameras, strict=True)}
    for name in names:
        listener.wait_for(f"/tfiseg: {name} received 40")
    time.sleep(2)
    messages = listener.stop()
    for name in names:
        status, found = last_status(messages["/diagnostics"], name), messages[f"/tfiseg/{name}/label_map"]
        assert int(status["received"]) == 40 == int(status["dropped"]) + int(status["published"])
        assert len(found) == int(status["published"]) >= 2
        assert {one["frame_id"] for one in found} == {name}
        assert {one["stamp_ns"] for one in found} <= {stamp for stamp, _ in sent[name]}


def test_a_damaged_image_does_not_end_the_node(ros):
    node = ros.node(reliable=True, compressed=True, quality="fast")
    listener = ros.listener(IMAGES | DIAGNOSTICS, reliable=True)
    sent = ros.peer("camera", count=6, hz=1.5, compressed=True, damaged=[2], reliable=True).result()["sent"]
    time.sleep(1.5)
    messages = listener.stop()
    stamps = [one["stamp_ns"] for one in messages[LABELS]]
    assert sent[2][0] not in stamps
    assert sent[5][0] in stamps
    assert last_status(messages["/diagnostics"])["failed"] == "1"
    assert 2 in [last_status([one])["level"] for one in messages["/diagnostics"] if one], (
        "the status is an error for a second"
    )
    assert "is damaged" in node.text


def test_lifecycle(ros):
    ros.node(wait=False, autostart=False, reliable=True)
    lifecycle = ros.peer("lifecycle", transitions=[CONFIGURE, ACTIVATE])
    assert lifecycle.result()["answers"] == [True, True]
    listener = ros.listener(reliable=True)
    ros.peer("stepper", count=2, reliable=True).result()
    assert ros.peer("lifecycle", transitions=[ACTIVATE], timeout_s=2).result()["answers"] == [False]
    assert ros.peer("lifecycle", transitions=[DEACTIVATE, ACTIVATE]).result()["answers"] == [True, True]
    ros.peer("stepper", count=2, reliable=True).result()
    again = [DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE]
    assert ros.peer("lifecycle", transitions=again).result()["answers"] == [True] * 4
    ros.peer("stepper", count=2, reliable=True).result()
    assert len(listener.stop()[LABELS]) == 6


def test_markers_are_at_the_measured_distance(ros):
    ros.node(reliable=True, depth=True, classes=["person"])
    listener = ros.listener({"/tfiseg/markers": "MarkerArray"} | IMAGES, reliable=True)
    ros.peer("camera", count=8, hz=2, depth_m=3.5, reliable=True).result()
    markers = [one for message in listener.stop()["/tfiseg/markers"] for one in message["markers"]]
    texts, outlines = ([one for one in markers if bool(one["text"]) == has] for has in (True, False))
    assert texts
    assert {one["frame_id"] for one in markers} == {"optical"}
    assert {one["ns"] for one in outlines} == {"person"}
    assert all(one["text"].endswith("3.50 m") for one in texts)
    assert {z for one in outlines for z in one["z"]} == {3.5}


def test_a_missing_model_is_an_error(ros):
    node = ros.node(wait=False, model="/nowhere/net.onnx")
    assert node.popen.wait(60) == 1
    assert "/nowhere/net.onnx" in node.text
    assert "Traceback" not in node.text


def test_signals_end_the_node(ros):
    for signal_number, end in ((2, "SIGINT"), (15, "SIGTERM")):
        node = ros.node()
        node.popen.send_signal(signal_number)
        assert node.popen.wait(20) == 0, f"{end}: {node.text}"
        assert "Traceback" not in node.text


def test_a_silent_camera_is_a_warning(ros):
    ros.node(stale_ms=200, reliable=True)
    listener = ros.listener(DIAGNOSTICS)
    ros.peer("camera", count=2, hz=5, reliable=True).result()
    time.sleep(2.5)
    statuses = [one["/tfiseg: camera"] for one in listener.stop()["/diagnostics"] if one]
    assert [level for level, _ in itertools.groupby(one["level"] for one in statuses)][-1] == 1
    assert statuses[0]["message"] == "no image has arrived yet"
    assert statuses[-1]["message"].startswith("no image for ")
