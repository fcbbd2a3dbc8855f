"""Networks through ONNX Runtime on an NVIDIA GPU, for those that TensorRT can't serve: its CUDA provider
works on our memory and stream, and the operator clusters right behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..gpu.cuda import Cuda
from .gpu_session import GpuSession
from .model_variants import AS_IS, Variant
from .onnx_binding import BoundContext, on_stream
from .onnx_session import OnnxSession

_ANY_SIZE = ((1, 1), (1 << 15, 1 << 15))


class OnnxGpuSession(GpuSession):
    """A network through ONNX Runtime's CUDA provider, its outputs staying on the GPU.

    Args:
        path: model in tfiseg's format. threads: CPU threads for what the provider leaves to the CPU.
        providers: the first is CUDA's.

    Raises:
        ModelError: see ``OnnxSession``. EngineError, MissingDependencyError: see ``Cuda``.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        providers: Sequence[str],
        device: str = "cuda",
        variant: Variant = AS_IS,
    ) -> None:
        cuda = Cuda()
        with cuda.current():
            stream = cuda.stream()
            options = on_stream(providers, stream)
            opened = OnnxSession(path, threads, providers, options, variant)
            context = BoundContext(opened.session, device)
        # one lane: a second stream would need a second session, weights and all
        super().__init__(path, opened.info, cuda, [(context, stream)], context.types, _ANY_SIZE)
