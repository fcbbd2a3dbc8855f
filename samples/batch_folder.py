"""Write the label maps of a folder of images: `python samples/batch_folder.py photos/ masks/`.

For each image NAME, this writes masks/NAME.png (16 bits, 0 = none, 1..n = instances) and a line in
masks/instances.jsonl. The second image of a name, such as NAME.png beside NAME.jpg, becomes NAME-2.
"""

import json
import os
import sys
from pathlib import Path

import tfiseg


def unique_name(name: str, names: set[str]) -> str:
    """Return the name, or NAME-2, NAME-3, ... if it is taken, and add it to the names."""
    unique, count = name, 1
    while unique in names:
        count += 1
        unique = f"{name}-{count}"
    names.add(unique)
    return unique


if len(sys.argv) != 3:
    sys.exit("usage: python samples/batch_folder.py IMAGES MASKS")
out = Path(sys.argv[2])
if out.resolve() == Path(sys.argv[1]).resolve():
    sys.exit("the masks would replace the images: name another folder")
out.mkdir(parents=True, exist_ok=True)
# several images in parallel with one thread each are faster than all threads on one image
cores = min(8, os.cpu_count() or 1)
segmenter = tfiseg.Segmenter(refine="components", threads=1)
names: set[str] = set()
try:
    with (
        tfiseg.Pipeline(sys.argv[1], segmenter, workers=cores) as pipeline,
        open(out / "instances.jsonl", "w") as lines,
    ):
        for result in pipeline:
            instances = result.instances
            name = unique_name(result.frame.name, names)
            instances.save(out / f"{name}.png")
            rows = [
                {"number": i.number, "class_name": i.class_name, "score": round(i.score, 3), "area": i.area}
                for i in instances
            ]
            line = {"name": name, "file_name": result.frame.file_name, "instances": rows}
            lines.write(json.dumps(line) + "\n")
except tfiseg.TfisegError as error:
    sys.exit(str(error))
print(f"{pipeline.stats()['given']} images in {out}")
if pipeline.source.unreadable:
    sys.exit(f"{len(pipeline.source.unreadable)} images can't be read: {pipeline.source.unreadable[0]}")
