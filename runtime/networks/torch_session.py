"""Sessions of networks in PyTorch, for machines without TensorRT and onnxruntime-gpu."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingDependencyError, ModelError
from ...plugins.native import fit_frame
from ..gpu.frame_fitting import can_fit_frames
from ..gpu.torch_cuda import TorchCuda
from .gpu_session import ANY_SIZE, GpuSession
from .model_info import METADATA_KEY, ModelInfo
from .model_variants import AS_IS, Variant
from .native_preprocessing import SMALL, NativePreprocessing, input_type, split_preprocessing
from .session import check_exists, check_interface, check_maps, parse_info
from .torch_network import TorchNetwork

if TYPE_CHECKING:
    from torch import Tensor


def _read(path: Path, variant: Variant, native: bool) -> tuple[Any, ModelInfo, NativePreprocessing | None]:
    """Read a model file, its metadata, and its preprocessing if that is removed from the model."""
    try:
        import onnx
        import torch  # noqa: F401
        from onnx.external_data_helper import load_external_data_for_model
    except ImportError as missing:
        raise MissingDependencyError(
            f'backend="torch" needs torch and onnx ({missing}): pip install "tfiseg[torch]"'
        ) from missing
    check_exists(path)
    try:
        content = variant.read(path)
        parts = split_preprocessing(content) if native else None
        model = onnx.load_model_from_string(content if parts is None else parts[1])
        load_external_data_for_model(model, str(path.parent))
    except ModelError:
        raise
    except Exception as wrong:  # of protobuf, or of the weights' file
        raise ModelError(f"{path} is no ONNX model, or it is damaged: {wrong}") from wrong
    texts = [p.value for p in model.metadata_props if p.key == METADATA_KEY]
    info = parse_info(texts[0] if texts else None, path)
    names = ["frame" if parts is not None and i.name == SMALL else i.name for i in model.graph.input]
    check_interface(path, names, [o.name for o in model.graph.output])
    return model, info, None if parts is None else parts[0]


class TorchSession:
    """A network in PyTorch on the CPU; PyTorch chooses the number of threads.

    Args:
        path: model in tfiseg's format, see ``OnnxSession``.

    Raises:
        MissingDependencyError: torch or onnx isn't installed.
        ModelError: the file can't be used, or has an unsupported operator.
    """

    def __init__(self, path: Path, variant: Variant = AS_IS) -> None:
        self.path = path
        model, self.info, self._preprocessing = _read(path, variant, native=True)
        self._graph = TorchNetwork(model, "cpu")

    def has(self, output: str) -> bool:
        return output in self._graph.outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the maps of an image uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        import torch

        if self._preprocessing is None:
            given = {"frame": torch.from_numpy(np.ascontiguousarray(image))[None]}
        else:
            size_hw = self._preprocessing.size_hw((image.shape[0], image.shape[1]))
            given = {SMALL: torch.from_numpy(fit_frame(image, size_hw))[None]}
        found = self._graph(given)
        maps = {name: tensor.float().numpy() for name, tensor in found.items()}
        check_maps(self.path, self.info, maps)
        return maps

    def close(self) -> None:
        """Do nothing: memory is freed with the object."""


class TorchGpuSession(GpuSession):
    """A network in PyTorch on a GPU in float16, in one CUDA graph with the operator.

    Args:
        path, variant: see ``TorchSession``, also for errors.
        device: where tensors are allocated: "cuda"; tests use "cpu".

    Raises:
        EngineError: PyTorch finds no GPU.
    """

    def __init__(self, path: Path, variant: Variant = AS_IS, device: str = "cuda") -> None:
        model, info, preprocessing = _read(path, variant, native=can_fit_frames())
        cuda = TorchCuda(device)
        with cuda.current():
            network, stream = TorchNetwork(model, device, half=device != "cpu"), cuda.stream()

        def new_context() -> TorchContext:
            return TorchContext(network, device)

        first = new_context()
        lanes, types = [(first, stream)], first.types
        super().__init__(
            path, info, cuda, lanes, types, ANY_SIZE, new_context=new_context, preprocessing=preprocessing
        )


class TorchContext:
    """A ``TorchNetwork`` with the interface of TensorRT's execution context.

    Outputs are float32.
    """

    def __init__(self, graph: TorchNetwork, device: str) -> None:
        import torch

        self._torch, self._graph, self._device = torch, graph, device
        self.types = {name: np.dtype(np.float32) for name in graph.outputs}
        self._given: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._known: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._given[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        key = tuple(sorted(self._given.items()))
        if key not in self._known:  # a run tells the shapes of the outputs
            zeros = {
                n: self._torch.from_numpy(np.zeros(s, input_type(n))).to(self._device)
                for n, s in self._given.items()
            }
            self._known[key] = {n: tuple(tensor.shape) for n, tensor in self._graph(zeros).items()}
        return self._known[key][name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._torch.cuda.stream(self._torch.cuda.ExternalStream(stream_handle)):
            given = {name: self._at(name, s, input_type(name)) for name, s in self._given.items()}
            found = self._graph(given)
            for name, tensor in found.items():
                self._at(name, self.get_tensor_shape(name), self.types[name]).copy_(tensor)
        return True

    def _at(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Return the memory at an address as a tensor."""
        address = self._addresses[name]
        if self._device == "cpu":
            memory = (ctypes.c_uint8 * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
            return self._torch.from_numpy(np.ctypeslib.as_array(memory).view(dtype).reshape(shape))
        return self._torch.as_tensor(_DeviceArray(address, shape, dtype.str), device=self._device)


class _DeviceArray:
    """Contiguous memory on the GPU, with the CUDA array interface, version 3."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }
