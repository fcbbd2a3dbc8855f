"""Test opening of images, folders, videos and addresses."""

import os

import cv2
import numpy as np
import pytest
import tfiseg
from PIL import Image
from tfiseg.images import strip_secrets
from tfiseg.runtime.sources.base import check_image


@pytest.fixture
def image_folder(tmp_path):
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"p{k}.png"), np.full((20, 30, 3), 40 * k, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def write_video(path, frames=40, fourcc="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), 25.0, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()


@pytest.mark.parametrize(("pattern", "count"), [("p1.png", 1), ("", 3), ("p[01].png", 2)])
def test_images_folders_and_patterns(image_folder, pattern, count):
    with tfiseg.open_source(str(image_folder / pattern) if pattern else image_folder) as source:
        frames = list(source)
    assert [f.index for f in frames] == list(range(count))
    assert frames[0].image.shape == (20, 30, 3)
    assert frames[0].name.startswith("p")
    assert frames[0].capture_time_ns > 0
    assert not source.is_video


def test_a_video_file(tmp_path):
    write_video(tmp_path / "clip.avi")
    with tfiseg.open_source(tmp_path / "clip.avi") as source:
        assert source.fps == 25
        assert source.frame_count == 40
        assert len(list(source)) == 40


def test_a_video_can_be_iterated_again(tmp_path):
    write_video(tmp_path / "clip.avi", 6)
    source = tfiseg.open_source(tmp_path / "clip.avi")
    assert [len(list(source)), len(list(source))] == [6, 6]


def test_names_that_look_like_patterns_or_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    for name in ("photo[1].png", "2024/a.png"):
        cv2.imwrite(name, np.zeros((4, 4, 3), np.uint8))
    assert len(list(tfiseg.open_source("photo[1].png"))) == 1
    assert len(list(tfiseg.open_source("2024"))) == 1


def test_a_truncated_video_is_an_error_after_its_frames(tmp_path):
    path = tmp_path / "cut.avi"
    write_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with pytest.raises(tfiseg.SourceError, match=r"ends after \d+ of the \d+ frames"):
        append_all(tfiseg.open_source(path), frames)
    assert 5 < len(frames) < 40


def append_all(source, frames):
    for frame in source:
        frames.append(frame)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.mp4", "there is no file nowhere.mp4"),
        ("*.nothing", r"nothing matches \*.nothing"),
        (63, "camera 63 can't be opened"),
        ("63", "camera 63 can't be opened"),
        ("http://127.0.0.1:9/stream", "no stream answers"),
    ],
)
def test_sources_that_cannot_be_opened(source, message):
    with pytest.raises(tfiseg.SourceError, match=message):
        tfiseg.open_source(source)


def test_files_that_are_no_image_or_video(tmp_path):
    (tmp_path / "fake.png").write_text("hello")
    with pytest.raises(tfiseg.SourceError, match="is no image"):
        list(tfiseg.open_source(tmp_path / "fake.png"))
    (tmp_path / "fake.mp4").write_text("hello")
    with pytest.raises(tfiseg.SourceError, match="no image or video"):
        tfiseg.open_source(tmp_path / "fake.mp4")


def test_an_empty_folder(tmp_path):
    with pytest.raises(tfiseg.SourceError, match="contains no image"):
        tfiseg.open_source(tmp_path)


def test_the_synthetic_source_has_ground_truth():
    source = tfiseg.open_source("synthetic")
    frames = [frame for frame, _ in zip(source, range(30), strict=False)]
    again = next(iter(tfiseg.open_source("synthetic")))
    assert np.array_equal(frames[0].image, again.image)
    assert frames[0].image.shape == (480, 640, 3)
    assert set(np.unique(frames[0].truth_class_map)) == {0, 15}
    assert np.array_equal(frames[0].truth_label_map > 0, frames[0].truth_class_map > 0)
    assert (frames[0].truth_label_map != frames[29].truth_label_map).any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8.*got float32"),
        (np.zeros((4, 4), np.uint8), "COLOR_GRAY2BGR"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
    ],
)
def test_frames_are_checked(image, message):
    with pytest.raises(tfiseg.InputError, match=message):
        check_image(image)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/live?token=x", "rtsp://10.0.0.5:554/live"),
        ("http://cam.local/stream", "http://cam.local/stream"),
    ],
)
def test_names_contain_no_secrets(url, name):
    assert strip_secrets(url) == name


def test_the_error_of_an_address_contains_no_secrets():
    with pytest.raises(tfiseg.SourceError, match=r"no stream answers at http://127.0.0.1:9/stream$"):
        tfiseg.open_source("http://user:secret@127.0.0.1:9/stream?key=1")


def test_a_device_is_a_camera():
    with pytest.raises(tfiseg.SourceError, match="camera /dev/null can't be opened"):
        tfiseg.open_source("/dev/null")


def test_a_video_whose_name_is_not_utf8(tmp_path):
    write_video(tmp_path / "clip.avi", 6)
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.avi")
    os.rename(tmp_path / "clip.avi", path)
    assert len(list(tfiseg.open_source(os.fsdecode(path)))) == 6
    with open(path, "wb") as file:
        file.write(b"no video")
    with pytest.raises(tfiseg.SourceError, match=r"caf\\xe9.avi is no image or video") as raised:
        tfiseg.open_source(os.fsdecode(path))
    str(raised.value).encode()


def test_an_animated_gif_is_a_video_but_an_image_in_a_folder(tmp_path):
    colors = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    colors[0].save(tmp_path / "a.gif", save_all=True, append_images=colors[1:], duration=40)
    assert len(list(tfiseg.open_source(tmp_path / "a.gif"))) == 3
    (frame,) = tfiseg.open_source(tmp_path)
    assert frame.image[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "got NoneType$"),
        (True, "got bool$"),
        (1.0, "got float$"),
        (np.zeros((4, 6, 3), np.uint8), "got ndarray: subclass tfiseg.Source"),
        (["a.jpg", "b.jpg"], "got list: subclass tfiseg.Source"),
        ((frame for frame in ()), "got generator: subclass tfiseg.Source"),
        (cv2.VideoCapture(), "got VideoCapture: subclass tfiseg.Source"),
    ],
)
def test_a_source_of_another_type_is_named(source, message):
    for opened in (tfiseg.open_source, lambda s: tfiseg.Pipeline(s, len)):
        with pytest.raises(
            tfiseg.InputError, match=f"must be a path, a camera index, a URL or another text, {message}"
        ):
            opened(source)


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300 + ".jpg", "b\0.jpg", "9" * 400, 2**31, str(10**30)])
def test_names_that_the_system_refuses_are_errors_of_the_source(name):
    with pytest.raises(tfiseg.SourceError) as raised:
        tfiseg.open_source(name)
    assert len(str(raised.value)) < 400


def test_unreadable_images_are_listed_in_real_time_too(image_folder):
    (image_folder / "p9.png").write_text("no image")
    for realtime in (False, True):
        with tfiseg.open_source(image_folder, realtime=realtime) as source:
            assert len(list(source)) == 3
            assert [text.split(" is ")[0] for text in source.unreadable] == [str(image_folder / "p9.png")]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("size_wh", 640, r"two integers, \(width, height\) in pixels, got 640"),
        ("size_wh", (640,), "two integers"),
        ("size_wh", ("640", "480"), "two integers"),
        ("size_wh", (0, 480), "at least 1 x 1 px"),
        ("fps", "30", "fps must be above 0, got '30'"),
        ("fps", float("nan"), "fps must be above 0, got nan"),
        ("fps", float("inf"), "fps must be above 0, got inf"),
        ("pixel_format", 5, "must be a FourCC"),
    ],
)
def test_options_of_a_camera_are_checked(option, value, message):
    with pytest.raises(tfiseg.InputError, match=message):
        tfiseg.open_source("synthetic", realtime=True, **{option: value})


@pytest.mark.parametrize("prefix", ["file://", "file://localhost", "FILE://"])
def test_file_urls_are_paths(tmp_path, prefix):
    cv2.imwrite(str(tmp_path / "two words.png"), np.zeros((48, 64, 3), np.uint8))
    escaped = f"{tmp_path}/two%20words.png"
    for url in (f"{prefix}{escaped}", f"{prefix}{tmp_path}", f"{prefix}{tmp_path}/two*.png"):
        assert [frame.image.shape for frame in tfiseg.open_source(url)] == [(48, 64, 3)]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("file:///nowhere/a.mp4", tfiseg.SourceError, "there is no file /nowhere/a.mp4"),
        ("file://me:s3cret@elsewhere/a.mp4", tfiseg.InputError, "file://elsewhere/a.mp4 names the machine"),
        ("file://[x/a.mp4", tfiseg.SourceError, "can't open .*Invalid IPv6 URL"),
    ],
)
def test_file_urls_that_name_no_file_here_are_errors(url, error, message):
    with pytest.raises(error, match=message) as raised:
        tfiseg.open_source(url)
    assert "s3cret" not in str(raised.value)
