"""Stage `torch-export`: from a PyTorch module to an ONNX graph that does the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TorchModel
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import arrays, graph, parity
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.reports import sealed, write_report
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins._onnx.torch_source import TorchSource, describe, torch_source

if TYPE_CHECKING:
    from onnx import ModelProto

EXAMPLE_BATCH = 4
"""Batch size of the inputs that are traced: not 0 or 1, which torch.export takes for constants."""

_NOISE = ("torchvision is not installed", "TreeSpec", "shares the same shape constraints")
"""Says nothing about the model: optional operators, a deprecation inside of torch, dimensions of one name."""


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    opset: int = Field(default=21, ge=1, description="Version of the ONNX operator set.")


class Inputs(StageInputs):
    """What the stage takes."""

    model: TorchModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class TorchExport(Stage[Options, Inputs, Outputs]):
    """Export a PyTorch model to ONNX and compare the two.

    The dimensions that the signature names (`batch`) vary in the graph as well. Inputs go to `forward` by
    name where its parameters are called like them, else by position. Parity is measured in ONNX Runtime on
    random inputs of several batch sizes, and on calibration data where there is some.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {
        "torch": "shipctl[torch]",
        "onnxscript": "shipctl[torch]",
        "safetensors": "shipctl[torch]",
        "onnxruntime": "shipctl[cpu]",
    }
    metrics = parity.METRICS
    tools = ("torch", "onnxscript", "onnx", "onnxruntime", "safetensors", "numpy")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Build, export, check against the signature, compare."""
        import torch

        torch.set_num_threads(ctx.threads)
        source_model, options = inputs.model, self.options
        folder = ctx.workdir / "model"
        with torch_source(source_model, seed=ctx.seed) as source:
            example = arrays.random_inputs(
                source_model.signature, arrays.fixed_batch(source_model.signature) or EXAMPLE_BATCH, ctx.seed,
                options.dimensions,
            )  # fmt: skip
            _require(
                graph.array_differences(source.run(example), example, source_model.signature), "the model"
            )
            with routed(ctx.log, *_NOISE), temporary_files_in(ctx.workdir / "tmp"):
                exported = _export(source, example, options.opset, folder)
            _require(graph.graph_differences(exported, source_model.signature), "the exported graph")
            graph.declare(exported, source_model.signature)
            graph.strip_notes(exported)
            _save(exported, folder)
            measured = _compare(source, folder, inputs, ctx, options)
        model = sealed(
            OnnxModel.at(
                folder,
                signature=source_model.signature,
                opset=options.opset,
                derived_from=source_model.digest,
            )
        )
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"Export to ONNX, opset {options.opset}",
            metrics=measured.metrics(), details=measured.details() | {"nodes": graph.node_count(exported)},
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)


def _require(differences: Sequence[str], what: str) -> None:
    if differences:
        message = f"{what} is not as the signature says: {'; '.join(differences)}; correct the signature or the model"
        raise StageError(message)


def _dynamic_shapes(source: TorchSource) -> Any:
    import torch

    dims: dict[str, Any] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for spec in source.inputs:
        shapes[spec.name] = {
            axis: dims.setdefault(size, torch.export.Dim(size)) for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }  # fmt: skip
    return shapes if source.by_name else tuple(shapes.values())


def _export(source: TorchSource, example: Mapping[str, Any], opset: int, folder: Path) -> ModelProto:
    """Return the exported graph; what does not fit into one file lies in ``folder`` already."""
    import onnx
    import torch

    args, kwargs = source.arguments(example)
    signature = source.signature
    try:
        program = torch.onnx.export(
            source.module, args, kwargs=kwargs, dynamo=True, verbose=False, opset_version=opset,
            dynamic_shapes=_dynamic_shapes(source),
            input_names=[spec.name for spec in source.inputs],
            output_names=[spec.name for spec in signature.outputs],
        )  # fmt: skip
    except Exception as exc:  # torch.export raises whatever an operator or a guard raises
        cause = exc.__cause__ or exc
        message = f"torch.onnx.export fails: {describe(cause)}"
        raise StageError(message) from exc
    if program is None:
        message = "torch.onnx.export returned no program; use a torch of version 2.6 or later"
        raise StageError(message)
    weights = sum(value.numel() * value.element_size() for value in source.module.state_dict().values())
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
    # they come in the order of forward's parameters
    order = [spec.name for spec in signature.inputs]
    values = sorted(
        model.graph.input, key=lambda value: order.index(value.name) if value.name in order else len(order)
    )
    del model.graph.input[:]
    model.graph.input.extend(values)
    return model


def _save(model: ModelProto, folder: Path) -> None:
    if (folder / graph.MODEL_FILE).exists():  # the weights lie beside it
        (folder / graph.MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    else:
        graph.save_model(model, folder)


def _compare(
    source: TorchSource, folder: Path, inputs: Inputs, ctx: StageContext, options: Options
) -> parity.Parity:
    session = open_session(folder / graph.MODEL_FILE, threads=ctx.threads)
    signature, measured = source.signature, parity.Parity()
    for batch in arrays.batch_sizes(signature, options.batches):
        feed = arrays.random_inputs(signature, batch, ctx.seed + 1, options.dimensions)
        after = run_session(session, feed)
        _require(graph.array_differences(after, feed, signature), f"the exported graph at batch {batch}")
        measured.add(f"random inputs, batch {batch}", source.run(feed), after)
    if inputs.calibration is not None:
        for case, feed in arrays.sample_batches(
            inputs.calibration, signature, options.samples, max(options.batches)
        ):
            measured.add(case, source.run(feed), run_session(session, feed))
    return measured
