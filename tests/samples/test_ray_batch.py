"""Test samples/ray_batch.py on a local Ray cluster."""

import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import tfiseg

pytest.importorskip("ray", reason="Ray is not installed: run `make test-ray`")
pq = pytest.importorskip("pyarrow.parquet")
SAMPLE = Path(__file__).parent.parent.parent / "samples" / "ray_batch.py"


def test_rows_of_objects(tmp_path):
    (tmp_path / "photos").mkdir()
    with tfiseg.open_source("synthetic") as source:
        for k, frame in zip(range(4), source, strict=False):
            cv2.imwrite(str(tmp_path / "photos" / f"{k}.jpg"), frame.image)
    (tmp_path / "photos" / "3.jpg").write_bytes(b"damaged")
    done = subprocess.run(
        [sys.executable, SAMPLE, tmp_path / "photos", tmp_path / "objects"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [row for part in tmp_path.glob("objects/*.parquet") for row in pq.read_table(part).to_pylist()]
    objects = [row for row in rows if row["error"] is None]
    segmenter = tfiseg.Segmenter(threads=1)
    expected = [i.class_name for k in range(3) for i in segmenter(tmp_path / "photos" / f"{k}.jpg")]
    assert sorted(row["class_name"] for row in objects) == sorted(expected)
    assert f"4 images, {len(expected)} objects" in done.stdout
    (damaged,) = [row for row in rows if row["error"] is not None]
    assert damaged["path"].endswith("3.jpg")
