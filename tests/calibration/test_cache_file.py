"""Calibration caches from untrusted sources: no code runs, and memory is limited."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from tfiseg.calibration.quantize import Calibration
from tfiseg.calibration.rounding import QuantizedWeights
from tfiseg.errors import InputError


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "c.npz"
    weights = QuantizedWeights(
        np.asfortranarray(np.arange(24, dtype=np.int8).reshape(4, 6)),
        np.ones(4, np.float32),
        np.zeros(4, np.float32),
    )
    Calibration(
        {"version": "1"}, {"t/1": np.ones(3, np.float32)}, {"t/1": (0.0, 1.0)}, {"/layer": weights}
    ).save(path)
    return path


def test_cache_round_trip(cache):
    found = Calibration.load(cache)
    assert found.key == {"version": "1"}
    assert found.ranges == {"t/1": (0.0, 1.0)}
    assert found.peaks["t/1"].tolist() == [1, 1, 1]
    assert np.array_equal(found.rounded["/layer"].q, np.arange(24).reshape(4, 6))


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def part(shape, dtype="<f4", data=b""):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(**parts):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in parts.items():
            zipped.writestr(name.replace("__", "/") + ".npy", data)
    return content.getvalue()


def saved(**arrays):
    content = io.BytesIO()
    np.savez(content, **{name.replace("__", "/"): value for name, value in arrays.items()})
    return content.getvalue()


KEY = np.array('{"a": "1"}')


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4junk",
        pickle.dumps(Evil()),
        saved(key=np.array([Evil()], object)),
        saved(key=np.array("[" * 10_000)),
        saved(key=np.array("5")),
        saved(a=np.zeros(3)),
        saved(key=KEY, x=np.zeros(3)),
        saved(key=KEY, range__a=np.zeros(3)),
        saved(key=KEY, range__a=np.array([2.0, 1.0])),
        saved(key=KEY, range__a=np.array([0.0, np.nan])),
        saved(key=KEY, peak__a=np.zeros((2, 2), np.float32)),
        saved(key=KEY, peak__a=np.array([np.inf], np.float32)),
        saved(key=KEY, q__a=np.zeros((2, 2), np.int8)),
        archive(key=part("(1099511627776,)")),
        archive(key=part("(-1,)")),
        archive(key=part("()", "<U4000000")),
        archive(peak__a=part("(1000,)", data=bytes(10))),
    ],
)
def test_other_files_are_rejected(content, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache.write_bytes(content)
    with pytest.raises(InputError, match=r"c\.npz is not a calibration cache of tfiseg .* Delete it"):
        Calibration.load(cache)
    assert not (tmp_path / "PWNED").exists()


def test_zip_bomb_is_rejected_before_unpacking(cache):
    with (
        zipfile.ZipFile(cache, "w", zipfile.ZIP_DEFLATED) as zipped,
        zipped.open("peak/a.npy", "w", force_zip64=True) as file,
    ):
        file.write(part("(1200000000,)", "|u1"))
        for _ in range(120):
            file.write(bytes(10**7))
    assert cache.stat().st_size < 2_000_000
    with pytest.raises(InputError, match="unpacks to more than"):
        Calibration.load(cache)
