import cv2
import pytest
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """A folder of 20 frames of the synthetic camera."""
    folder = tmp_path_factory.mktemp("frames")
    camera = SyntheticCamera()
    for k in range(20):
        cv2.imwrite(str(folder / f"{k:02}.png"), camera._read(25 * k).image)
    return folder


@pytest.fixture
def short_fits(monkeypatch):
    """Fit rules in 50 steps instead of 4,000: heads that were trained for 4 steps teach them nothing more."""
    from tfiseg.export.instance import rule_fitting  # needs torch

    monkeypatch.setattr(rule_fitting, "_STEPS", 50)
