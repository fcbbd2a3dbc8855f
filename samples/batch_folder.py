"""Write the label maps of a folder of images: `python samples/batch_folder.py photos/ masks/`.

For each image NAME, this writes masks/NAME.png (16 bits, 0 = none, 1..n = instances) and a line in
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
# several images in parallel with one thread each are faster than all threads on one image
cores = min(8, os.cpu_count() or 1)
segmenter = tfiseg.Segmenter(refine="components", threads=1)
try:
    with (
        tfiseg.Pipeline(sys.argv[1], segmenter, workers=cores) as pipeline,
        open(out / "instances.jsonl", "w") as lines,
    ):
        for result in pipeline:
            instances = result.instances
            cv2.imwrite(str(out / f"{result.frame.name}.png"), instances.label_map.astype(np.uint16))
            rows = [
                {"number": i.number, "class": i.class_name, "score": round(i.score, 3), "area": i.area}
                for i in instances
            ]
            lines.write(json.dumps({"name": result.frame.name, "instances": rows}) + "\n")
except tfiseg.TfisegError as error:
    sys.exit(str(error))
print(f"{pipeline.stats()['given']} images in {out}")
