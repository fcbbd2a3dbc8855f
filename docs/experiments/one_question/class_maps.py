"""Class masks as the default network draws them."""

import cv2
import numpy as np
import onnx
import onnxruntime
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.refine.view import GRAY

_CANVAS_PX = (96, 288)  # side of a composite in the network's input: near and far
_LEAST_INPUT_PX = 160  # a smaller composite gets a margin
_LONG_SIDE, _LOGITS = "pre.long_side", "heads.coarse_logits"


class ClassMaskNetwork:
    """The default network with an input of any size, without its instance heads, on one thread."""

    def __init__(self) -> None:
        model = onnx.load(str(DEFAULT_MODEL))
        (side,) = (i for i in model.graph.initializer if i.name == _LONG_SIDE)
        model.graph.initializer.remove(side)
        describe = onnx.helper.make_tensor_value_info
        model.graph.input.append(describe(_LONG_SIDE, side.data_type, list(side.dims)))
        model.graph.output.append(describe(_LOGITS, onnx.TensorProto.FLOAT, None))
        part = onnx.utils.Extractor(model).extract_model(["frame", _LONG_SIDE], [_LOGITS])
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            part.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )

    def __call__(self, image: np.ndarray, objects: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Predict the class that the network sees in most of the objects.

        Args:
            image: uint8 (S, S, 3) BGR.
            objects: bool (S, S), their true mask.
            rng: random numbers: the composite is near or far.

        Returns:
            uint8 (S, S) 0/1.
        """
        side = len(image)
        wanted = float(np.exp(rng.uniform(*np.log(_CANVAS_PX))))
        margin = int(max(0.0, _LEAST_INPUT_PX / wanted - 1) * side / 2)
        edge = cv2.BORDER_REFLECT_101 if rng.random() < 0.5 and margin < side else cv2.BORDER_CONSTANT
        wide = cv2.copyMakeBorder(image, *(margin,) * 4, edge, value=(GRAY,) * 3)
        long_side = np.array(wanted * len(wide) / side, np.float32)
        (logits,) = self._session.run(None, {"frame": wide[None], _LONG_SIDE: long_side})
        found = logits[0].argmax(0)
        there = cv2.resize(
            np.pad(objects, margin).astype(np.uint8), found.shape[::-1], interpolation=cv2.INTER_AREA
        )
        class_id = 1 + int(np.bincount(found[there > 0], minlength=2)[1:].argmax())
        others = np.delete(logits[0], class_id, 0).max(0)
        lead = cv2.resize(logits[0, class_id] - others, wide.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return (lead[margin : margin + side, margin : margin + side] > 0).astype(np.uint8)
