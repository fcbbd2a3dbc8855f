"""Build a TensorRT plan from a strongly typed network and keep the builder's layer report.

The code uses calls that TensorRT 10.3, TensorRT 11 and TensorRT-RTX 1.7 share, and finds others by name.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...errors import EngineError, InputError
from ...files import write_whole
from ...runtime.networks.machine import this_machine
from ...runtime.networks.tensorrt_plan import start
from .precision_proof import LayerReport, read_inspector, read_log
from .tensorrt_flavors import Flavor

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = None  # all flavors share one API: build_plan() assigns the requested one

FRAME = "frame"


@dataclass(frozen=True)
class Profile:
    """Frame sizes (H, W) that an engine accepts: smallest, best and largest, for up to ``batch`` frames."""

    min_hw: tuple[int, int] = (240, 320)
    opt_hw: tuple[int, int] = (480, 640)
    max_hw: tuple[int, int] = (1080, 1920)
    batch: int = 1

    def __post_init__(self) -> None:
        order = all(a <= b <= c for a, b, c in zip(self.min_hw, self.opt_hw, self.max_hw, strict=True))
        if not order or min(*self.min_hw, self.batch) < 1:
            raise InputError(
                f"frame sizes must rise from smallest to best to largest, got {self.min_hw}, {self.opt_hw}, "
                f"{self.max_hw}"
            )

    def inputs(self) -> dict[str, list[list[int]]]:
        """Return the smallest, best and largest shape of each input."""
        sizes = ((1, self.min_hw), (self.batch, self.opt_hw), (self.batch, self.max_hw))
        return {FRAME: [[batch, *hw, 3] for batch, hw in sizes]}


@dataclass(frozen=True)
class ViewProfile(Profile):
    """Views that an engine of the instance network accepts per call: 1 to ``batch``, fastest at ``usual``."""

    view_px: int = field(kw_only=True)
    usual: int = 8

    def inputs(self) -> dict[str, list[list[int]]]:
        counts = (1, min(self.usual, self.batch), self.batch)
        square = [self.view_px, self.view_px]
        return {"views": [[n, *square, 3] for n in counts], "masks": [[n, *square] for n in counts]}


@dataclass(frozen=True)
class BuildSettings:
    """Settings of the builder."""

    profile: Profile = field(default_factory=Profile)
    workspace_mib: int | None = None  # maximum scratch memory in MiB
    timing_cache: Path | None = None  # file to read and update
    optimization_level: int | None = None  # 0..5
    portable: bool = False  # support newer TensorRT versions and other GPUs from Ampere on
    # e.g. "8.6"; TensorRT-RTX only
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False  # let fp32 layers use TF32
    operator: bool = True  # include the clustering plugin; without it an engine outputs class logits
    plugin: Path | None = None  # path of the plugin library


@dataclass
class BuiltPlan:
    """A plan and, for each witness, the precision of its layers by ONNX node name."""

    plan: bytes
    witnesses: dict[str, dict[str, str]]
    seconds: float


def build_plan(model: bytes, kind: Flavor, settings: BuildSettings, quiet: bool = True) -> BuiltPlan:
    """Build a plan.

    Args:
        model: ONNX network with the precision in its graph.
        kind: the TensorRT to build with.
        settings: shapes and modes; ``settings.plugin`` must be loaded.

    Raises:
        InputError: this TensorRT doesn't support a setting.
        EngineError: TensorRT can't start, read or build the network; the message quotes it.
    """
    if settings.portable and not kind.takes_plugins:
        raise InputError(
            "--portable is for --target tensorrt: TensorRT-RTX finishes an engine on the GPU that loads it"
        )
    globals()["trt"] = kind.module
    began = time.perf_counter()
    report = LayerReport()
    logger = _logger(report)
    builder = start(lambda: trt.Builder(logger), trt, report.errors)
    # TensorRT 11 has no other networks
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise EngineError(
            f"{kind.name} {kind.version} can't read the network: {_parser_errors(parser, report)}"
        )
    witnesses = {"parsed network": _parsed_precisions(network)}
    config = builder.create_builder_config()
    _configure(kind, builder, network, config, settings)
    with _progress(config, quiet):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"{kind.name} {kind.version} can't build the engine: {report.errors() or 'no reason given'}"
        )
    if settings.timing_cache is not None and kind.takes_plugins:
        write_whole(settings.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    witnesses |= {"builder's layer report": read_log(report.messages)}
    content = bytes(memoryview(plan))
    witnesses |= {"engine inspector": _inspected_precisions(logger, content)}
    return BuiltPlan(
        content, {name: found for name, found in witnesses.items() if found}, time.perf_counter() - began
    )


def _logger(report: LayerReport) -> trt.ILogger:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            report.add(int(severity), message)

    return Logger()


def _parser_errors(parser: trt.OnnxParser, report: LayerReport) -> str:
    errors = []
    for k in range(parser.num_errors):
        error = parser.get_error(k)
        if hasattr(error, "node_operator"):
            node = f"node {error.node_name()!r} ({error.node_operator()})"
        else:
            node = f"node {error.node()}"
        text = error.desc().strip()
        if text in ("", "false") or "Plugin not found" in text:
            text = "this operator is not supported"
        errors.append(f"{node}: {text}")
    return "; ".join(errors) or report.errors() or "no reason given"


def _configure(
    kind: Flavor,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    settings: BuildSettings,
) -> None:
    shapes, profile = settings.profile, builder.create_optimization_profile()
    inputs = shapes.inputs()
    names = [network.get_input(k).name for k in range(network.num_inputs)]
    if sorted(names) != sorted(inputs):
        raise EngineError(f"the network has the inputs {', '.join(names)}; expected {', '.join(inputs)}")
    for name, sizes in inputs.items():
        profile.set_shape(name, *(trt.Dims(size) for size in sizes))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{kind.name} doesn't accept the shapes {shapes}")
    # otherwise layers do not state their precision
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if not settings.tf32:  # fp32 layers compute in float32
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.timing_cache is not None and kind.takes_plugins:  # TensorRT-RTX has no timing
        known = settings.timing_cache.read_bytes() if settings.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    if settings.portable and kind.takes_plugins:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if settings.plugin is not None:
            config.plugins_to_serialize = [str(settings.plugin)]
    if settings.compute_capabilities:
        _set_capabilities(config, settings.compute_capabilities, kind)


def _set_capabilities(config: Any, capabilities: Sequence[str], kind: Flavor) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise EngineError(
            f"{kind.name} builds for this machine's GPU; --compute-capability is for --target rtx"
        )
    known = {
        f"{name[2:-1]}.{name[-1]}": name
        for name in dir(kind.module.ComputeCapability)
        if name.startswith("SM")
    }
    known = dict(sorted(known.items(), key=lambda one: float(one[0])))
    config.num_compute_capabilities = len(capabilities)
    for k, text in enumerate(capabilities):
        if text not in known:
            raise InputError(
                f"{kind.name} {kind.version} has no compute capability {text!r}: expected one of "
                f"{', '.join(known)}"
            )
        config.set_compute_capability(getattr(kind.module.ComputeCapability, known[text]), k)


def _progress(config: trt.IBuilderConfig, quiet: bool) -> AbstractContextManager[object]:
    if quiet or not hasattr(trt, "IProgressMonitor"):
        return nullcontext()
    bar = tqdm(desc="building", unit="step", file=sys.stderr, leave=False)

    class Monitor(trt.IProgressMonitor):
        """Counts the steps of all phases, because the outermost phase has few and uneven steps."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            bar.total = (bar.total or 0) + num_steps
            bar.set_description(phase_name.lower(), refresh=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar.update()
            return True

        def phase_finish(self, phase_name: str) -> None:
            bar.refresh()

    config.progress_monitor = Monitor()
    return bar


def _parsed_precisions(network: trt.INetworkDefinition) -> dict[str, str]:
    """Return the operand type of each convolution and matrix product of the parsed network."""
    producers: dict[str, trt.ILayer] = {}
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        for j in range(layer.num_outputs):
            producers[layer.get_output(j).name] = layer
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    names = {trt.float32: "fp32", trt.float16: "fp16", trt.int8: "int8"}
    found = {}
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        if layer.type in kinds:
            operands = [
                t for t in (layer.get_input(j) for j in range(min(2, layer.num_inputs))) if t is not None
            ]
            is_int8 = len(operands) == 2 and all(_dequantizes(producers, t) for t in operands)
            kind = operands[0].dtype
            found[layer.name] = "int8" if is_int8 else names.get(kind, str(kind))
    return found


def _dequantizes(producers: Mapping[str, trt.ILayer], tensor: trt.ITensor) -> bool:
    """Return whether a tensor is the output of a dequantize layer, possibly transposed after it."""
    layer = producers.get(tensor.name)
    if layer is not None and layer.type == trt.LayerType.SHUFFLE:
        layer = producers.get(layer.get_input(0).name)
    return layer is not None and bool(layer.type == trt.LayerType.DEQUANTIZE)


def _inspected_precisions(logger: trt.ILogger, plan: bytes) -> dict[str, str]:
    """Return the inspector's precisions of a plan; empty without a GPU to deserialize it."""
    if not _has_gpu():
        return {}
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return {}
    return read_inspector(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    )


def _has_gpu() -> bool:
    return this_machine().gpu is not None


def source_record(source: Path, command: str, precision: str) -> dict[str, Any]:
    """Return the record of an engine's source; shapes are added later."""
    return {
        "onnx": source.name,
        "onnx_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "command": command,
        "precision_asked": precision,
    }


def shapes_record(settings: BuildSettings) -> dict[str, Any]:
    """Return the record of an engine's profile."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(settings.profile).items()
    }


def toolchain_record(kind: Flavor, settings: BuildSettings) -> dict[str, Any]:
    """Return the record of an engine's toolchain."""
    machine = this_machine()
    capabilities = list(settings.compute_capabilities)
    if kind.takes_plugins and machine.compute_capability:
        capabilities = [machine.compute_capability]
    return {
        "flavour": kind.name,
        "version": kind.version,
        "cuda": machine.cuda,
        "driver": machine.driver,
        "gpu": machine.gpu,
        "compute_capability": machine.compute_capability,
        "compute_capabilities": capabilities,
        "platform": machine.platform,
        "hardware_compatibility": "ampere_plus" if settings.portable else None,
        "version_compatible": settings.portable,
    }
