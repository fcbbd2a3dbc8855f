"""Sessions of networks in PyTorch, for machines without TensorRT and onnxruntime-gpu."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingDependencyError, ModelError
from ..gpu.torch_cuda import TorchCuda
from .gpu_session import GpuSession
from .model_info import METADATA_KEY, ModelInfo
from .model_variants import AS_IS, Variant
from .session import check_exists, check_interface, check_maps, parse_info
from .torch_network import TorchNetwork

if TYPE_CHECKING:
    from torch import Tensor

_ANY_SIZE = ((1, 1), (1 << 15, 1 << 15))


def _read(path: Path, variant: Variant) -> tuple[Any, ModelInfo]:
    """Read a model file and its metadata. Raises ModelError, MissingDependencyError."""
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
        model = onnx.load_model_from_string(variant.read(path))
        load_external_data_for_model(model, str(path.parent))
    except Exception as wrong:  # of protobuf, or of the weights' file
        raise ModelError(f"{path} is no ONNX model, or it is damaged: {wrong}") from wrong
    texts = [p.value for p in model.metadata_props if p.key == METADATA_KEY]
    info = parse_info(texts[0] if texts else None, path)
    check_interface(path, [i.name for i in model.graph.input], [o.name for o in model.graph.output])
    return model, info


class TorchSession:
    """A network in PyTorch on the CPU; PyTorch chooses the number of threads.

    Args:
        path: model in tfiseg's format, see ``OnnxSession``.
        variant: changes of the file when it is loaded.

    Raises:
        MissingDependencyError: torch or onnx isn't installed.
        ModelError: the file can't be used, or has an unsupported operator.
    """

    def __init__(self, path: Path, variant: Variant = AS_IS) -> None:
        self.path = path
        model, self.info = _read(path, variant)
        self._graph = TorchNetwork(model, "cpu")

    def has(self, output: str) -> bool:
        """Return whether the network has this output."""
        return output in self._graph.outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the maps of an image uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        import torch

        found = self._graph({"frame": torch.from_numpy(np.ascontiguousarray(image))[None]})
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
        model, info = _read(path, variant)
        cuda = TorchCuda(device)
        with cuda.current():
            network, stream = TorchNetwork(model, device, half=device != "cpu"), cuda.stream()

        def new_context() -> TorchContext:
            return TorchContext(network, device)

        first = new_context()
        super().__init__(path, info, cuda, [(first, stream)], first.types, _ANY_SIZE, new_context=new_context)


class TorchContext:
    """A ``TorchNetwork`` with the interface of TensorRT's execution context.

    Inputs are uint8, outputs float32.
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
            kind = self._torch.uint8
            zeros = {n: self._torch.zeros(s, dtype=kind, device=self._device) for n, s in self._given.items()}
            self._known[key] = {n: tuple(tensor.shape) for n, tensor in self._graph(zeros).items()}
        return self._known[key][name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._torch.cuda.stream(self._torch.cuda.ExternalStream(stream_handle)):
            found = self._graph({name: self._at(name, s, np.uint8) for name, s in self._given.items()})
            for name, tensor in found.items():
                self._at(name, self.get_tensor_shape(name), np.float32).copy_(tensor)
        return True

    def _at(self, name: str, shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
        """Return the memory at an address as a tensor."""
        address, dtype = self._addresses[name], np.dtype(kind)
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
