"""Files that are written atomically."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tfiseg.errors import InputError
from tfiseg.files import FolderLock, new_folder, overwrite, whole_file, write_whole


def test_concurrent_writes_leave_one_complete_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: write_whole(tmp_path / "cache", bytes([k]) * 100_000), range(200)))
    content = (tmp_path / "cache").read_bytes()
    assert content == content[:1] * 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def write_half(path):
    with whole_file(path) as part:
        part.write_bytes(b"half of the ne")
        raise RuntimeError


def test_failed_block_keeps_the_old_file(tmp_path):
    write_whole(tmp_path / "model", b"old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "model")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model", b"old")]


def test_folder_lock_excludes_others_and_nests(tmp_path):
    lock = FolderLock(tmp_path)
    with lock, lock:
        with pytest.raises(InputError, match="another run writes to"), FolderLock(tmp_path):
            pass
        code = "import sys; from pathlib import Path; from tfiseg.files import FolderLock\n"
        code += "FolderLock(Path(sys.argv[1])).__enter__()"
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert "another run writes to" in done.stderr
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_new_folders_are_unique(tmp_path):
    assert [new_folder(tmp_path, "2026").name for _ in range(3)] == ["2026", "2026-2", "2026-3"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        new_folder(tmp_path / "file", "x")


def test_file_is_overwritten_if_a_second_copy_does_not_fit(tmp_path, monkeypatch):
    path = tmp_path / "a"
    overwrite(path, b"first, and longer")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tfiseg.files.write_whole", full)
    overwrite(path, b"second")
    assert path.read_bytes() == b"second"
    with pytest.raises(OSError, match="No space left"):
        overwrite(tmp_path / "new", b"")
