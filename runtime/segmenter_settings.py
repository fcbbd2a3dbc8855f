"""Options of a ``Segmenter``: defaults and checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from ..errors import InputError, check_choice
from ..plugins.settings import MAX_INSTANCES, Split, check_max_instances, check_min_area, split_table
from ..plugins.views import check_max_views
from .networks.model_variants import MAX_LONG_SIDE_PX, MIN_LONG_SIDE_PX
from .networks.multi_scale import MAX_SCALE, checked_scales
from .networks.session import BACKENDS, CUDA_PROVIDER, DEFAULT_PROVIDERS, DEVICES

QUALITIES = ("fast", "balanced", "best")
MAX_NETWORK_THREADS = 1024  # more than any machine has; ONNX Runtime starts all of them
REFINES = ("shape", "frame", "components")
BEST_LONG_SIDE_PX = 640  # of the network that comes with tfiseg (docs/benchmarks/quality.md)
_REFINE_OF = {"fast": "shape", "balanced": "frame", "best": "components"}


def check_min_score(min_score: float) -> None:
    """Raise InputError if a minimum score is out of range."""
    if not (isinstance(min_score, Real) and 0 <= min_score <= 1):
        raise InputError(f"min_score must lie in 0..1, got {min_score!r}")


@dataclass(frozen=True)
class SegmenterSettings:
    """Options of a ``Segmenter``, which documents them; raises InputError."""

    model: str | Path | None = None
    quality: str = "balanced"
    things: Iterable[str | int] | str | int | None = None
    split: Split | None = None
    min_area: int | None = None
    min_score: float | None = None
    max_instances: int = MAX_INSTANCES
    refine: str | None = None
    instance_model: str | Path | None = None
    outlines: bool | None = None
    thorough: bool | None = None
    max_views: int | None = None
    long_side_px: int | None = None
    tiles: int = 1
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    threads: int = 0
    device: str = "cpu"
    backend: str = "onnxruntime"
    providers: Sequence[str] = DEFAULT_PROVIDERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", checked_scales(self.scales))
        for name in ("model", "instance_model"):
            if getattr(self, name) == "":  # as an unset variable of a shell gives it
                raise InputError(f"{name} is empty: name a file, or leave it out to use tfiseg's own network")
        check_choice("quality", self.quality, QUALITIES)
        if self.refine is not None:
            check_choice("refine", self.refine, REFINES)
        check_choice("device", self.device, DEVICES)
        check_choice("backend", self.backend, BACKENDS)
        if not isinstance(self.threads, Integral) or not 0 <= self.threads <= MAX_NETWORK_THREADS:
            raise InputError(
                f"threads must be at least 1 (0 = all), at most {MAX_NETWORK_THREADS}, got {self.threads!r}"
            )
        if self.min_area is not None:
            check_min_area(self.min_area)
        if self.min_score is not None:
            check_min_score(self.min_score)
        check_max_instances(self.max_instances)
        if self.split is not None:
            split_table(self.split)
        if self.long_side_px is not None and not (
            isinstance(self.long_side_px, Integral)
            and MIN_LONG_SIDE_PX <= self.long_side_px <= MAX_LONG_SIDE_PX
        ):
            raise InputError(
                f"long_side_px must lie in {MIN_LONG_SIDE_PX}..{MAX_LONG_SIDE_PX}, got {self.long_side_px!r}"
            )
        check_max_views(self.max_views)
        if not isinstance(self.tiles, Integral) or not 1 <= self.tiles <= MAX_SCALE:
            raise InputError(f"tiles must lie in 1..{MAX_SCALE:g}, got {self.tiles!r}: give a whole number")
        self._check_effects()

    def _check_effects(self) -> None:
        """Raise InputError for options without effect."""
        by_components = self.wanted_refine == "components"
        if self.instance_model is not None and not by_components and not self.outlines:
            raise InputError(
                'instance_model has no effect without refine="components", quality="best" or outlines'
            )
        for name in ("thorough", "max_views"):
            if getattr(self, name) is not None and not by_components:
                raise InputError(f'{name} has no effect without refine="components" or quality="best"')
        if self.several_passes and self.refine == "frame":
            raise InputError(
                "tiles, scales and flip average class maps, and instance heads have no average: use "
                'refine="components"'
            )
        if [*self.providers] != [*DEFAULT_PROVIDERS] and (self.device, self.backend) != (
            "cpu",
            "onnxruntime",
        ):
            raise InputError(
                f"providers replace device and backend: leave out device={self.device!r} and "
                f"backend={self.backend!r}, or providers"
            )
        if self.tiles > 1 and self.scales != (1.0,):
            raise InputError(f"tiles={self.tiles} means scales=(1, {self.tiles}): leave one of them out")

    @property
    def several_passes(self) -> bool:
        """Whether several passes over each frame are averaged."""
        return self.flip or self.tiles > 1 or self.scales != (1.0,)

    @property
    def onnx_providers(self) -> Sequence[str]:
        """Execution providers of ONNX Runtime, by priority."""
        return (CUDA_PROVIDER,) if (self.device, self.backend) == ("cuda", "onnxruntime") else self.providers

    @property
    def torch_device(self) -> str | None:
        """Device on which PyTorch runs the network; None: another runtime does."""
        return self.device if self.backend == "torch" else None

    @property
    def wanted_refine(self) -> str:
        """Requested way to find instances: "shape", "frame" or "components".

        Several passes have no instance heads, so they use "components" instead of "frame".
        """
        wanted = self.refine or _REFINE_OF[self.quality]
        return "components" if wanted == "frame" and self.several_passes else wanted

    @property
    def input_long_side_px(self) -> int | None:
        """Longer side in pixels that the network scales frames to; None: the model's own."""
        if self.long_side_px is None and self.quality == "best" and self.model is None:
            return BEST_LONG_SIDE_PX
        return self.long_side_px
