"""Get instances from a Triton server: `python samples/triton_client.py street.mp4 --model tfiseg-voc21`.

`tfiseg triton MODEL -o DIR` writes the server's model repository. A network (.onnx) returns logits, which
are clustered here; an engine with the clustering plugin returns instances. Needs `pip install
"tritonclient[grpc]"`.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any

import cv2
import numpy as np
import tfiseg
import tritonclient.grpc as triton
from tfiseg.instances import instances_from_table


def infer(client: triton.InferenceServerClient, model: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the model's outputs for an image, uint8 (H, W, 3) BGR, without the batch axis."""
    frame = triton.InferInput("frame", (1, *image.shape), "UINT8")
    frame.set_data_from_numpy(np.ascontiguousarray(image[None]))
    response = client.infer(model, [frame])
    return {output.name: response.as_numpy(output.name)[0] for output in response.get_response().outputs}


def instances_of(
    maps: dict[str, np.ndarray], metadata: dict[str, Any], size_hw: tuple[int, int]
) -> tfiseg.Instances:
    """Return instances from a model's outputs and metadata; an engine's instances have the engine's size."""
    clustering, names = metadata.get("clustering", {}), metadata["class_names"]
    if "label_map" in maps:
        rows = maps["table"][: max(0, int(maps["count"].item()))]
        instances = instances_from_table(
            maps["label_map"], maps["semantic_map"].astype(np.uint8), rows, class_names=names
        )
    else:
        instances = tfiseg.cluster(
            maps["logits"],
            displacement=maps.get("displacement"),
            boundary=maps["boundary"][0] if "boundary" in maps else None,
            affinity=maps.get("affinity"),
            things=metadata["things"],
            split=clustering.get("split", "auto"),
            min_area=max(25, size_hw[0] * size_hw[1] // 1000),
            output_size_hw=size_hw,
            class_names=names,
        )
    if "score_rule" not in clustering:
        return instances.select(instances.score >= 0.5)
    score = tfiseg.object_probability(instances, clustering["score_rule"])
    return dataclasses.replace(instances, score=score).select(score >= 0.3)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("source", help='image, folder, video, camera index, URL or "synthetic"')
parser.add_argument("--model", default="tfiseg-voc21", help="the model's name on the server")
parser.add_argument("--url", default="localhost:8001", help="the server's gRPC address")
parser.add_argument("--out", help="write the last overlay to this file")
parser.add_argument("--frames", type=int, help="stop after N frames")
args = parser.parse_args()

client = triton.InferenceServerClient(args.url)
try:
    parameters = client.get_model_config(args.model).config.parameters
    metadata = json.loads(parameters["tfiseg"].string_value)
    overlay = None
    for frame in tfiseg.open_source(args.source):
        if frame.index == args.frames:
            break
        maps = infer(client, args.model, frame.image)
        instances = instances_of(maps, metadata, frame.image.shape[:2])
        for i in instances:
            print(f"frame {frame.index}: {i.class_name}, score {i.score:.2f}, {i.area} px, box {i.box_xyxy}")
        height, width = instances.label_map.shape
        overlay = instances.draw(cv2.resize(frame.image, (width, height)))
except triton.InferenceServerException as error:
    sys.exit(f"the server at {args.url} failed: {error.message()}")
except (json.JSONDecodeError, tfiseg.TfisegError) as error:
    sys.exit(f"{args.model}: {error}")
if args.out and (overlay is None or not cv2.imwrite(args.out, overlay)):
    sys.exit(f"{args.out} can't be written")
