"""Test the parts of the package that need no second process: slots, options, messages and files."""

import importlib.util
import re
import sys
import threading
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed: run `make test-ros`")

import tfiseg
import yaml
from std_msgs.msg import Header
from tfiseg.runtime.segmenter_settings import SegmenterSettings
from tfiseg_ros.camera import check_names
from tfiseg_ros.live_segmenter import LiveSegmenter
from tfiseg_ros.newest_frames import NewestFrames
from tfiseg_ros.node import _CHANGEABLE, _FIXED
from tfiseg_ros.result_messages import detections_of, label_image, labels_of, markers_of

PACKAGE = Path(__file__).parent.parent.parent / "samples" / "ros2" / "tfiseg_ros"
CAMERA = (600.0, 600.0, 320.0, 240.0)


def counts_of(frames: NewestFrames) -> list[tuple[int, int, int]]:
    return [(c.received, c.dropped, c.taken) for c in frames.counts]


def test_the_newest_frame_replaces_older_ones():
    frames = NewestFrames(1)
    for frame in "abc":
        frames.put(0, frame)
    assert frames.take() == (0, "c")
    assert counts_of(frames) == [(3, 2, 1)]


def test_cameras_take_turns():
    frames = NewestFrames(3)
    for frame in range(4):
        for camera in (0, 1, 2):
            frames.put(camera, frame)
    assert [frames.take() for _ in range(3)] == [(0, 3), (1, 3), (2, 3)]
    frames.put(0, 4)
    frames.put(2, 4)
    assert frames.take() == (0, 4)
    frames.put(0, 5)
    assert frames.take() == (2, 4), "a fast camera waits for its turn"
    assert frames.take() == (0, 5)


def test_closed_slots_drop_frames():
    frames = NewestFrames(2)
    frames.put(1, "a")
    frames.close()
    frames.put(0, "b")
    assert frames.take() is None
    assert counts_of(frames) == [(1, 1, 0), (1, 1, 0)]
    frames.reopen()
    frames.put(0, "c")
    assert frames.take() == (0, "c")
    assert counts_of(frames) == [(2, 1, 1), (1, 1, 0)]


def test_counts_are_exact_with_many_threads():
    frames, taken = NewestFrames(2), []
    worker = threading.Thread(target=lambda: taken.extend(iter(frames.take, None)))
    worker.start()
    writers = [
        threading.Thread(target=lambda k=k: [frames.put(k % 2, i) for i in range(5000)]) for k in range(4)
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    frames.close()
    worker.join()
    for camera, counts in enumerate(frames.counts):
        assert counts.received == 10_000 == counts.dropped + counts.taken
        assert counts.taken == sum(number == camera for number, _ in taken)


@pytest.fixture
def found() -> tfiseg.Instances:
    class_map = np.zeros((480, 640), np.uint8)
    class_map[100:200, 100:150], class_map[300:400, 400:500] = 15, 7
    names = [f"class {k}" for k in range(15)] + ["person"]
    return tfiseg.cluster(class_map, class_names=names)


def test_labels_are_track_ids(found):
    assert labels_of(found).tolist() == [1, 2]
    tracked = tfiseg.Tracker()(found)
    ids = np.array([65535, 65536], np.int32)
    tracked = tfiseg.Instances(**{**vars(tracked), "track_id": ids})
    assert labels_of(tracked).tolist() == [65535, 1], "the largest value of mono16"
    image = label_image(tracked)
    assert image.dtype == np.uint16
    assert np.array_equal(image == 65535, found.mask(0))
    assert np.array_equal(image == 1, found.mask(1))


def test_labels_of_a_crowd():
    rng = np.random.default_rng(0)
    crowd = tfiseg.cluster(
        (rng.random((200, 200)) < 0.3).astype(np.uint8), split=0, min_area=1, max_instances=2000
    )
    assert len(crowd) > 300
    assert np.array_equal(label_image(crowd), crowd.label_map)


def test_markers_without_depth_are_at_one_meter(found):
    header = Header(frame_id="optical")
    outline, text, *rest = markers_of(found, header, CAMERA).markers
    assert len(rest) == 2
    assert (outline.ns, outline.id, text.text) == ("person", 1, "person")
    assert {point.z for point in outline.points} == {1.0}
    corners = {(round(p.x * 600 + 320), round(p.y * 600 + 240)) for p in outline.points}
    assert corners == {(100, 100), (149, 100), (149, 199), (100, 199)}
    assert outline.points[0] == outline.points[-1], "closed"
    assert outline.lifetime.nanosec == 500_000_000


def test_markers_with_depth(found):
    depth = np.full((480, 640), 2, np.float32)
    depth[300:400, 400:500] = np.nan
    markers = markers_of(found.with_depth(depth, CAMERA), Header(), CAMERA).markers
    assert [one.text for one in markers if one.text] == ["person 2.00 m", "class 7"]
    assert {point.z for point in markers[0].points} == {2.0}
    assert {point.z for point in markers[2].points} == {1.0}


class Message(types.SimpleNamespace):
    """A message that creates its fields at the first access."""

    def __getattr__(self, name):
        value = [] if name in ("results", "detections") else Message()
        setattr(self, name, value)
        return value


def test_detections(found):
    vision = types.SimpleNamespace(
        Detection2DArray=Message, Detection2D=Message, ObjectHypothesisWithPose=Message
    )
    header = Header(frame_id="optical")
    person, _ = detections_of(
        found.with_depth(np.full((480, 640), 2, np.float32), CAMERA), header, vision
    ).detections
    assert (person.header, person.id) == (header, "1")
    assert (person.bbox.center.position.x, person.bbox.center.position.y) == (125, 150)
    assert (person.bbox.size_x, person.bbox.size_y) == (50, 100)
    (result,) = person.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ("person", 1.0)
    assert result.pose.pose.position.z == pytest.approx(2)


def test_options_can_be_changed_between_frames():
    reports = []
    segmenter = LiveSegmenter(
        SegmenterSettings(quality="fast"), lambda text, is_error: reports.append((text, is_error))
    )
    with tfiseg.open_source("synthetic") as source:
        frame = next(iter(source))
    both = segmenter(frame)
    assert len(both)
    segmenter.change(SegmenterSettings(quality="fast", things=("sheep",)))
    assert len(segmenter(frame)) == 0
    segmenter.change(SegmenterSettings(quality="fast", min_score=1.0))
    while len(reports) < 1:  # the model's own minimum score was in use, so a new segmenter is loaded
        none = segmenter(frame)
    assert len(none) == 0
    segmenter.change(SegmenterSettings(quality="fast", min_score=0.0))
    assert len(segmenter(frame)) >= len(both)
    segmenter.change(SegmenterSettings(quality="balanced", min_score=0.0))
    while segmenter.quality != "balanced":
        segmenter(frame)
    segmenter.change(SegmenterSettings(quality="best", instance_model="/nowhere.onnx", min_score=0.0))
    while not reports[-1][1]:
        segmenter(frame)
    assert "can't be loaded" in reports[-1][0]
    assert segmenter.quality == "balanced"
    segmenter.close()


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", ""], ["a b"], ["/a"], ["1a"]])
def test_names_of_cameras(names):
    assert check_names([""]) == [""]
    assert check_names(["front_left", "rear2"]) == ["front_left", "rear2"]
    with pytest.raises(tfiseg.InputError, match="cameras must be different names"):
        check_names(names)


def test_the_yaml_file_has_the_defaults():
    (node,) = yaml.safe_load((PACKAGE / "config" / "tfiseg.yaml").read_text()).values()
    assert node["ros__parameters"] == {name: default for name, (default, _) in (_CHANGEABLE | _FIXED).items()}


def test_the_readme_lists_every_topic_and_parameter():
    text = (PACKAGE / "README.md").read_text()
    for name in (*_CHANGEABLE, *_FIXED):
        assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE), name
    source = (PACKAGE / "tfiseg_ros" / "camera.py").read_text()
    topics = re.findall(r'_publisher\([\w.]+, "(\w+)"\)', source)
    assert len(topics) == 5
    for topic in (*topics, "image", "image/compressed", "depth", "camera_info", "/diagnostics"):
        assert re.search(rf"^\| `(~/)?{topic}` \|", text, re.MULTILINE), topic


def test_package_xml_lists_all_imported_packages():
    root = ElementTree.parse(PACKAGE / "package.xml").getroot()
    depends = {one.text for one in root.iter("exec_depend")}
    assert root.findtext("name") == "tfiseg_ros"
    assert root.findtext("export/build_type") == "ament_python"
    for path in (*PACKAGE.glob("tfiseg_ros/*.py"), *PACKAGE.glob("launch/*.py")):
        for package in re.findall(
            r"^\s*(?:from|import) (\w+_msgs|rclpy|launch|launch_ros|ament_index_python)\b",
            path.read_text(),
            re.MULTILINE,
        ):
            assert package in depends | {"rcl_interfaces"}, f"{path.name}: {package}"


def test_setup_installs_existing_files(monkeypatch):
    given = {}
    monkeypatch.setitem(sys.modules, "setuptools", types.SimpleNamespace(setup=lambda **k: given.update(k)))
    spec = importlib.util.spec_from_file_location("setup_of_tfiseg_ros", PACKAGE / "setup.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for _, files in given["data_files"]:
        for file in files:
            assert (PACKAGE / file).is_file(), file
    compile((PACKAGE / "launch" / "tfiseg.launch.py").read_text(), "tfiseg.launch.py", "exec")
