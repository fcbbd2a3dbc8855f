"""Load the weights of a PyTorch network from the files of different training programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import ModelError
from ..checkpoint import read_checkpoint

# where PyTorch Lightning, mmsegmentation, PyTorch's tutorials and torchvision's scripts put the state dict
_NAMES = ("state_dict", "model_state_dict", "model")
_AUXILIARY = "aux_classifier."  # of torchvision, in training only


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict, or the state dict in a checkpoint, into a network.

    The names may have a prefix, such as ``module.`` of DataParallel or ``model.`` of PyTorch Lightning.

    Raises:
        ModelError: the file holds no weights, lacks some of the network's, or has two sets of them.
    """
    content = read_checkpoint(path, "a state dict")
    needed = {name for name in module.state_dict() if not name.startswith(_AUXILIARY)}
    candidates = list(_state_dicts(content))
    for state in candidates:
        prefixes = _prefixes(state, needed)
        if len(prefixes) > 1:
            shown = ", ".join(repr(prefix) for prefix in prefixes)
            raise ModelError(
                f"{path} holds the network's weights {len(prefixes)} times, with the prefixes {shown}: save "
                "the set to use alone"
            )
        if prefixes:
            return _load(module, state, prefixes[0], path)
    missing = sorted(needed - set(candidates[-1]))
    raise ModelError(
        f"{path} lacks {len(missing)} of the network's {len(needed)} weights, e.g. {', '.join(missing[:3])}"
    )


def _state_dicts(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield content
    for name in _NAMES:
        if isinstance(content.get(name), dict):
            yield content[name]


def _prefixes(state: dict[str, Any], needed: set[str]) -> list[str]:
    """Return the prefixes with which a state dict has all names; without one if that is enough."""
    if needed <= set(state):
        return [""]
    sample = min(needed)
    found = (name.removesuffix(sample) for name in state if isinstance(name, str) and name.endswith(sample))
    return sorted(prefix for prefix in found if all(prefix + name in state for name in needed))


def _load(module: nn.Module, state: dict[str, Any], prefix: str, path: Path) -> None:
    own: dict[str, Tensor] = {
        name.removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)
    }
    try:
        module.load_state_dict(own, strict=False)  # ignores names that the network does not have
    except (AttributeError, RuntimeError, TypeError, ValueError) as wrong:
        reason = " ".join(line.strip() for line in str(wrong).splitlines()[:2])
        raise ModelError(f"{path} is no state dict of this network: {reason}") from wrong
