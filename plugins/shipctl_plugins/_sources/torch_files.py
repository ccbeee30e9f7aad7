"""PyTorch models that are one file: exported programs, TorchScript, pickled modules."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shipctl.errors import StageError
from shipctl.stages.artifacts import TorchModel
from shipctl_plugins._sources.files import main_file
from shipctl_plugins._sources.importing import describe
from shipctl_plugins._sources.program_check import require_plain_program

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def open_program(model: TorchModel) -> ExportedProgram:
    """Load a `.pt2` file; unless the model is trusted, nothing in it can run while it is opened.

    :raises StageError: if it cannot be read, or holds what could run code
    """
    import torch

    path = main_file(model, {".pt2"})
    if not model.trusted:
        require_plain_program(path)
    with _quiet(), _no_pickles(not model.trusted):
        try:
            return torch.export.load(path)
        except Exception as exc:  # whatever the deserialiser stumbles on
            message = (
                f"{path.name} is no exported program that torch {torch.__version__} reads: {describe(exc)}; save it "
                "again with this version's torch.export.save"
            )
            raise StageError(message) from exc


def open_script(model: TorchModel) -> nn.Module:
    """Load a TorchScript file, which torch's own interpreter runs: no Python, but operators that read and write files.

    :raises StageError: if it cannot be read
    """
    import torch

    path = main_file(model, {".pt", ".pth", ".ts"})
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`torch.jit.load` is deprecated", category=DeprecationWarning
        )
        try:
            script: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as exc:
            message = (
                f"{path.name} is no TorchScript that torch {torch.__version__} reads: {describe(exc)}; save it again, "
                "better with torch.export.save (.pt2)"
            )
            raise StageError(message) from exc
    return script.eval()


def open_pickle(model: TorchModel) -> nn.Module:
    """Unpickle a module, which can run any code and is done for a trusted model only.

    :raises StageError: if it is not trusted, cannot be read, or is no module
    """
    import torch

    path = main_file(model, {".pt", ".pth", ".bin"})
    if not model.trusted:
        message = (
            f"{path.name} is a pickle, which can run any code when it is opened; save it as a .pt2 file "
            "(torch.export.save), or write `trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as exc:  # a pickle may raise anything
        message = f"{path.name} cannot be unpickled: {describe(exc)}; its classes have to be importable"
        raise StageError(message) from exc
    if not isinstance(module, torch.nn.Module):
        message = (
            f"{path.name} holds a {type(module).__name__}, not a torch.nn.Module; a state dict goes to `weights`, "
            "beside the builder in `uri` (models/net.py:build)"
        )
        raise StageError(message)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging a traceback of what is raised as well."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _no_pickles(wanted: bool) -> Iterator[None]:  # noqa: FBT001  (a condition, not a mode)
    """Have every torch.load inside take tensors only, also those that ask for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if wanted:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
