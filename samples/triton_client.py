"""Frames to a Triton server, instances back: python triton_client.py SOURCE --url localhost:8000 --model tfiseg-voc21

The server runs the repository that `tfiseg triton NAME.onnx -o DIR` writes. Needs tritonclient: pip install "tritonclient[http]".
"""

import argparse
import json

import numpy as np
import tfiseg
import tritonclient.http as triton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--model", default="tfiseg-voc21")
    args = parser.parse_args()

    client = triton.InferenceServerClient(args.url)
    config = client.get_model_config(args.model)
    names, things = (json.loads(config["parameters"][f"tfiseg.{key}"]["string_value"]) for key in ("class_names", "things"))
    for frame in tfiseg.open_source(args.source):
        picture = triton.InferInput("frame", [1, *frame.image.shape], "UINT8")
        picture.set_data_from_numpy(np.ascontiguousarray(frame.image)[None])
        logits = client.infer(args.model, [picture]).as_numpy("logits")[0]
        instances = tfiseg.cluster(logits, things=things, output_size_hw=frame.image.shape[:2], class_names=names)
        print(frame.name, [(i.class_name, round(i.score, 2), i.area) for i in instances])


if __name__ == "__main__":
    main()
