"""Strict JSON and rules: damaged content raises one error that names the place."""

import math
import os
import pickle

import pytest
import tfiseg
from tfiseg.errors import FormatError, InputError, PipelineError, SourceError
from tfiseg.schema import (
    boolean,
    either,
    list_of,
    map_of,
    number,
    only,
    optional,
    parse,
    read_file,
    record,
    text,
    to_json,
    whole,
)

CAMERA = record(
    {"name": text(8), "size_wh": list_of(whole(1, 8192), 2, 2)},
    {
        "fps": number(0, 1000),
        "live": boolean,
        "gain": optional(number(0, 1)),
        "inner": record({"a": whole(0, 9)}),
    },
)


def test_valid_content_is_returned_with_unknown_keys():
    assert parse(b'{"name": "c", "size_wh": [640, 480], "fps": 30, "new": [1]}', CAMERA) == {
        "name": "c",
        "size_wh": [640, 480],
        "fps": 30.0,
        "new": [1],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        ("[]", "it must be an object"),
        ("[" * 100_000, "nested more than"),
        ('{"a": ' * 30 + "1" + "}" * 30, "nested more than"),
        ('{"name": 9' + "9" * 5000 + "}", "no JSON"),
        ('{"name": NaN}', "NaN is no number"),
        ('{"name": -Infinity}', "-Infinity is no number"),
        ('{"name": 1e999}', "too large"),
        ('{"name": "a", "name": "b"}', "same key twice"),
        (r'{"name": "\ud800"}', "no valid text"),
        (r'{"\ud800": 1}', "no valid text"),
        ("{}", "name, size_wh missing"),
        ('{"name": null, "size_wh": [1, 1], "inner": {}}', "name, inner.a missing"),
        ('{"name": "123456789", "size_wh": [1, 1]}', "name must be text of at most 8"),
        (r'{"name": "\u001b[31m", "size_wh": [1, 1]}', "without control characters"),
        (r'{"name": "a\n", "size_wh": [1, 1]}', "without control characters"),
        ('{"name": "c", "size_wh": [1]}', "size_wh must be a list of 2 items, got '1 items'"),
        ('{"name": "c", "size_wh": [1, 0]}', r"size_wh\[1\] must be an integer in 1..8192, got 0"),
        ('{"name": "c", "size_wh": [1, true]}', "must be an integer"),
        ('{"name": "c", "size_wh": [1, 1.0]}', "must be an integer"),
        ('{"name": "c", "size_wh": [1, 1], "fps": "x"}', "fps must be a number in 0..1000"),
        ('{"name": "c", "size_wh": [1, 1], "live": 1}', "live must be true or false"),
        ('{"name": "c", "size_wh": [1, 1], "gain": 2}', "gain must be a number"),
    ],
)
def test_invalid_content_raises_one_error(content, message):
    with pytest.raises(FormatError, match=message) as wrong:
        parse(content, CAMERA)
    assert isinstance(wrong.value, InputError)
    assert len(str(wrong.value)) < 300


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (only("auto", 1), ["auto", 1], ["other", 1.0, True, None]),
        (number(0, 1, above=True), [1, 0.5], [0, 2, True, math.nan]),
        (either("a word or a number", text(4), whole(0, 3)), ["word", 3], ["words", 4, []]),
        (
            map_of(whole(0, 3), text(2, "[a-z]+"), 2),
            [{}, {"ab": 1}],
            [{"A": 1}, {"a": 9}, {"a": 1, "b": 1, "c": 1}],
        ),
    ],
)
def test_rules(rule, good, bad):
    for value in good:
        assert rule(value, "here") == value
    for value in bad:
        with pytest.raises(FormatError, match="here"):
            rule(value, "here")


def test_only_regular_files_of_a_limited_size_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_file(path, record({"a": whole(0, 1)})) == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for other in (
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "loop",
        tmp_path / "none",
        tmp_path.parent / "a\0b",
    ):
        with pytest.raises(FormatError, match=r"it is no file|can't be read"):
            read_file(other, record({}))
    if os.path.exists("/dev/zero"):
        (tmp_path / "zero").symlink_to("/dev/zero")
        with pytest.raises(FormatError, match="it is no file"):
            read_file(tmp_path / "zero", record({}))
    with pytest.raises(FormatError, match="longer than 4 bytes"):
        read_file(path, record({}), max_bytes=4)


def test_json_is_written_without_nan():
    assert (
        to_json({"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}})
        == '{"a": [null, [1.5, null]], "b": {"c": null}}'
    )


@pytest.mark.parametrize(
    "error",
    [
        PipelineError("segment", InputError("bad")),
        PipelineError("write", OSError(28, "No space left")),
        SourceError("gone"),
        tfiseg.ModelError("no model"),
        FormatError("no JSON"),
    ],
)
def test_errors_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert getattr(again, "stage", None) == getattr(error, "stage", None)


def test_error_about_missing_keys_can_be_pickled():
    with pytest.raises(FormatError) as wrong:
        parse("{}", CAMERA)
    assert str(pickle.loads(pickle.dumps(wrong.value))) == str(wrong.value)
