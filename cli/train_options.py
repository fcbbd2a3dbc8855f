"""Options of ``tfiseg train``, one function per kind of network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .common import add_verb
from .parser import Example, Parser, existing_file, existing_folder, existing_network, integer, number, path

IMAGENET, NONE = "imagenet", "none"
_NEEDS = "torch and time"
_DATA = "--images photos/ --semantic class-maps/"


def add_semantic(kinds: Any, handler: Any) -> None:
    verb = add_verb(
        kinds,
        "semantic",
        "Train a semantic network from images and class maps.",
        handler,
        [
            Example(f"tfiseg train semantic {_DATA}", "to semantic.ckpt", needs=_NEEDS),
            Example(
                f"tfiseg train semantic {_DATA} --class-names background,pallet,person",
                "your own classes",
                needs=_NEEDS,
            ),
            Example(
                "tfiseg export semantic.ckpt -o mine.onnx --photos photos/",
                "as a model",
                needs="semantic.ckpt",
            ),
        ],
    )
    _add_data(verb)
    _add_more_data(verb)
    verb.source.add_argument(
        "--class-names NAMES",
        help="names of all classes in order of their IDs, background first: separated by commas, a file "
        "with one name per line, or a list of `tfiseg export` (default: voc21)",
    )
    _add_run(verb, "semantic.ckpt", 3600, "crops")
    verb.quality.add_argument(
        "--backbone",
        choices=("lite0", "lite2", "mobilenetv2"),
        default="lite0",
        help="EfficientNet-Lite0, the larger Lite2, which takes about twice the time, or MobileNetV2 with "
        "DeepLab's weights, which --start must name (default: lite0)",
    )
    verb.expert.add_argument(
        "--start FILE",
        type=existing_file,
        help="initial weights: a checkpoint or state dict; with --backbone mobilenetv2 also a DeepLab v3 "
        "with MobileNetV2 as ONNX (default: ImageNet weights)",
    )
    verb.quality.add_argument(
        "--teacher NET.onnx",
        type=existing_network,
        help="network with the same classes for distillation, except where human labels differ; its class "
        "probabilities are stored next to the checkpoint",
    )
    _add_learning_rate(verb)


def add_instance(kinds: Any, handler: Any) -> None:
    verb = add_verb(
        kinds,
        "instance",
        "Train the instance network from images and class maps, without instance labels.",
        handler,
        [
            Example(
                f"tfiseg train instance {_DATA} -o mine.onnx", "from the weights of tfiseg", needs=_NEEDS
            ),
            Example(
                f"tfiseg train instance {_DATA} -o mine.onnx --steps 1500 --sheets check/",
                "shorter, with contact sheets of the training data",
                needs=_NEEDS,
            ),
        ],
    )
    _add_data(verb)
    _add_output(verb, "instance.onnx")
    _add_run(verb, "instance.ckpt", 3600, "composites")
    verb.source.add_argument(
        "--cutouts DIR",
        type=path,
        help="class maps of photos that show one object each, as `tfiseg train cutouts` writes them",
    )
    _add_instance_quality(verb.quality)
    _add_fit(verb, "bank, composites and dropped objects", 8000)
    verb.output.add_argument(
        "--licence TEXT", default="not stated", help="terms of use, for the model's metadata"
    )
    verb.expert.add_argument(
        "--start FILE",
        help=f'initial weights: a checkpoint, or "{IMAGENET}" '
        "(default: export/instance/tfiseg-instance.pt of the repository)",
    )
    verb.expert.add_argument(
        "--teacher M",
        help=f'an instance network that splits groups in the images; "{NONE}": single objects only '
        f"(default: the one that comes with tfiseg; none with --start {IMAGENET})",
    )
    _add_learning_rate(verb)


def _add_instance_quality(quality: Any) -> None:
    quality.add_argument(
        "--view-px N",
        type=integer(32),
        default=192,
        help="side of its views, a multiple of 32; larger views show more, and time grows with the square "
        "(default: 192)",
    )
    quality.add_argument(
        "--outline-steps N",
        type=integer(0),
        help="training steps for mask refinement (default: half of --steps; 0: the network refines no masks)",
    )
    quality.add_argument(
        "--min-area PX",
        type=integer(0),
        help="for small objects, e.g. nuclei: minimum area in pixels with this network (default: 0.1 %% of "
        "a frame, at least 25)",
    )


def add_cutouts(kinds: Any, handler: Any) -> None:
    verb = add_verb(
        kinds,
        "cutouts",
        "Make class maps for photos that show one object each, from the features of an ImageNet "
        "classifier. For `train instance --cutouts`.",
        handler,
        [Example("tfiseg train cutouts --images photos/ -o cutouts", needs="torch and the extra [train]")],
    )
    verb.source.add_argument("--images DIR", type=existing_folder, help="required: folder of photos")
    verb.source.add_argument(
        "--semantic DIR",
        type=existing_folder,
        help="class maps: photos in which they show an object are skipped",
    )
    _add_confidence(verb)
    verb.output.add_argument(
        "-o", "--output DIR", type=path, default=Path("cutouts"), help="(default: cutouts)"
    )


def add_frame(kinds: Any, handler: Any) -> None:
    verb = add_verb(
        kinds,
        "frame",
        "Train instance heads on a semantic network's own features, taught by the instance network, for "
        "--quality balanced: classes and instances in one pass.",
        handler,
        [Example(f"tfiseg train frame --model net.onnx {_DATA} -o heads.onnx", needs=_NEEDS)],
    )
    _add_model(verb)
    _add_data(verb)
    _add_more_data(verb)
    _add_output(verb, "frame.onnx")
    _add_run(verb, "frame.ckpt", 4000, "composites", 4)
    verb.expert.add_argument(
        "--instance-model M",
        type=path,
        help="the teacher (default: the instance network that comes with tfiseg)",
    )
    _add_fit(verb, "composites", 4000)


def add_score(kinds: Any, handler: Any) -> None:
    verb = add_verb(
        kinds,
        "score",
        "Calibrate a semantic network's scores: four numbers in its metadata give the probability that an "
        "instance is an object.",
        handler,
        [Example(f"tfiseg train score --model net.onnx {_DATA} -o scored.onnx", needs="torch and time")],
    )
    _add_model(verb)
    _add_data(verb)
    _add_more_data(verb)
    _add_output(verb, "scored.onnx")
    verb.quality.add_argument(
        "--refine",
        choices=("components", "frame"),
        help="how instances are found (default: by the model's instance heads, else components)",
    )
    verb.expert.add_argument(
        "--instance-model M",
        type=path,
        help="instance network that finds the true objects (default: the one that comes with tfiseg)",
    )
    _add_seed_and_threads(verb)


def _add_model(verb: Parser) -> None:
    verb.source.add_argument(
        "--model NET.onnx",
        type=existing_network,
        help="a model in tfiseg's format (default: the network that comes with tfiseg)",
    )


def _add_output(verb: Parser, default: str) -> None:
    verb.output.add_argument(
        "-o", "--output NAME.onnx", type=path, default=Path(default), help=f"(default: {default})"
    )


def _add_learning_rate(verb: Parser) -> None:
    verb.expert.add_argument(
        "--learning-rate X",
        type=number(0, above=True),
        default=2e-3,
        help="peak learning rate; use less to continue on the same images (default: 0.002)",
    )


def _add_fit(verb: Parser, sheets: str, composites: int) -> None:
    verb.expert.add_argument(
        "--rule-composites N",
        type=integer(1),
        default=composites,
        help=f"composites to fit the rules on (default: {composites})",
    )
    verb.output.add_argument("--sheets DIR", type=path, help=f"write contact sheets of {sheets} there")
    verb.expert.add_argument(
        "--workers N",
        type=integer(0),
        default=1,
        help="processes that make composites; 0: the main process (default: 1)",
    )
    verb.output.add_argument(
        "--training-data TEXT",
        default="not stated",
        help="what the network was trained on, for the model's metadata",
    )


def _add_data(verb: Parser) -> None:
    source = verb.source
    source.add_argument("--images DIR", type=existing_folder, help="required: folder of images")
    source.add_argument(
        "--semantic DIR",
        type=existing_folder,
        help="required: class maps, NAME.png for each image: 8 bit, class IDs, 255 = ignore",
    )
    _add_confidence(verb)


def _add_confidence(verb: Parser) -> None:
    verb.source.add_argument(
        "--confidence DIR",
        type=existing_folder,
        help="confidence of each class map, NAME.png, 0..255, any size",
    )


def _add_more_data(verb: Parser) -> None:
    verb.source.add_argument(
        "--more-data DIR",
        type=existing_folder,
        nargs="+",
        default=[],
        help="more folders, each with images/, semantic/ and, optionally, confidence/ in it",
    )


def _add_run(verb: Parser, checkpoint: str, steps: int, unit: str, batch: int = 16) -> None:
    verb.output.add_argument(
        "--checkpoint FILE",
        type=path,
        default=Path(checkpoint),
        help=f"written during training; an existing one is resumed (default: {checkpoint})",
    )
    verb.quality.add_argument(
        "--steps N",
        type=integer(1),
        default=steps,
        help=f"training steps of {batch} {unit} each (default: {steps})",
    )
    _add_seed_and_threads(verb)


def _add_seed_and_threads(verb: Parser) -> None:
    verb.expert.add_argument("--seed N", type=int, default=0, help="random seed (default: 0)")
    verb.expert.add_argument("--threads N", type=integer(0), default=0, help="CPU threads (default: all)")
