"""What notebooks show of instances: a picture of the masks, and a table."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

HTML_ROWS = 20  # of the table
_PICTURE_PX = 320  # longer side


def html_of(
    title: str,
    colours: NDArray[np.uint8],
    label_map: NDArray[np.int32],
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> str:
    """Return HTML that needs no other file; every text is escaped.

    Args:
        title: one line.
        colours: uint8 (n + 1, 3) BGR, by number in the label map.
        label_map: int32 (H, W), 0..n.
        heads: titles of the table's columns.
        rows: the first of n rows.
    """
    picture = ""
    if label_map.size:
        step = -(-max(label_map.shape) // _PICTURE_PX)
        small = np.ascontiguousarray(colours[label_map[::step, ::step]])
        png = base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()
        picture = f'<img src="data:image/png;base64,{png}">'
    left = len(colours) - 1 - len(rows)
    table = _row("th", heads) + "".join(_row("td", row) for row in rows)
    more = f"<p>and {left} more</p>" if left else ""
    return f"<p>{_escaped(title)}</p>{picture}<table>{table}</table>{more}"


def _row(kind: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{kind}>{_escaped(str(cell))}</{kind}>" for cell in cells) + "</tr>"


def _escaped(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())  # a lone surrogate can't be sent anywhere
