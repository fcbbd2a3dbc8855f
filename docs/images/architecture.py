"""Draw the architecture page's figure: `python docs/images/architecture.py` writes architecture.svg."""

from pathlib import Path

BOX = 'rx="8" fill="{fill}" stroke="#00695c"'
ROOMS = (  # x, y, width, height, title, lines, fill
    (20, 20, 250, 92, "runtime/sources/", ("files, cameras, streams", "open_source.py -> Frame"), "#e0f2f1"),
    (355, 20, 250, 92, "runtime/segmenter.py", ("quality, settings,", "CPU route and GPU route"), "#b2dfdb"),
    (690, 20, 250, 92, "instances.py, drawing.py", ("Instances: plain data", "draw, RLE, COCO"), "#e0f2f1"),
    (20, 170, 250, 92, "runtime/networks/", ("ONNX Runtime, TensorRT:", "frame -> logits, heads"), "#e0f2f1"),
    (355, 170, 250, 92, "plugins/", ("operator.py -> csrc/tfiseg.h", "logits -> label map, table"), "#b2dfdb"),
    (690, 170, 250, 92, "runtime/refine/", ("instance network in views,", "joins, mask refinement"), "#e0f2f1"),
    (20, 320, 250, 92, "runtime/gpu/", ("CUDA graphs, memory,", "operator on the device"), "#e0f2f1"),
    (355, 320, 250, 92, "runtime/pipeline/", ("threads, slots, tracker,", "stage times"), "#e0f2f1"),
    (690, 320, 250, 92, "runtime/output/", ("run, web viewer, MP4,", "MCAP, COCO"), "#e0f2f1"),
    (20, 470, 440, 74, "export/  (before run time)", ("any network -> NAME.onnx -> NAME.engine; training",), "#fff3e0"),
    (500, 470, 440, 74, "calibration/", ("ranges, rounding, Q/DQ pairs, accuracy check",), "#fff3e0"),
)
ARROWS = (  # from, to, label
    ((270, 66), (355, 66), "frame"),
    ((605, 66), (690, 66), ""),
    ((400, 112), (230, 170), "frame"),
    ((270, 216), (355, 216), "logits"),
    ((480, 170), (480, 112), "instances"),
    ((605, 216), (690, 216), "regions"),
    ((740, 170), (590, 112), "parts"),
    ((145, 262), (145, 320), ""),
    ((355, 350), (270, 350), ""),
    ((605, 366), (690, 366), "results"),
    ((240, 470), (100, 262), "model files"),
    ((500, 507), (460, 507), ""),
)


def text(x: float, y: float, words: str, size: int, weight: str = "normal", anchor: str = "middle") -> str:
    words = words.replace("->", "&#8594;")
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>'


parts = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 564" font-family="sans-serif" fill="#212121">',
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#004d40"/></marker></defs>',
    '<rect width="960" height="564" fill="#ffffff"/>',
]
for x, y, width, height, title, lines, fill in ROOMS:
    parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {BOX.format(fill=fill)}/>')
    parts.append(text(x + width / 2, y + 28, title, 17, "bold"))
    parts += [text(x + width / 2, y + 52 + 20 * k, line, 14) for k, line in enumerate(lines)]
for (x0, y0), (x1, y1), label in ARROWS:
    parts.append(
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#004d40" stroke-width="2" marker-end="url(#tip)"/>'
    )
    if label:
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        vertical = abs(x1 - x0) < abs(y1 - y0)
        parts.append(
            text(middle_x + 8, middle_y + 4, label, 13, anchor="start")
            if vertical
            else text(middle_x, middle_y - 9, label, 13)
        )
Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>", ""]))
