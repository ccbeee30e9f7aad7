"""From an open PyTorch model to an ONNX graph, by whichever of torch's exporters takes it."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.context import StageContext
from shipctl_plugins._onnx import graph
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._sources.importing import describe
from shipctl_plugins._sources.torch_source import TorchSource, ordered, plain_module

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

EXAMPLE_BATCH = 4
"""Batch size of the inputs that are traced: not 0 or 1, which torch.export takes for constants."""

_NOISE = (
    # optional operators, a deprecation inside of torch, dimensions of one name
    "torchvision is not installed", "TreeSpec", "shares the same shape constraints",
    # of TorchScript: sizes and counters of its converter, and that it is the old way
    "0/1 specialized", "Manually populate", "legacy TorchScript-based", "The feature will be removed",
    "no signature found for <torch.ScriptMethod", "`torch.jit.",
)  # fmt: skip
"""Says nothing about the model."""


def export_graph(
    source: TorchSource, example: Mapping[str, Any], opset: int, folder: Path, ctx: StageContext
) -> ModelProto:
    """Return ``source`` as an ONNX graph of version ``opset``, traced with ``example``.

    Its inputs are in the signature's order. What does not fit into one file lies in ``folder`` already. TorchScript
    goes through torch's converter to an exported program; where that fails (at a loop), through the exporter that is
    made for TorchScript, which ends at an earlier opset.

    :raises StageError: if torch does not export it, or not to that opset
    """
    with routed(ctx.log, *_NOISE), temporary_files_in(ctx.workdir / "tmp"):
        if not source.script:
            model = _traced(source, source.module, example, opset, folder)
        else:
            try:
                module = _converted(source, example)
            except Exception as exc:  # noqa: BLE001  (the converter raises whatever a node raises)
                ctx.log(f"TorchScript: {describe(exc)}; exported by torch's exporter for TorchScript instead")
                model = _scripted(source, example, opset, describe(exc))
            else:
                model = _traced(source, module, example, opset, folder)
    # they come in the order of forward's parameters
    order = [spec.name for spec in source.signature.inputs]
    values = sorted(
        model.graph.input, key=lambda value: order.index(value.name) if value.name in order else len(order)
    )
    del model.graph.input[:]
    model.graph.input.extend(values)
    return model


def _traced(
    source: TorchSource, module: nn.Module, example: Mapping[str, Any], opset: int, folder: Path
) -> ModelProto:
    import onnx
    import torch

    args, kwargs = source.arguments(example)
    try:
        program = torch.onnx.export(
            module, args, kwargs=kwargs, dynamo=True, verbose=False, opset_version=opset,
            dynamic_shapes=_dynamic_shapes(source, module),
            input_names=[spec.name for spec in source.inputs],
            output_names=[spec.name for spec in source.signature.outputs],
        )  # fmt: skip
    except Exception as exc:  # torch.export raises whatever an operator or a guard raises
        message = f"torch.onnx.export fails: {describe(exc.__cause__ or exc)}"
        raise StageError(message) from exc
    if program is None:
        message = "torch.onnx.export returned no program; use a torch of version 2.6 or later"
        raise StageError(message)
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    model: ModelProto
    if weights > graph.INLINE_LIMIT:
        folder.mkdir(parents=True)
        program.save(folder / graph.MODEL_FILE, external_data=True)
        model = onnx.load(folder / graph.MODEL_FILE, load_external_data=False)
    else:
        model = program.model_proto
    reached = graph.opset_of(model)
    if reached != opset:
        message = (
            f"torch {torch.__version__} does not export this model to opset {opset}, it stayed at {reached}; "
            f"set `opset: {reached}`"
        )
        raise StageError(message)
    return model


def _dynamic_shapes(source: TorchSource, module: nn.Module) -> Any:
    """Return, for each of forward's parameters, which of its dimensions vary: by name or, without names, in order."""
    import torch

    dims: dict[str, Any] = {}
    shapes = [
        {
            axis: dims.setdefault(size, torch.export.Dim(size))
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        for spec in source.inputs
    ]
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return (tuple(shapes),)
    named = zip((spec.name for spec in source.inputs), shapes, strict=True)
    return dict(named) if source.by_keyword else tuple(shapes)


def _converted(source: TorchSource, example: Mapping[str, Any]) -> nn.Module:
    """Return TorchScript as a module that can be traced."""
    from torch._export.converter import TS2EPConverter

    args, _ = source.arguments(example)
    script: Any = source.module
    module = plain_module(TS2EPConverter(script, args).convert().module(check_guards=False))
    module.forward = ordered(module.forward, source.signature)
    return module


def _scripted(source: TorchSource, example: Mapping[str, Any], opset: int, why: str) -> ModelProto:
    import onnx
    import torch
    from torch.onnx._constants import ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET as LAST

    if opset > LAST:
        message = (
            f"only torch's exporter for TorchScript takes this model ({why}), and that goes up to opset {LAST}; set "
            f"`opset: {LAST}`, or save the model with torch.export.save (.pt2)"
        )
        raise StageError(message)
    args, _ = source.arguments(example)
    path = Path(tempfile.mkdtemp()) / graph.MODEL_FILE
    try:
        torch.onnx.export(
            source.module, args, path, dynamo=False, verbose=False, opset_version=opset,
            input_names=[spec.name for spec in source.inputs],
            output_names=[spec.name for spec in source.signature.outputs],
            dynamic_axes=_axes(source.signature),
        )  # fmt: skip
        model: ModelProto = onnx.load(path)
    except Exception as exc:  # an operator or its translation may raise anything
        message = (
            f"torch exports this TorchScript neither by its converter ({why}) nor directly ({describe(exc)}); "
            "save the model with torch.export.save (.pt2)"
        )
        raise StageError(message) from exc
    return model


def _axes(signature: Signature) -> dict[str, dict[int, str]]:
    return {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in (*signature.inputs, *signature.outputs)
    }


def save_graph(model: ModelProto, folder: Path) -> None:
    """Write what :func:`export_graph` returned to ``folder``, where its weights may lie already."""
    path = folder / graph.MODEL_FILE
    if path.exists():
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        graph.save_model(model, folder)
