"""Engine files (``NAME.engine`` and its metadata ``NAME.engine.json``) and their checks.

TensorRT reports little about a plan that doesn't fit, and a plan may contain code that it runs. So the
metadata is read first, then compared with the plan and with the machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import schema
from ...errors import EngineError, FormatError
from ...files import write_whole
from ...plugins.plugin_library import plugin_info
from ...plugins.settings import MAX_INSTANCES
from ...schema import (
    MAX_BYTES,
    boolean,
    bytes_of,
    either,
    integer,
    list_of,
    map_of,
    one_of,
    optional,
    parse,
    text,
    to_json,
)
from .machine import Machine, this_machine
from .model_info import MAX_CLASSES, MIN_AREA, SPLIT, checked_instance_model, checked_model

FORMAT_VERSION = 1
SUFFIX = ".engine"
_ANY_VERSION = schema.record({"format_version": integer(0, 1 << 30)})
_WORD, _SHA256 = text(200), text(64, "[0-9a-f]{64}")
_SIDES = list_of(integer(1, 1 << 15), 2, 2)
_BATCH = integer(1, 1 << 15)
_SHAPES = either(
    "frame sizes (min_hw, opt_hw, max_hw, batch) or views (view_px, batch)",
    schema.record({"view_px": integer(1, 1 << 15), "batch": _BATCH}),
    schema.record({"min_hw": _SIDES, "opt_hw": _SIDES, "max_hw": _SIDES, "batch": _BATCH}),
)


def _checked_metadata(value: Any, where: str) -> dict[str, Any]:
    """Check the metadata of a semantic or an instance network."""
    if isinstance(value, dict) and "instance_format" in value:
        return checked_instance_model(value, where)
    return checked_model(value, where)


_RECORD = schema.record(
    {
        "format_version": one_of(FORMAT_VERSION),
        "plan": schema.record({"sha256": _SHA256, "bytes": integer(0, 1 << 40)}),
        "built_from": schema.record(
            {}, {"onnx": text(4096), "onnx_sha256": _SHA256, "command": text(), "shapes": _SHAPES}
        ),
        "built_with": schema.record(
            {"flavour": one_of("tensorrt", "tensorrt_rtx"), "version": _WORD, "platform": _WORD},
            {
                "cuda": optional(_WORD),
                "driver": optional(_WORD),
                "gpu": optional(_WORD),
                "compute_capability": optional(_WORD),
                "compute_capabilities": list_of(_WORD, 0, 64),
                "hardware_compatibility": optional(_WORD),
                "version_compatible": boolean,
            },
        ),
        "precision": schema.record(
            {},
            {
                "asked": _WORD,
                "layers": map_of(integer(0, 1 << 30), _WORD),
                "proved_by": map_of(integer(0, 1 << 30), _WORD),
                "kept_high": list_of(text(1000), 0, 100_000),
            },
        ),
        "model": _checked_metadata,
    },
    {
        "gate": optional(schema.record({}, {"passed": boolean, "skipped": _WORD})),
        "operator": optional(
            schema.record(
                {},
                {
                    "things": list_of(integer(0, MAX_CLASSES - 1), 0, MAX_CLASSES),
                    "split": SPLIT,
                    "min_area": MIN_AREA,
                    "max_instances": integer(1, MAX_INSTANCES),
                    "heads": boolean,
                },
            )
        ),
        "plugin": optional(
            schema.record({"name": _WORD, "version": _WORD, "namespace": text(200), "sha256": _SHA256})
        ),
    },
)


def sidecar_path(engine: Path) -> Path:
    """Return the path of an engine's metadata."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: Path) -> dict[str, Any]:
    """Read an engine's metadata. Raises EngineError if it can't be used."""
    path = sidecar_path(engine)
    if not path.is_file():
        raise EngineError(
            f"{engine} has no metadata file {path.name} beside it, so it cannot be checked before TensorRT "
            "loads it. Build it with `tfiseg build`, or copy the file too."
        )
    try:
        content = bytes_of(path, MAX_BYTES)
        version = parse(content, _ANY_VERSION)["format_version"]
        if version != FORMAT_VERSION:
            raise EngineError(
                f"{path} has format {version}, this version of tfiseg reads {FORMAT_VERSION}: build the "
                "engine again"
            )
        record: dict[str, Any] = parse(content, _RECORD)
    except FormatError as wrong:
        raise EngineError(f"{path} is damaged ({wrong}): build the engine again") from wrong
    return record


def write_engine(engine: Path, plan: bytes, record: dict[str, Any]) -> None:
    """Write plan and metadata, each atomically."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    sealed = {
        "format_version": FORMAT_VERSION,
        "plan": {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)},
        **record,
    }
    for path, content in ((engine, plan), (sidecar_path(engine), to_json(sealed, indent=2).encode() + b"\n")):
        write_whole(path, content)


def check_content(engine: Path, record: dict[str, Any]) -> bytes:
    """Return the plan. Raises EngineError if it is missing, or not the one of the metadata."""
    if not engine.is_file():
        raise EngineError(
            f"there is no engine {engine}. Build it with: "
            f"{record['built_from'].get('command', 'tfiseg build')}"
        )
    plan = engine.read_bytes()
    expected = record["plan"]
    if len(plan) != expected["bytes"]:
        raise EngineError(
            f"{engine} has {len(plan)} bytes, but its metadata says {expected['bytes']}: it was cut off or "
            f"replaced. Copy it again, or {_rebuild(record)}"
        )
    if hashlib.sha256(plan).hexdigest() != expected["sha256"]:
        raise EngineError(
            f"{engine} is not the plan of its metadata file (another SHA-256). Copy both again, or "
            f"{_rebuild(record)}"
        )
    return plan


@dataclass(frozen=True)
class Mismatch:
    """A difference between an engine's requirements and the machine."""

    what: str
    engine: str
    machine: str


def mismatches(record: dict[str, Any], machine: Machine) -> list[Mismatch]:
    """Return what prevents an engine from running on a machine; empty if it fits."""
    made = record["built_with"]
    flavour = str(made["flavour"])
    found: list[Mismatch] = []

    def differ(what: str, engine: object, here: object) -> None:
        found.append(Mismatch(what, str(engine), "none" if here is None else str(here)))

    if made["platform"] != machine.platform:
        differ("platform", made["platform"], machine.platform)
    installed = machine.tensorrt_rtx if flavour == "tensorrt_rtx" else machine.tensorrt
    built = str(made["version"])
    if installed is None or not _version_fits(built, installed, bool(made.get("version_compatible"))):
        differ(flavour, built, installed)
    built_for = made.get("compute_capabilities") or (
        [made["compute_capability"]] if made.get("compute_capability") else []
    )
    if machine.compute_capability is None:
        kind = f"compute capability {', '.join(built_for)}" if built_for else "an RTX GPU"
        differ("GPU", made.get("gpu") or kind, None)
    elif built_for and not _capability_fits(made, built_for, machine.compute_capability):
        differ("compute capability", ", ".join(built_for), machine.compute_capability)
    plugin = record.get("plugin")
    if plugin and not made.get("version_compatible"):  # else the plan contains the library
        try:
            here = plugin_info()["sha256"]
        except Exception:  # not built, or not readable
            here = None
        if here != plugin["sha256"]:
            differ("plugin library", f"sha256 {plugin['sha256'][:12]}", here and f"sha256 {here[:12]}")
    return found


def check_machine(engine: Path, record: dict[str, Any], machine: Machine) -> None:
    """Raise EngineError with the differences and a fix, if an engine doesn't fit a machine."""
    found = mismatches(record, machine)
    if found:
        sides = "; ".join(
            f"{one.what}: the engine has {one.engine}, this machine {one.machine}" for one in found
        )
        if machine.compute_capability is None:
            network = record["built_from"].get("onnx", "the .onnx")
            fix = f"No engine runs without a GPU: use {network} here; for another GPU, {_rebuild(record)}"
        else:
            fix = f"Here, {_rebuild(record)}"
        raise EngineError(f"{engine} was not built for this machine. {sides}. {fix}")


def _version_fits(built: str, installed: str, compatible: bool) -> bool:
    """Return whether the installed version can run an engine."""
    if compatible:
        return _numbers(installed) >= _numbers(built)
    return _numbers(installed)[:3] == _numbers(built)[:3]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _capability_fits(made: dict[str, Any], built_for: list[str], here: str) -> bool:
    level = made.get("hardware_compatibility")
    if level == "ampere_plus":
        return _numbers(here) >= (8, 0)
    return here in built_for


def _rebuild(record: dict[str, Any]) -> str:
    return f"build it again: {record['built_from'].get('command', 'tfiseg build')}"


def checked_plan(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return an engine's plan and metadata; raises EngineError if they don't fit this machine."""
    record = read_sidecar(path)
    plan = check_content(path, record)
    check_machine(path, record, this_machine())
    return plan, record
