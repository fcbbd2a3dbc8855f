"""``NAME.engine`` and the ``NAME.engine.json`` beside it: what a plan is, and whether it is one for this
machine.

TensorRT says little of a plan that doesn't fit, and a plan may hold code that it runs. So none is handed over
before its record has been read, its content compared with the record, and the record with the machine.
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
    list_of,
    map_of,
    only,
    optional,
    parse,
    text,
    to_json,
    whole,
)
from .machine import Machine, this_machine
from .model_info import MAX_CLASSES, MIN_AREA, SPLIT, checked_instance_model, checked_model

FORMAT_VERSION = 1
SUFFIX = ".engine"
_ANY_VERSION = schema.record({"format_version": whole(0, 1 << 30)})
_WORD, _SHA256 = text(200), text(64, "[0-9a-f]{64}")
_SIDES = list_of(whole(1, 1 << 15), 2, 2)
_BATCH = whole(1, 1 << 15)
_SHAPES = either(
    "frame sizes (min_hw, opt_hw, max_hw, batch) or views (view_px, batch)",
    schema.record({"view_px": whole(1, 1 << 15), "batch": _BATCH}),
    schema.record({"min_hw": _SIDES, "opt_hw": _SIDES, "max_hw": _SIDES, "batch": _BATCH}),
)


def _checked_metadata(value: Any, where: str) -> dict[str, Any]:
    """Rule: metadata of a semantic or an instance network."""
    if isinstance(value, dict) and "instance_format" in value:
        return checked_instance_model(value, where)
    return checked_model(value, where)


_RECORD = schema.record(
    {
        "format_version": only(FORMAT_VERSION),
        "plan": schema.record({"sha256": _SHA256, "bytes": whole(0, 1 << 40)}),
        "built_from": schema.record(
            {}, {"onnx": text(4096), "onnx_sha256": _SHA256, "command": text(), "shapes": _SHAPES}
        ),
        "built_with": schema.record(
            {"flavour": only("tensorrt", "tensorrt_rtx"), "version": _WORD, "platform": _WORD},
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
                "layers": map_of(whole(0, 1 << 30), _WORD),
                "proved_by": map_of(whole(0, 1 << 30), _WORD),
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
                    "things": list_of(whole(0, MAX_CLASSES - 1), 0, MAX_CLASSES),
                    "split": SPLIT,
                    "min_area": MIN_AREA,
                    "max_instances": whole(1, MAX_INSTANCES),
                    "heads": boolean,
                },
            )
        ),
        "plugin": optional(
            schema.record({"name": _WORD, "version": _WORD, "namespace": text(200), "sha256": _SHA256})
        ),
    },
)
_MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


def sidecar_path(engine: Path) -> Path:
    """Where an engine's record lies."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: Path) -> dict[str, Any]:
    """An engine's record; raises EngineError where there is none, or none that this version reads."""
    path = sidecar_path(engine)
    if not path.is_file():
        raise EngineError(
            f"{engine} has no record {path.name} beside it: without it nobody knows what it was built with, "
            "and TensorRT would take it "
            "blind. Build it with `tfiseg build`, or bring the record along"
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
    """Write plan and record, each whole or not at all. Whatever happens between the two, the plan isn't taken
    without its own record."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    sealed = {
        "format_version": FORMAT_VERSION,
        "plan": {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)},
        **record,
    }
    for path, content in (
        (engine, plan),
        (sidecar_path(engine), to_json(sealed, indent=2).encode() + b"\n"),
    ):
        write_whole(path, content)


def check_content(engine: Path, record: dict[str, Any]) -> bytes:
    """The plan's bytes; raises EngineError where they aren't those that the record speaks of."""
    if not engine.is_file():
        raise EngineError(
            f"there is no engine {engine}. It is built by: "
            f"{record['built_from'].get('command', 'tfiseg build')}"
        )
    plan = engine.read_bytes()
    wanted = record["plan"]
    if len(plan) != wanted["bytes"]:
        raise EngineError(
            f"{engine} has {len(plan)} bytes, its record says {wanted['bytes']}: it was cut off or replaced. "
            "Copy it again, or "
            f"{_again(record)}"
        )
    if hashlib.sha256(plan).hexdigest() != wanted["sha256"]:
        raise EngineError(
            f"{engine} is not the plan that its record speaks of (another sha256): copy both again, or "
            f"{_again(record)}"
        )
    return plan


@dataclass(frozen=True)
class Mismatch:
    """One point in which engine and machine differ."""

    what: str
    engine: str
    machine: str


def mismatches(record: dict[str, Any], machine: Machine) -> list[Mismatch]:
    """Everything about a machine that keeps an engine from running there; empty if it fits."""
    made = record["built_with"]
    flavour = str(made["flavour"])
    found: list[Mismatch] = []

    def differ(what: str, engine: object, here: object) -> None:
        found.append(Mismatch(what, str(engine), "none" if here is None else str(here)))

    if made["platform"] != machine.platform:
        differ("platform", made["platform"], machine.platform)
    installed = machine.tensorrt_rtx if flavour == "tensorrt_rtx" else machine.tensorrt
    wanted = str(made["version"])
    if installed is None or not _version_fits(wanted, installed, bool(made.get("version_compatible"))):
        differ(flavour, wanted, installed)
    built_for = made.get("compute_capabilities") or (
        [made["compute_capability"]] if made.get("compute_capability") else []
    )
    if machine.compute_capability is None:
        differ(
            "GPU",
            made.get("gpu") or (f"compute capability {', '.join(built_for)}" if built_for else "an RTX GPU"),
            None,
        )
    elif built_for and not _capability_fits(made, built_for, machine.compute_capability):
        differ("compute capability", ", ".join(built_for), machine.compute_capability)
    plugin = record.get("plugin")
    if plugin and not made.get("version_compatible"):  # else the plan carries the library
        try:
            here = plugin_info()["sha256"]
        except Exception:  # not built, not readable: either way not there
            here = None
        if here != plugin["sha256"]:
            differ("plugin library", f"sha256 {plugin['sha256'][:12]}", here and f"sha256 {here[:12]}")
    return found


def check_machine(engine: Path, record: dict[str, Any], machine: Machine) -> None:
    """Raise EngineError with both sides, and the command that rebuilds, where an engine doesn't fit a
    machine."""
    found = mismatches(record, machine)
    if found:
        sides = "; ".join(
            f"{one.what}: the engine has {one.engine}, this machine {one.machine}" for one in found
        )
        if machine.compute_capability is None:
            network = record["built_from"].get("onnx", "the .onnx")
            helps = f"No engine runs without a GPU: use {network} here; for another GPU, {_again(record)}"
        else:
            helps = f"Here, {_again(record)}"
        raise EngineError(f"{engine} was not built for this machine. {sides}. {helps}")


def _version_fits(built: str, installed: str, compatible: bool) -> bool:
    """An engine runs in the version that wrote it; a version-compatible one in newer ones as well."""
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


def _again(record: dict[str, Any]) -> str:
    return f"build it again: {record['built_from'].get('command', 'tfiseg build')}"


def checked_plan(path: Path) -> tuple[bytes, dict[str, Any]]:
    """An engine's plan and record, held against each other and against this machine; raises EngineError."""
    record = read_sidecar(path)
    plan = check_content(path, record)
    check_machine(path, record, this_machine())
    return plan, record
