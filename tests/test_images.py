"""Test the conversion of images of every type to uint8 (H, W, 3) BGR."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from pictures import SMOOTH, TINY, as_pil, encoded
from PIL import Image
from tfiseg.files import printable
from tfiseg.images import image_paths, read_image, read_map, to_bgr


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_keep_their_pixels(form, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(as_pil(TINY), form, **({"lossless": True} if form == "WEBP" else {})))
    for source in (path, str(path), path.read_bytes()):
        image = read_image(source)
        assert image.dtype == np.uint8
        assert image.tolist() == TINY.tolist()


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_are_similar(form):
    image = read_image(
        encoded(as_pil(SMOOTH), form, quality=95) if form != "JPEG2000" else encoded(as_pil(SMOOTH), form)
    )
    assert np.abs(image.astype(int) - SMOOTH).mean() < 6


def test_a_jpeg_is_read_as_opencv_reads_it():
    content = encoded(as_pil(SMOOTH), "JPEG")
    assert np.array_equal(
        read_image(content), cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    )


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_in_every_format(form, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "AVIF": {"quality": 100},
        "WEBP": {"lossless": True},
    }
    content = encoded(as_pil(SMOOTH), form, exif=exif, **options.get(form, {}))
    expected = UPRIGHT[orientation](SMOOTH)
    found = read_image(content)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (4 if form in ("JPEG", "AVIF") else 0.01)


def test_orientation_of_a_pil_image_is_applied_once():
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.open(io.BytesIO(encoded(as_pil(TINY), "PNG", exif=exif)))
    assert to_bgr(image).tolist() == np.rot90(TINY, -1).tolist()
    assert to_bgr(image).tolist() == np.rot90(TINY, -1).tolist(), "the image itself is not changed"


RED, GRAY = [0, 0, 255], [128, 128, 128]


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGB", (1, 1), (255, 0, 0)), RED),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), RED),
        (Image.new("L", (1, 1), 128), GRAY),
        (Image.new("LA", (1, 1), (128, 3)), GRAY),
        (Image.new("1", (1, 1), 1), [255, 255, 255]),
        (Image.new("RGB", (1, 1), (255, 0, 0)).convert("P"), RED),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), RED),
        (Image.new("HSV", (1, 1), (0, 255, 255)), RED),
        (Image.new("YCbCr", (1, 1), (128, 128, 128)), GRAY),
        (Image.new("RGBa", (1, 1), (255, 0, 0, 255)), RED),
        (Image.fromarray(np.array([[0x8012]], np.uint16)), GRAY),
        (Image.fromarray(np.array([[0x8012]], np.int32)), GRAY),
        (Image.fromarray(np.array([[0.5]], np.float32)), GRAY),
        (Image.fromarray(np.array([[127.6]], np.float32)), GRAY),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_is_converted(image, pixel):
    assert to_bgr(image).tolist() == [[pixel]]


def test_transparency_of_a_palette_is_ignored():
    image = as_pil(TINY).convert("P", palette=Image.Palette.ADAPTIVE)
    content = encoded(image, "PNG", transparency=bytes(range(6)))
    assert read_image(content).tolist() == TINY.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.array([[0.0, 256.0]], np.float32),
            r"float values from 0.0 to 256.0: expected 0\.\.1 or 0\.\.255",
        ),
        (np.array([[-0.1]], np.float32), "float values from -0.1"),
        (np.array([[np.nan]], np.float32), "float values from nan"),
        (np.array([[70_000]], np.int32), r"values from 70000 to 70000: expected 0\.\.65535"),
        (np.array([[0, 255]], np.int32), r"values from 0 to 255, which would all be black: .* 8 bits"),
        (np.array([[7, 30]], np.uint16), "values from 7 to 30, which would all be black"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(tfiseg.InputError, match=message):
        to_bgr(Image.fromarray(values))


@pytest.mark.parametrize("values", [(np.arange(6) * 257).astype(np.uint16), np.arange(6) / np.float32(255)])
def test_16_bit_and_float_files(values, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(values.reshape(2, 3)).save(path)
    assert read_image(path)[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    cv2.imwrite(str(tmp_path / "a.png"), TINY.astype(np.uint16) * 257)
    assert read_image(tmp_path / "a.png").tolist() == TINY.tolist()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_an_error(form, share, tmp_path):
    content = encoded(as_pil(SMOOTH), form)
    path = tmp_path / "half.jpg"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(tfiseg.InputError, match=r"half\.jpg is (truncated|no image)"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_with_zeros_is_an_error(progressive):
    content = encoded(as_pil(SMOOTH), "JPEG", progressive=progressive)
    half = len(content) // 2
    with pytest.raises(tfiseg.InputError, match="is truncated or damaged"):
        read_image(content[:half] + bytes(len(content) - half))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_with_an_end_marker_but_without_all_data_is_an_error(progressive, share):
    """Some programs close a truncated file with an end marker, and libjpeg fills the rest with gray."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    content = encoded(as_pil(noise), "JPEG", progressive=progressive)
    with pytest.raises(tfiseg.InputError, match="is truncated or damaged"):
        read_image(content[: int(share * len(content))] + b"\xff\xd9")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": "4:2:2"}]
)
def test_complete_jpegs_of_all_kinds_are_read(mode, options):
    image = as_pil(SMOOTH).convert(mode)
    content = encoded(image, "JPEG", **options)
    expected = np.asarray(image.convert("RGB"))[..., ::-1].astype(int)
    for tail in (b"", bytes(1000), content):
        assert np.abs(np.asarray(read_image(content + tail)).astype(int) - expected).mean() < 6


def png_of(width: int, height: int) -> bytes:
    """Return a black 1-bit PNG without allocating its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_images_with_too_long_sides_are_refused(tmp_path):
    strip = np.zeros((40_000, 2, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "strip.png"), strip)
    with pytest.raises(tfiseg.InputError, match=r"strip\.png has 2x40000 pixels, expected at most 32767"):
        read_image(tmp_path / "strip.png")
    with pytest.raises(tfiseg.InputError, match=r"at most 32767 pixels along each side, got \(40000, 2, 3\)"):
        tfiseg.Segmenter(threads=1)(strip)


def test_a_decompression_bomb_is_refused_unless_the_limit_is_raised(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(20_000, 20_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(
        tfiseg.InputError, match=r"bomb\.png has 20000x20000 pixels.*TFISEG_MAX_PIXELS=400000000"
    ):
        read_image(path)
    path.write_bytes(png_of(40, 30))
    with pytest.raises(tfiseg.InputError, match="has 40x30 pixels, more than the limit of 1000"):
        read_image(path, max_pixels=1000)
    monkeypatch.setenv("TFISEG_MAX_PIXELS", "1000")
    with pytest.raises(tfiseg.InputError, match="more than the limit of 1000"):
        read_image(path)
    monkeypatch.setenv("TFISEG_MAX_PIXELS", "1200")
    assert read_image(path).shape == (30, 40, 3)
    monkeypatch.setenv("TFISEG_MAX_PIXELS", "many")
    with pytest.raises(tfiseg.InputError, match="must be a number of pixels, got 'many'"):
        read_image(path)


def test_the_limit_of_pillow_is_unchanged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(png_of(40, 30)).shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    "name", [b"caf\xe9.png", "schön.png".encode(), b"a b\n.png", b"%41.png", b"x" * 250 + b".png"]
)
def test_file_names_of_any_bytes(name, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(encoded(as_pil(TINY), "PNG"))
    assert read_image(os.fsdecode(path)).tolist() == TINY.tolist()
    assert read_image(Path(os.fsdecode(path))).tolist() == TINY.tolist()
    assert to_bgr(Path(os.fsdecode(path)).as_uri()).tolist() == TINY.tolist()
    os.remove(path)
    with pytest.raises(tfiseg.InputError, match="there is no file") as raised:
        read_image(os.fsdecode(path))
    str(raised.value).encode()


@pytest.mark.parametrize(
    ("name", "text"),
    [("café", "café"), ("caf\udce9", r"caf\xe9"), ("a\ud800", r"a\ud800"), (b"\xff", r"\xff"), ("", "")],
)
def test_printable_names(name, text):
    assert printable(name) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no file .*x.jpg"),
        (lambda p: p.mkdir(), r"^\S*x\.jpg is no image: it is a folder"),
        (lambda p: os.mkfifo(p), "it is a pipe or device"),
        (lambda p: p.symlink_to("/nowhere/a.jpg"), "a broken link"),
        (lambda p: p.write_bytes(b""), "is no image that can be read"),
        (lambda p: p.write_text("hello"), "is no image that can be read"),
        (lambda p: p.write_bytes(bytes(1000)), "is no image that can be read"),
        (
            lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "is no image that can be read",
        ),
        (lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_RDWR), 1 << 40), "has 1099511627776 bytes"),
    ],
)
def test_files_that_are_no_images(make, message, tmp_path):
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(tfiseg.InputError, match=message):
        read_image(path)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damaged_files_are_read_or_refused(form, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(as_pil(SMOOTH[:20, :20]), form))
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(len(content) if seed % 2 else 60)] = rng.integers(256)
    try:
        image = read_image(bytes(content))
    except tfiseg.InputError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


def test_maps_are_read_with_their_stored_values(tmp_path):
    labels = np.array([[0, 1, 300], [65535, 2, 3]], np.uint16)
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    assert read_map(tmp_path / "labels.png").tolist() == labels.tolist()
    palette = Image.fromarray(np.array([[0, 15, 255]], np.uint8))
    palette = palette.convert("P")
    palette.putpalette(bytes(range(256)) * 3)  # as in PASCAL VOC's class maps, whose indices are class IDs
    palette.save(tmp_path / "classes.png")
    assert read_map(tmp_path / "classes.png").tolist() == [[0, 15, 255]]
    assert read_map(tmp_path / "classes.png").dtype == np.uint8


def test_images_of_a_folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.heic", "._b.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to("/nowhere/x.jpg")
    assert [p.name for p in image_paths(tmp_path)] == ["a.PNG", "b.jpg", "c.heic", "gone.jpg"]


# -- arrays and tensors


@pytest.mark.parametrize(
    ("picture", "color", "expected"),
    [
        (TINY, None, TINY),
        (TINY, "bgr", TINY),
        (TINY[..., ::-1], "rgb", TINY),
        (TINY.tolist(), None, None),
        (TINY[..., 0], None, TINY[..., :1].repeat(3, 2)),
        (TINY[..., :1], None, TINY[..., :1].repeat(3, 2)),
        (TINY[:, ::2], None, TINY[:, ::2]),
    ],
)
def test_arrays(picture, color, expected):
    if expected is None:
        with pytest.raises(tfiseg.InputError, match="got int64"):
            to_bgr(picture, color)
    else:
        assert to_bgr(picture, color).tolist() == expected.tolist()


def test_a_bgr_array_is_not_copied():
    assert to_bgr(TINY) is TINY


@pytest.mark.parametrize(
    ("picture", "color", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), None, "got float32"),
        (np.zeros((4, 4, 4), np.uint8), None, r"got uint8 \(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), None, "give a batch as a list"),
        (np.zeros((0, 4, 3), np.uint8), None, r"got uint8 \(0, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), None, r"got uint8 \(3, 4, 4\)"),
        (None, None, "got object"),
        (3, None, "got int64"),
        (TINY, "hsv", "color must be one of rgb, bgr, got 'hsv'"),
        ("a.png", "rgb", "color='rgb' is for arrays and tensors"),
        (Image.new("RGB", (1, 1)), "bgr", "color='bgr' is for arrays and tensors"),
    ],
)
def test_unsupported_images_are_refused(picture, color, message):
    with pytest.raises(tfiseg.InputError, match=message):
        to_bgr(picture, color)


@pytest.mark.parametrize(
    ("axes", "color", "order"),
    [
        ((0, 1, 2), None, "rgb"),
        ((2, 0, 1), None, "rgb"),
        ((0, 1, 2), "rgb", "rgb"),
        ((2, 0, 1), "bgr", "bgr"),
        ((0, 1, 2), "bgr", "bgr"),
    ],
)
def test_tensors(axes, color, order):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[:2, :3] = TINY
    stored = picture if order == "bgr" else picture[..., ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(stored.transpose(axes)))
    assert to_bgr(tensor, color).tolist() == picture.tolist()
    gray = torch.from_numpy(picture[..., 0].copy())
    for tensor in (gray, gray[None], gray[..., None]):
        assert to_bgr(tensor).tolist() == picture[..., :1].repeat(3, 2).tolist()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 8, 8), "float32", r"got torch.float32 \(3, 8, 8\).*\.to\(torch.uint8\)"),
        ((2, 3, 8, 8), "uint8", r"give a batch as list\(tensor\)"),
        ((3, 8, 3), "uint8", r"can't tell whether a tensor \(3, 8, 3\)"),
        ((4, 8, 8), "uint8", r"can't tell whether a tensor \(4, 8, 8\)"),
        ((3, 0, 8), "uint8", r"got torch.uint8 \(3, 0, 8\)"),
    ],
)
def test_unsupported_tensors_are_refused(shape, dtype, message):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(tfiseg.InputError, match=message):
        to_bgr(torch.zeros(shape, dtype=getattr(torch, dtype)))


# -- addresses
