"""Test the refinement and the input size of each quality, and the options that override them."""

import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.runtime.segmenter_settings import BEST_LONG_SIDE_PX, SegmenterSettings
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.mark.parametrize(
    ("options", "refine", "long_side_px"),
    [
        ({}, "frame", None),
        ({"quality": "fast"}, "shape", None),
        ({"quality": "best"}, "components", BEST_LONG_SIDE_PX),
        ({"quality": "best", "model": "own.onnx"}, "components", None),
        ({"quality": "best", "refine": "frame"}, "frame", BEST_LONG_SIDE_PX),
        ({"quality": "fast", "refine": "components"}, "components", None),
        ({"flip": True}, "components", None),
        ({"flip": True, "quality": "fast"}, "shape", None),
        ({"long_side_px": 448}, "frame", 448),
    ],
)
def test_settings_of_each_quality(options, refine, long_side_px):
    settings = SegmenterSettings(**options)
    assert settings.wanted_refine == refine
    assert settings.input_long_side_px == long_side_px


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "superb"}, "quality must be one of 'fast', 'balanced', 'best', got 'superb'"),
        ({"refine": "magic"}, "refine must be one of"),
        ({"min_score": 30}, r"min_score must lie in 0\.\.1, got 30"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"threads": 100_000}, "threads must be at least 1 .*, at most 1024, got 100000"),
        ({"long_side_px": 10}, r"long_side_px must lie in 64\.\.4096, got 10"),
        ({"max_views": 4}, "max_views has no effect without"),
        ({"instance_model": "m.onnx"}, "instance_model has no effect without"),
        ({"refine": "frame", "flip": True}, "have no average"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(tfiseg.InputError, match=message):
        SegmenterSettings(**options)


def test_each_quality_segments():
    image = SyntheticCamera()._read(30).image
    found = {}
    for quality in ("fast", "balanced", "best"):
        with tfiseg.Segmenter(quality=quality, threads=1) as segmenter:
            found[quality] = segmenter(image)
            assert segmenter.session.has("affinity") == (quality == "balanced")
    assert all(len(instances) for instances in found.values())
    by_shape = tfiseg.Segmenter(PLAIN_MODEL, threads=1)(image)  # it has no heads
    assert np.array_equal(found["fast"].label_map, by_shape.label_map)


def test_a_model_without_heads_is_separated_by_shape():
    assert tfiseg.Segmenter(PLAIN_MODEL).refine == "shape"
    with pytest.raises(tfiseg.ModelError, match="has no instance heads"):
        tfiseg.Segmenter(PLAIN_MODEL, refine="frame")
