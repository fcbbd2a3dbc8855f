"""Use a Segmenter in your own Ray Data pipeline: `python samples/ray_batch.py photos/ objects/`.

It converts one row per picture to one row per object, written as Parquet: path, class, score, box and mask.
On a cluster, start it with `ray job submit`; each machine must find the pictures under the same paths.

`tfiseg run photos/ --ray` is the complete program. It also continues interrupted runs, collects errors and
writes COCO JSON.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import ray
import tfiseg

COLUMNS = ("path", "class_name", "score", "box_xyxy", "height", "width", "rle", "error")


class ObjectFinder:
    """An actor with its own network; Ray creates one per worker."""

    def __init__(self) -> None:
        # one worker per core with one thread each is faster than all threads on one picture
        self.segmenter = tfiseg.Segmenter(threads=1)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            instances = self.segmenter(row["path"])
        except tfiseg.InputError as error:  # a damaged picture must not end the job
            return [dict.fromkeys(COLUMNS) | {"path": row["path"], "error": str(error)}]
        return [
            {
                "error": None,
                "path": row["path"],
                "class_name": i.class_name,
                "score": i.score,
                "box_xyxy": list(i.box_xyxy),
                "height": instances.size_hw[0],
                "width": instances.size_hw[1],
                "rle": instances.rle(i.index)["counts"],
            }
            for i in instances
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
    pictures.flat_map(ObjectFinder, compute=pool, num_cpus=1).write_parquet(str(objects))
    count = ray.data.read_parquet(str(objects)).filter(lambda row: row["rle"] is not None).count()
    print(f"{len(paths)} images, {count} objects in {objects}")


if __name__ == "__main__":
    main()
