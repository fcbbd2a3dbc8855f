"""Put a Segmenter into a Ray Data pipeline of your own: `python samples/ray_batch.py photos/ objects/`.

One row per picture becomes one row per object, written as Parquet: path, class, score, box and mask. On a
cluster, start it with `ray job submit`; each machine must see the pictures under the same paths.

`tfiseg run photos/ --ray` is the finished program. It also skips what is done, collects errors, writes COCO
JSON.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import ray
import tfiseg

COLUMNS = ("path", "class", "score", "box_xyxy", "height", "width", "rle", "error")


class FindObjects:
    """Each worker of Ray makes one of these, and with it one network."""

    def __init__(self) -> None:
        # as many workers as cores with one thread each are faster than all threads on one picture
        self.segmenter = tfiseg.Segmenter(threads=1)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            found = self.segmenter(row["path"])
        except tfiseg.InputError as error:  # a damaged picture must not end the job
            return [dict.fromkeys(COLUMNS) | {"path": row["path"], "error": str(error)}]
        return [
            {
                "error": None,
                "path": row["path"],
                "class": one.class_name,
                "score": one.score,
                "box_xyxy": list(one.box_xyxy),
                "height": found.size_hw[0],
                "width": found.size_hw[1],
                "rle": found.rle(one.index)["counts"],
            }
            for one in found
        ]


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python samples/ray_batch.py PHOTOS OBJECTS")
    photos, objects = Path(sys.argv[1]), Path(sys.argv[2]).absolute()
    paths = [str(path.absolute()) for path in sorted(photos.rglob("*.jp*g"))]
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    workers = int(ray.cluster_resources()["CPU"])
    pictures = ray.data.from_items(
        [{"path": path} for path in paths], override_num_blocks=min(len(paths), 8 * workers)
    )
    pool = ray.data.ActorPoolStrategy(size=workers)
    pictures.flat_map(FindObjects, compute=pool, num_cpus=1).write_parquet(str(objects))
    found = ray.data.read_parquet(str(objects)).filter(lambda row: row["rle"] is not None).count()
    print(f"{len(paths)} pictures, {found} objects in {objects}")


if __name__ == "__main__":
    main()
