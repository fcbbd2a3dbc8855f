"""Files that are written whole or not at all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tfiseg.files import whole_file, write_whole


def test_threads_that_write_one_file_leave_one_whole(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: write_whole(tmp_path / "cache", bytes([k]) * 100_000), range(200)))
    content = (tmp_path / "cache").read_bytes()
    assert content == content[:1] * 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def write_half(path):
    with whole_file(path) as part:
        part.write_bytes(b"half of the ne")
        raise RuntimeError


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "model", b"old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "model")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model", b"old")]
