"""Sessions of networks in ONNX Runtime's CUDA provider.

They are for networks that TensorRT doesn't support. The provider uses our memory and stream, so the operator
runs directly after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..gpu.cuda import Cuda
from ..gpu.frame_fitting import can_fit_frames
from .gpu_session import ANY_SIZE, GpuSession
from .model_variants import AS_IS, Variant
from .onnx_binding import BoundContext, stream_options
from .onnx_session import OnnxSession


class OnnxGpuSession(GpuSession):
    """A network in ONNX Runtime's CUDA provider, with its outputs on the GPU.

    Args:
        path: model in tfiseg's format.
        threads: CPU threads, for layers that the provider doesn't support.
        providers: ONNX Runtime execution providers; the first is CUDA's.
        device: where memory is allocated: "cuda"; tests use "cpu".

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
            options = stream_options(providers, stream)
            opened = OnnxSession(path, threads, providers, options, variant, native=can_fit_frames())
            context = BoundContext(opened.session, device)
        # one lane: a second stream would need a second session with another copy of the weights
        lanes = [(context, stream)]
        super().__init__(
            path, opened.info, cuda, lanes, context.types, ANY_SIZE, preprocessing=opened.preprocessing
        )
