"""Conversion of ``Instances`` to types of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas
    import supervision

    from .instances import Instances


def data_frame_of(instances: Instances) -> pandas.DataFrame:
    """Return one row per instance, see ``Instances.to_pandas``."""
    try:
        import pandas
    except ImportError as missing:
        raise MissingDependencyError("to_pandas() needs the package pandas: pip install pandas") from missing
    columns: dict[str, Any] = {
        "class_id": instances.class_id,
        "class_name": instances.names,
        "score": instances.score,
        **dict(zip(("x0", "y0", "x1", "y1"), instances.box_xyxy.T, strict=True)),
        "area": instances.area,
        **dict(zip(("cx", "cy"), instances.centroid_xy.T, strict=True)),
    }
    for name in ("track_id", "distance_m"):
        if getattr(instances, name) is not None:
            columns[name] = getattr(instances, name)
    return pandas.DataFrame(columns)


def detections_of(instances: Instances) -> supervision.Detections:
    """Return detections with dense masks, see ``Instances.to_supervision``."""
    try:
        import supervision
    except ImportError as missing:
        raise MissingDependencyError(
            "to_supervision() needs the package supervision: pip install supervision"
        ) from missing
    return supervision.Detections(
        xyxy=instances.box_xyxy.copy(),
        mask=instances.masks(),
        confidence=instances.score.copy(),
        class_id=instances.class_id.astype(int),
        data={"class_name": np.array(instances.names, str)},
        tracker_id=None if instances.track_id is None else instances.track_id.astype(int),
    )
