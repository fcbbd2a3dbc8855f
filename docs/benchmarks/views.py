"""Measure the operator with different evidence: `python docs/benchmarks/views.py SET`.

The operator clusters views of a set's components, eight per call, on one thread. Times are medians of 7.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import tfiseg
from tfiseg.plugins.operator import cluster_batch
from tfiseg.plugins.settings import SHARPEN, ClusterSettings
from tfiseg.runtime.evaluate.evaluation_set import load_eval_set
from tfiseg.runtime.refine.view_planning import plan_and_render_views

VIEWS, BATCH = 120, 8

refiner = tfiseg.Refiner()
own, affinity, boundary = [], [], []
for picture in load_eval_set(Path(sys.argv[1]))[0]:
    planned, rendered = plan_and_render_views(
        picture.image, tfiseg.cluster(picture.semantic, split=0.0), refiner.session.view_px
    )
    kept = [k for k, p in enumerate(planned) if p.component]
    if kept:
        maps = refiner.session.infer(rendered.images, rendered.masks)
        own.append(rendered.own[kept])
        affinity.append(maps.affinity[kept])
        boundary.append(maps.boundary[kept, 0])
    if sum(map(len, own)) >= VIEWS:
        break
own, affinity, boundary = (np.concatenate(a)[:VIEWS] for a in (own, affinity, boundary))
evidence = {
    "affinity": affinity,
    "boundary": boundary,
    "affinity_offsets": refiner.session.affinity_offsets,
    "merge_rule": refiner.session.rules["merge"],
}
sharpened = {**evidence, "sharpen": SHARPEN}
modes = {
    "shape": {},
    "evidence": evidence,
    "evidence, sharpened": sharpened,
    "evidence, propagation, second pass": {**sharpened, "part_rule": refiner.session.rules["part"]},
}
settings = {
    name: ClusterSettings(
        min_area=0, **{key: value for key, value in options.items() if key not in ("affinity", "boundary")}
    )
    for name, options in modes.items()
}
ms = {name: [] for name in modes}
for _ in range(7):
    for name, options in modes.items():
        began = time.perf_counter()
        for start in range(0, len(own), BATCH):
            batch = slice(start, start + BATCH)
            evidence = {key: options[key][batch] for key in ("affinity", "boundary") if key in options}
            cluster_batch(own[batch], **evidence, settings=settings[name], threads=1)
        ms[name].append((time.perf_counter() - began) * 1e3 / len(own))
for name, times in ms.items():
    print(
        f"{name}: {statistics.median(times):.3f} ms per view, "
        f"{statistics.median(times) / statistics.median(ms['shape']):.2f} of shape alone"
    )
