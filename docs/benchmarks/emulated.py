"""Measure panoptic quality of components refined in a GPU graph (emulated) and on the CPU.

    python docs/benchmarks/emulated.py [--masks] DATA/eval/SET ...

The graphs run on the emulated GPU of the tests. Prints JSON. An image takes about a second, with masks two,
because each graph always computes 16 views.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pytest
import tfiseg
from tfiseg.runtime.evaluate.evaluate import evaluate
from tfiseg.runtime.networks import engine_file
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.session import DEFAULT_MODEL

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "runtime"))
import emulated_gpu
from emulated_engines import MACHINE, engine_of

COLUMNS = ("set", "PQ", "true_positives", "false_positives", "false_negatives", "AP", "AP50")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--masks", action="store_true", help="refine masks, too")
    args = parser.parse_args()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(engine_file, "this_machine", lambda: MACHINE)
        emulated_gpu.install(patch, emulated_gpu.Gpu(), profile=((16, 16), (480, 640), (4096, 4096)))
        instance_model = engine_of(DEFAULT_INSTANCE_MODEL, Path(folder), "instance.engine")
        segmenters = {
            "graph": tfiseg.Segmenter(
                engine_of(DEFAULT_MODEL, Path(folder)),
                refine="components",
                instance_model=instance_model,
                outlines=args.masks,
            ),
            "CPU": tfiseg.Segmenter(refine="components", outlines=args.masks),
        }
        for path in args.sets:
            for way, segmenter in segmenters.items():
                report = evaluate(path, "model", segmenter)
                print(json.dumps({"way": way, **{name: report[name] for name in COLUMNS}}), flush=True)


if __name__ == "__main__":
    main()
