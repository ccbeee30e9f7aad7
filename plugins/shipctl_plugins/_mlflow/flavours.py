"""What a version in MLflow consists of, and whether there is an ONNX graph in it that can be taken by itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any

from shipctl.errors import SpecError

MLMODEL = "MLmodel"
"""MLflow's own description of a model, in YAML."""
MLMODEL_LIMIT = 1 << 20
"""Bytes; real ones have a few thousand."""
_PICKLES = frozenset({".bin", ".ckpt", ".dill", ".h5", ".joblib", ".keras", ".pickle", ".pkl", ".pt", ".pth"})
_REMEDY = "log the model as ONNX (mlflow.onnx.log_model) and name that version"


def read_mlmodel(text: str, shown: str) -> dict[str, Any]:
    """Return the flavours of an MLmodel file by name.

    :raises SpecError: if it is no such file
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        parsed = YAML(typ="safe", pure=True).load(text)
    except YAMLError as exc:
        message = f"the MLmodel file of {shown} is not YAML: {' '.join(str(exc).split())[:200]}"
        raise SpecError(message) from None
    flavours = parsed.get("flavors") if isinstance(parsed, dict) else None
    if not isinstance(flavours, dict) or not all(isinstance(name, str) for name in flavours):
        message = f"the MLmodel file of {shown} names no flavours; {_REMEDY}"
        raise SpecError(message)
    return flavours


def graph_of_flavours(flavours: dict[str, Any], files: Collection[str], shown: str) -> str:
    """Return the path of the ONNX graph of a logged model.

    Any other flavour is a pickle, or Python code, which runs when it is loaded: those are never touched.

    :raises SpecError: if the model has no ONNX flavour, or its graph is not there
    """
    flavour = flavours.get("onnx")
    if flavour is None:
        others = ", ".join(sorted(flavours)) or "none"
        message = (
            f"{shown} has no ONNX flavour but {others}, and loading those runs code that came with the model; "
            f"{_REMEDY}"
        )
        raise SpecError(message)
    path = flavour.get("data", "model.onnx") if isinstance(flavour, dict) else None
    if not isinstance(path, str) or not is_below(path) or path not in files:
        message = (
            f"the ONNX flavour of {shown} names the graph {path!r}, which is not among its files; {_REMEDY}"
        )
        raise SpecError(message)
    return path


def graph_of_files(files: Sequence[str], shown: str) -> str:
    """Return the path of the only ONNX graph among plain files.

    :raises SpecError: if there is none, or several
    """
    graphs = [path for path in files if PurePosixPath(path).suffix == ".onnx" and is_below(path)]
    if len(graphs) == 1:
        return graphs[0]
    if graphs:
        message = f"{shown} has several ONNX graphs ({_some(graphs)}); register a version for each"
        raise SpecError(message)
    unsafe = [path for path in files if PurePosixPath(path).suffix in _PICKLES]
    if unsafe:
        message = (
            f"{shown} has no .onnx file but {_some(unsafe)}, and loading that may run code that came with it; "
            f"{_REMEDY}"
        )
        raise SpecError(message)
    message = f"{shown} has no .onnx file ({_some(files) if files else 'no files at all'}); {_REMEDY}"
    raise SpecError(message)


def is_below(path: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path


def _some(paths: Sequence[str]) -> str:
    first = ", ".join(paths[:3])
    return first if len(paths) <= 3 else f"{first} and {len(paths) - 3} more"  # noqa: PLR2004
