"""Write label maps of a folder of images: `python samples/batch_folder.py photos/ masks/`.

Each image NAME gets masks/NAME.png (16 bit, 0 = nothing, 1..n = instances) and a line in
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
    sys.exit("usage: python samples/batch_folder.py IMAGES MASKS")
out = Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
# several images at once with one thread each are faster than all threads on one image
cores = min(8, os.cpu_count() or 1)
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
print(f"{pipeline.stats()['given']} images in {out}")
