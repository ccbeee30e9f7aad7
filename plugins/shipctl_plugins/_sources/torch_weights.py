"""Weights of a PyTorch model: a safetensors file or a state dict, loaded strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl_plugins._sources.importing import describe

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN_KEYS = 5
_WRAPPED = "state_dict"
"""The key below which training frameworks keep the state dict, beside epoch and optimiser."""


def load_weights(network: nn.Module, path: Path, name: str, *, trusted: bool = False) -> None:
    """Load the file at ``path``, called ``name`` in messages, strictly into ``network``.

    A `.safetensors` file, or what torch.save made of a state dict (also one that stands below the key `state_dict`).
    A key may be missing where the module ties its tensor to one that is there.

    :raises StageError: if it cannot be read, holds more than tensors and is not ``trusted``, or does not fit: naming
        the keys that are missing, not known, or of another shape
    """
    safe = path.suffix == ".safetensors"
    tensors = _safetensors(path, name) if safe else _state_dict(path, name, trusted=trusted)
    state = network.state_dict()
    loaded = {state[key].data_ptr() for key in tensors.keys() & state.keys() if state[key].numel()}
    faults = {
        "missing": [key for key in state if key not in tensors and state[key].data_ptr() not in loaded],
        "not known": [key for key in tensors if key not in state],
        "of another shape": [
            f"{key} ({list(tensors[key].shape)} in the file, {list(state[key].shape)} in the model)"
            for key in tensors
            if key in state and tensors[key].shape != state[key].shape
        ],
    }
    found = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
    if found:
        message = f"weights {name} do not fit the model: {found}; save them from the module that the builder returns"
        raise StageError(message)
    network.load_state_dict(tensors, strict=False)


def _safetensors(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        message = f"weights {name} cannot be read: {exc}"
        raise StageError(message) from exc


def _state_dict(path: Path, name: str, *, trusted: bool) -> dict[str, Tensor]:
    import torch

    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as exc:
        unsafe = re.search(r"GLOBAL (\S+)", str(exc))
        if trusted or not unsafe:
            message = f"weights {name} cannot be read: {describe(exc)}; save them again with torch.save"
            raise StageError(message) from exc
        message = (
            f"weights {name} hold more than tensors ({unsafe[1]}), and to unpickle that can run any code; save "
            "`module.state_dict()` alone, or write `trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message) from exc
    except Exception as exc:  # a pickle may raise anything, and a broken file does
        message = f"weights {name} cannot be read: {describe(exc)}; save them again with torch.save"
        raise StageError(message) from exc
    if isinstance(found, Mapping) and isinstance(found.get(_WRAPPED), Mapping):
        found = found[_WRAPPED]
    others = (
        [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
        if isinstance(found, Mapping)
        else []
    )
    if not isinstance(found, Mapping) or others:
        what = (
            f"{others[0]!r} is a {type(found[others[0]]).__name__}"
            if others
            else f"it is a {type(found).__name__}"
        )
        message = f"weights {name} are no state dict: {what}; save `module.state_dict()` alone"
        raise StageError(message)
    return dict(found)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more
