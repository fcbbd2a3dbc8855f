"""Draw the architecture page's figure: `python docs/images/architecture.py` writes architecture.svg."""

from pathlib import Path

BOX = 'rx="8" fill="{fill}" stroke="#00695c"'
PALE, FULL, WARM = "#e0f2f1", "#b2dfdb", "#fff3e0"
COLUMNS, ROWS, WIDTH, HEIGHT = (20, 355, 690), (20, 170, 320, 470), 250, 92
BOXES = (  # column, row, title, lines, fill
    (0, 0, "runtime/sources/", ("files, cameras, streams", "-> Frame"), PALE),
    (1, 0, "runtime/pipeline/", ("threads, slots, tracker,", "stage times"), PALE),
    (2, 0, "runtime/output/", ("files, recordings,", "web viewer"), PALE),
    (0, 1, "runtime/networks/", ("ONNX Runtime, TensorRT:", "frame -> logits, heads"), PALE),
    (1, 1, "runtime/segmenter.py", ("quality and settings,", "CPU route and GPU route"), FULL),
    (2, 1, "runtime/refine/", ("instance network in views,", "joins, mask refinement"), PALE),
    (0, 2, "export/", ("any network -> NAME.onnx", "-> NAME.engine; training"), WARM),
    (1, 2, "plugins/", ("operator.py -> csrc/tfiseg.h:", "logits -> label map"), FULL),
    (2, 2, "runtime/gpu/", ("operator and views on the", "device, CUDA graphs"), PALE),
    (0, 3, "calibration/", ("int8: ranges, rounding,", "accuracy check"), WARM),
    (1, 3, "instances.py, drawing.py", ("Instances: plain data,", "COCO, overlay"), PALE),
)
ARROWS = (  # from, to, label
    ((270, 66), (355, 66), "frame"),
    ((605, 66), (690, 66), "results"),
    ((440, 112), (440, 170), "frame"),
    ((520, 170), (520, 112), "instances"),
    ((355, 206), (270, 206), "frame"),
    ((270, 232), (355, 320), "logits"),
    ((480, 320), (480, 262), "instances"),
    ((605, 204), (690, 204), "regions"),
    ((690, 230), (605, 230), "parts"),
    ((145, 320), (145, 262), "model files"),
    ((605, 366), (690, 366), "on a GPU"),
    ((145, 470), (145, 412), "int8 graph"),
    ((480, 412), (480, 470), "table"),
)


def text(x: float, y: float, words: str, size: int, weight: str = "normal", anchor: str = "middle") -> str:
    """Return an SVG text element."""
    words = words.replace("->", "&#8594;")
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


parts = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 582" font-family="sans-serif" fill="#212121">',
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#004d40"/></marker></defs>',
    '<rect width="960" height="582" fill="#ffffff"/>',
]
for column, row, title, lines, fill in BOXES:
    x, y = COLUMNS[column], ROWS[row]
    parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" {BOX.format(fill=fill)}/>')
    parts.append(text(x + WIDTH / 2, y + 28, title, 17, "bold"))
    parts += [text(x + WIDTH / 2, y + 52 + 20 * k, line, 14) for k, line in enumerate(lines)]
for (x0, y0), (x1, y1), label in ARROWS:
    parts.append(
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" '
        'stroke="#004d40" stroke-width="2" marker-end="url(#tip)"/>'
    )
    if label:
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        vertical = x1 == x0
        parts.append(
            text(middle_x + 8, middle_y + 4, label, 13, anchor="start")
            if vertical
            else text(middle_x + (30 if y0 != y1 else 0), middle_y - (4 if y0 != y1 else 7), label, 13)
        )
Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>", ""]))
