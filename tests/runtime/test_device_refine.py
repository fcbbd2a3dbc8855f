"""Components looked at on an emulated GPU (emulated_gpu.py), in one graph with the network: what the CPU finds in the same views."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.instance_session import DEFAULT_INSTANCE_MODEL, InstanceSession
from tfiseg.runtime.sessions import DEFAULT_MODEL

sys.path.insert(0, str(Path(__file__).parent))
import emulated_gpu
from test_engine_session import engine_of, gpu, picture, same  # noqa: F401


def instance_engine(folder):
    return engine_of(DEFAULT_INSTANCE_MODEL, folder, "instance.engine")


@pytest.fixture
def people(shared):
    return [cv2.imread(str(path)) for path in sorted((shared / "data" / "eval" / "pennfudan" / "images").iterdir())[:4]]


def panoptic_quality(found, expected):
    """How alike two results are: matched at an IoU over 0.5."""
    total, matched = 0.0, 0
    for i in range(len(expected)):
        mask = expected.mask(i)
        numbers, counts = np.unique(found.label_map[mask], return_counts=True)
        for number, count in zip(numbers, counts, strict=True):
            iou = 0 if not number else count / (mask.sum() + found.area[number - 1] - count)
            if iou > 0.5:
                total, matched = total + iou, matched + 1
    return total / max(1, matched + (len(found) - matched + len(expected) - matched) / 2)


@pytest.mark.shared
def test_it_finds_what_the_cpu_finds(gpu, monkeypatch, tmp_path, people):  # noqa: F811
    emulated_gpu.install(monkeypatch, gpu)
    on_gpu = tfiseg.Segmenter(
        engine_of(DEFAULT_MODEL, tmp_path), refine="components", instance_model=instance_engine(tmp_path), outlines=False
    )
    on_cpu = tfiseg.Segmenter(DEFAULT_MODEL, refine="components", outlines=False, threads=1)
    shape = tfiseg.Segmenter(DEFAULT_MODEL, threads=1)
    unlike_shape = 0
    for image in people:
        image = cv2.resize(image, (320, 256), interpolation=cv2.INTER_AREA)
        found = [on_gpu(image) for _ in range(3)]
        for again in found[1:]:
            same(again, found[0])
        expected = on_cpu(image)
        assert panoptic_quality(found[0], expected) > 0.97
        unlike_shape += panoptic_quality(found[0], shape(image)) < 0.9
    assert unlike_shape
    assert gpu.launches >= 4
