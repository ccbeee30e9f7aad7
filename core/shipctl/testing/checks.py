"""What can be said about a stage without running it. Needs no pytest: `shipctl stages check` uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from shipctl.engine.ports import input_ports, output_ports
from shipctl.errors import PluginError
from shipctl.stages.artifacts import Report
from shipctl.stages.base import API_VERSION, ReleaseStage, Stage
from shipctl.stages.registry import StageClass

FRAMEWORKS = frozenset(
    {
        "jax", "kubernetes", "minio", "mlflow", "modelopt", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxslim",
        "pandas", "scipy", "sklearn", "tensorflow", "tensorrt", "torch", "tritonclient",
    }
)  # fmt: skip
"""Packages that cost from a tenth of a second to seconds to import: inside functions only."""

_IMPORT_TIMEOUT_S = 120
_IMPORTING = """
import importlib, os, sys, traceback
import shipctl.stages.base

answers = os.dup(1)
os.dup2(2, 1)
for module in sys.argv[2:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(module)
            found = sorted(set(sys.argv[1].split()).intersection(sys.modules))
            os.write(answers, (" ".join([module, *found]) + "\\n").encode())
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
"""What all stages import is imported once; each module then in a fork, so that it hides nothing from the next one."""


def static_problems(stage: StageClass) -> list[str]:
    """Return a sentence for everything that is wrong with a stage class; an empty list if nothing is."""
    return [*_identity(stage), *_options(stage), *_ports(stage), *_kind(stage)]


def _identity(stage: StageClass) -> Iterator[str]:
    if getattr(stage, "api_version", None) != API_VERSION:
        yield f"api_version is {getattr(stage, 'api_version', 'missing')}, this shipctl has {API_VERSION}"
    if "__doc__" not in vars(stage) or not stage.summary():
        yield "it has no docstring; its first line is what `shipctl stages list` shows"
    abstract = sorted(getattr(stage, "__abstractmethods__", ()))
    if abstract:
        yield f"it does not define {', '.join(abstract)}"


def _options(stage: StageClass) -> Iterator[str]:
    model = stage.options_model
    for name, field in model.model_fields.items():
        if not field.description:
            yield f"option {name!r} has no description"
    if model.model_config.get("extra") != "forbid":
        yield "its options accept unknown keys; derive them from StageOptions"
    try:
        json.dumps(model.model_json_schema())
    except Exception as exc:  # noqa: BLE001  (pydantic calls code of the plugin here)
        yield f"its options have no JSON schema: {type(exc).__name__}: {exc}"


def _ports(stage: StageClass) -> Iterator[str]:
    try:
        inputs, outputs = input_ports(stage), output_ports(stage)
    except PluginError as exc:
        yield str(exc)
        return
    if issubclass(stage, Stage):
        if not outputs:
            yield "it declares no output, so nothing could ever come of it"
        if stage.subject is not None and stage.subject not in inputs:
            yield f"subject {stage.subject!r} is none of its inputs ({', '.join(inputs) or 'none'})"
        if stage.metrics and not any(
            issubclass(kind, Report) for port in outputs.values() for kind in port.kinds
        ):
            yield "it declares metrics but no output that is a Report"


def _kind(stage: StageClass) -> Iterator[str]:
    if issubclass(stage, ReleaseStage):
        required = [name for name, field in stage.state_model.model_fields.items() if field.is_required()]
        if required:
            yield f"its state has fields without a default ({', '.join(required)}); the first step gets it bare"
    elif issubclass(stage, Stage):
        if stage.isolation not in {"process", "inline"}:
            yield f"isolation is {stage.isolation!r}; it is 'process' or 'inline'"
        if stage.max_age is not None and not stage.measurement:
            yield "max_age is for measurements only; set `measurement = True`"


def frameworks_loaded() -> frozenset[str]:
    """Return the frameworks that this process has imported."""
    return FRAMEWORKS.intersection(sys.modules)


def frameworks_imported_by(module: str) -> list[str]:
    """Import ``module`` in a fresh process and return the frameworks that this imported.

    :raises PluginError: if the module does not import
    """
    return frameworks_imported_by_each([module])[module]


def frameworks_imported_by_each(modules: Sequence[str]) -> dict[str, list[str]]:
    """Do so for several modules, each in a process of its own that has imported nothing but what all stages import.

    :raises PluginError: if one of them does not import
    """
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTING, " ".join(FRAMEWORKS), *modules],
        capture_output=True,
        text=True,
        timeout=_IMPORT_TIMEOUT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    found = {module: frameworks for module, *frameworks in map(str.split, done.stdout.splitlines())}
    if done.returncode:
        module = next(module for module in modules if module not in found)
        last = done.stderr.strip().rpartition("\n")[2]
        message = f"{module} does not import: {last}"
        raise PluginError(message)
    return found
