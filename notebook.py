"""HTML of instances for notebooks: an image of the masks and a table."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

HTML_ROWS = 20  # of the table
_IMAGE_PX = 320  # longer side


def html_of(
    title: str,
    colors: NDArray[np.uint8],
    label_map: NDArray[np.int32],
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> str:
    """Return self-contained HTML in which all texts are escaped.

    Args:
        colors: uint8 (n + 1, 3) BGR, by number in the label map.
        label_map: int32 (H, W), 0..n.
    """
    image = ""
    if label_map.size:
        step = -(-max(label_map.shape) // _IMAGE_PX)
        small = np.ascontiguousarray(colors[label_map[::step, ::step]])
        png = base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()
        image = f'<img src="data:image/png;base64,{png}">'
    remaining = len(colors) - 1 - len(rows)
    table = _row("th", heads) + "".join(_row("td", row) for row in rows)
    more = f"<p>and {remaining} more</p>" if remaining else ""
    return f"<p>{_escape(title)}</p>{image}<table>{table}</table>{more}"


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _escape(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())  # lone surrogates cannot be encoded
