"""Label maps of a folder of pictures, as fast as this machine can: `python samples/batch_folder.py photos/
masks/`.

For each picture NAME: masks/NAME.png (16 bit, 0 = nothing, 1..n = instances) and a line of
masks/instances.jsonl.
"""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import tfiseg

if len(sys.argv) != 3:
    sys.exit("usage: python samples/batch_folder.py PICTURES MASKS")
out = Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
cores = min(
    8, os.cpu_count() or 1
)  # whole pictures at once, one thread each, are faster than all threads on one
segmenter = tfiseg.Segmenter(refine="components", threads=1)
try:
    with (
        tfiseg.Pipeline(sys.argv[1], segmenter, workers=cores) as pipeline,
        open(out / "instances.jsonl", "w") as lines,
    ):
        for result in pipeline:
            found = result.instances
            cv2.imwrite(str(out / f"{result.frame.name}.png"), found.label_map.astype(np.uint16))
            rows = [
                {"number": i.number, "class": i.class_name, "score": round(i.score, 3), "area": i.area}
                for i in found
            ]
            lines.write(json.dumps({"name": result.frame.name, "instances": rows}) + "\n")
except tfiseg.TfisegError as wrong:
    sys.exit(str(wrong))
print(f"{pipeline.stats()['given']} pictures in {out}")
