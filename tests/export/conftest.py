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
