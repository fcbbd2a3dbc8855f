"""Test archives on a local Ray cluster: each picture is segmented once, even if workers or files fail."""

import json
import os
import signal
from pathlib import Path

import cv2
import pytest
import tfiseg
from tfiseg.cli.main import main
from tfiseg.files import FolderLock, writable_folder
from tfiseg.runtime.archive.archive_folder import ArchiveFolder
from tfiseg.runtime.archive.ray_archive import PictureWorker, segment_archive
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.segmenter_settings import SegmenterSettings

ray = pytest.importorskip("ray", reason="Ray is not installed: run `make test-ray`")
pq = pytest.importorskip("pyarrow.parquet")

SETTINGS = SegmenterSettings(quality="fast")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def photos(tmp_path):
    """Return a folder of 12 pictures, one of them damaged, in two subfolders, and a text file."""
    folder = tmp_path / "photos"
    with tfiseg.open_source("synthetic") as source:
        for k, frame in zip(range(12), source, strict=False):
            path = folder / "ab"[k % 2] / f"{k:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.resize(frame.image, (160, 120)))
    (folder / "a" / "006.jpg").write_bytes((folder / "a" / "006.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    return folder


def rows_of(out: Path) -> list[dict]:
    return [row for part in sorted(out.glob("parts/*.parquet")) for row in pq.read_table(part).to_pylist()]


def names_of(rows) -> list[str]:
    return sorted(row["file_name"] for row in rows)


GOOD = sorted(f"{'ab'[k % 2]}/{k:03d}.jpg" for k in range(12) if k != 6)


def test_results_equal_those_of_one_process(photos, tmp_path):
    summary = segment_archive(str(photos), tmp_path / "out", SETTINGS, output_format="coco", quiet=True)
    assert (summary["pictures"], summary["segmented"], summary["failed"]) == (12, 11, 1)
    assert summary["workers"] == 2
    assert "006.jpg" in summary["errors"][0]["path"]
    rows = rows_of(tmp_path / "out")
    assert names_of(rows) == GOOD
    segmenter = tfiseg.Segmenter(quality="fast", threads=1)
    for row in rows:
        found = segmenter(photos / row["file_name"])
        assert row["path"] == str(photos / row["file_name"])
        assert [row["height"], row["width"]] == [120, 160]
        instances = row["instances"]
        assert [i["class_name"] for i in instances] == found.names
        assert [i["rle"] for i in instances] == [found.rle(k)["counts"] for k in range(len(found))]
        assert [i["score"] for i in instances] == pytest.approx(found.score.tolist(), abs=1e-4)
        assert [i["area"] for i in instances] == found.area.tolist()
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert names_of(coco["images"]) == GOOD
    assert len(coco["annotations"]) == sum(len(row["instances"]) for row in rows)
    assert coco["categories"][14]["name"] == "person"
    (line,) = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert "006.jpg" in json.loads(line)["error"]


def test_a_second_run_continues(photos, tmp_path):
    out = tmp_path / "out"
    segment_archive(str(photos / "b"), out, SETTINGS, quiet=True)
    before = {part: part.read_bytes() for part in out.glob("parts/*")}
    summary = segment_archive(str(photos), out, SETTINGS, quiet=True)
    assert (summary["done_before"], summary["segmented"], summary["failed"]) == (6, 5, 1)
    assert all(part.read_bytes() == content for part, content in before.items())
    assert len(rows_of(out)) == 11
    again = segment_archive(str(photos), out, SETTINGS, output_format="coco", quiet=True)
    assert (again["done_before"], again["segmented"], again["failed"]) == (11, 0, 1)
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 11
    with pytest.raises(tfiseg.InputError, match="was begun with quality 'fast', got 'best'"):
        segment_archive(str(photos), out, SegmenterSettings(quality="best"), quiet=True)


def write_folder(path, settings):
    """Create an archive folder with one finished picture, without a cluster."""
    path.mkdir()
    folder = ArchiveFolder(path, settings)
    folder.add("a.jpg", {"size_hw": [1, 1], "name": "a", "instances": []})
    folder.flush()


def test_results_of_two_networks_are_not_mixed(tmp_path):
    model, out = tmp_path / "net.onnx", tmp_path / "out"
    model.write_bytes(DEFAULT_MODEL.read_bytes())
    settings = SegmenterSettings(model, quality="fast")
    write_folder(out, settings)
    assert ArchiveFolder(out, settings).done == {"a.jpg"}
    model.write_bytes(DEFAULT_MODEL.read_bytes() + b"\0")
    with pytest.raises(tfiseg.InputError, match="begun with another content of model: name another folder"):
        ArchiveFolder(out, settings)
    model.unlink()
    with pytest.raises(tfiseg.ModelError, match=r"net\.onnx"):
        ArchiveFolder(out, settings)
    model.mkdir()
    with pytest.raises(tfiseg.ModelError, match=r"can't read the model .*net\.onnx: Is a directory"):
        ArchiveFolder(out, settings)


@pytest.mark.parametrize("content", ["{", '{"model": [1]}', "[]", '{"model": NaN}'])
def test_damaged_settings_are_an_error(tmp_path, content):
    write_folder(tmp_path / "out", SegmenterSettings())
    (tmp_path / "out" / "archive.json").write_text(content)
    with pytest.raises(tfiseg.InputError, match=r"archive\.json is damaged .*name another folder"):
        ArchiveFolder(tmp_path / "out", SegmenterSettings())


def test_a_worker_that_dies_is_replaced(photos, tmp_path):
    marker = str(tmp_path / "died")

    class WorkerThatDiesOnce(PictureWorker):
        def segment(self, path, file_name):
            if path.endswith("005.jpg") and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().segment(path, file_name)

    summary = segment_archive(str(photos), tmp_path / "out", SETTINGS, quiet=True, worker=WorkerThatDiesOnce)
    assert os.path.exists(marker)
    assert (summary["segmented"], summary["failed"]) == (11, 1)
    assert names_of(rows_of(tmp_path / "out")) == GOOD


def test_a_picture_that_kills_each_worker_is_an_error(photos, tmp_path):
    class WorkerThatDies(PictureWorker):
        def segment(self, path, file_name):
            if path.endswith("005.jpg"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().segment(path, file_name)

    summary = segment_archive(
        str(photos / "b"), tmp_path / "out", SETTINGS, quiet=True, worker=WorkerThatDies
    )
    assert summary["segmented"] + summary["failed"] == 6
    assert "005.jpg" in " ".join(error["path"] for error in summary["errors"])
    assert all("its worker died" in error["error"] for error in summary["errors"])
    assert len(rows_of(tmp_path / "out")) == summary["segmented"] >= 4


def test_paths_from_parquet(photos, tmp_path):
    import pyarrow as pa

    paths = [str(photos / "a" / "000.jpg"), str(photos / "b" / "001.jpg"), "/nowhere.jpg", None]
    pq.write_table(pa.table({"path": [*paths, paths[0]], "id": range(5)}), tmp_path / "list.parquet")
    summary = segment_archive(str(tmp_path / "list.parquet"), tmp_path / "out", SETTINGS, quiet=True)
    assert (summary["pictures"], summary["segmented"], summary["failed"]) == (3, 2, 1)
    assert names_of(rows_of(tmp_path / "out")) == sorted(paths[:2])
    pq.write_table(pa.table({"file": ["a.jpg"]}), tmp_path / "other.parquet")
    with pytest.raises(tfiseg.InputError, match='has the columns file and no column "path"'):
        segment_archive(str(tmp_path / "other.parquet"), tmp_path / "out", SETTINGS)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(tfiseg.SourceError, match="can't read"):
        segment_archive(str(tmp_path / "text.parquet"), tmp_path / "out", SETTINGS)


def test_an_interrupted_run_keeps_finished_pictures(photos, tmp_path, monkeypatch):
    from tfiseg.runtime.archive import ray_archive

    def three_results(*_):
        for k, row in enumerate(results(*_)):
            if k == 3:
                raise KeyboardInterrupt
            yield row

    results = ray_archive._results
    monkeypatch.setattr(ray_archive, "_results", three_results)
    summary = segment_archive(str(photos / "b"), tmp_path / "out", SETTINGS, quiet=True)
    assert summary["error"] == "interrupted"
    assert len(rows_of(tmp_path / "out")) == summary["segmented"] == 3
    monkeypatch.undo()
    assert segment_archive(str(photos / "b"), tmp_path / "out", SETTINGS, quiet=True)["segmented"] == 3
    assert len(rows_of(tmp_path / "out")) == 6


def test_two_runs_do_not_write_into_one_folder(photos, tmp_path):
    out = tmp_path / "out"
    with FolderLock(writable_folder(out)), pytest.raises(tfiseg.InputError, match="another run writes to"):
        segment_archive(str(photos / "b"), out, SETTINGS, quiet=True)
    assert not (out / "summary.json").exists()
    assert segment_archive(str(photos / "b"), out, SETTINGS, quiet=True)["segmented"] == 6


def test_a_missing_model_and_too_few_cpus(photos, tmp_path):
    with pytest.raises(tfiseg.ModelError, match="there is no model"):
        segment_archive(str(photos), tmp_path / "out", SegmenterSettings(model="/nowhere.onnx"), quiet=True)
    with pytest.raises(tfiseg.InputError, match="no room for a worker of 64 CPUs: it has 2 CPUs"):
        segment_archive(
            str(photos), tmp_path / "out", SegmenterSettings(quality="fast", threads=64), quiet=True
        )


def test_a_damaged_part_is_an_error(tmp_path):
    folder = ArchiveFolder(tmp_path, SETTINGS)
    record = {"size_hw": [4, 4], "name": "a", "instances": []}
    folder.add("/a.jpg", record)
    folder.add("/a.jpg", record)
    folder.flush()
    assert [row["path"] for row in rows_of(tmp_path)] == ["/a.jpg"]
    assert ArchiveFolder(tmp_path, SETTINGS).done == {"/a.jpg"}
    next(tmp_path.glob("parts/*")).write_bytes(b"PAR1")
    with pytest.raises(tfiseg.OutputError, match="Remove it to segment its images again"):
        ArchiveFolder(tmp_path, SETTINGS)


def test_command_line(photos, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["run", str(photos), "--ray", "--quality", "fast", "--out", out]
    assert main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["segmented"] == 11
    assert "1 of 12 images failed; completed results are kept" in captured.err
    (photos / "a" / "006.jpg").unlink()
    assert main(arguments) == 0
    assert "11 images: 0 segmented" in capsys.readouterr().out
    assert main(["run", str(tmp_path / "out"), "--ray", "--out", out]) == 1
    assert "there are no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-workers", "2"], "--ray-workers has no effect without --ray"),
        (["--ray", "--track"], "--track has no effect with --ray"),
        (["--ray", "--frames", "3"], "--frames has no effect with --ray"),
        (["--ray", "--policy", "all"], "--policy has no effect with --ray"),
    ],
)
def test_options_without_effect(options, message, tmp_path, capsys):
    assert main(["run", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err
