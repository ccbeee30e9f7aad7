"""Stage `onnx-simplify`: the same function with fewer nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.onnx_parity import compare_models
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import first_line

if TYPE_CHECKING:
    from onnx import ModelProto


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    opset: int | None = Field(
        default=None,
        ge=1,
        description="Version of the ONNX operator set to convert the graph to first; left out, it stays as it is.",
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class OnnxSimplify(Stage[Options, Inputs, Outputs]):
    """Fold constants, fuse and drop nodes of an ONNX graph, infer its shapes, check it and compare.

    Done by onnxslim. Inputs and outputs stay as they are, or the stage fails. With `opset` a graph of another operator
    set (an old one that quantisers do not take) is converted first, by onnx's version converter.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxslim": "shipctl[optimize]", "onnxruntime": "shipctl[cpu]"}
    metrics = (*parity.METRICS, "nodes.before", "nodes.after")
    tools = ("onnxslim", "onnx", "onnxruntime", "numpy")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Simplify, check, compare."""
        import onnxslim

        before = graph.load_source(inputs.model)
        nodes_before = graph.node_count(before)
        if self.options.opset is not None:
            before = _converted(before, self.options.opset)
        with routed(ctx.log), temporary_files_in(ctx.workdir / "tmp"):
            try:
                after = onnxslim.slim(before)
            except Exception as exc:  # onnxslim's passes raise whatever a broken graph makes them raise
                message = f"onnxslim {onnxslim.__version__} fails on this graph: {type(exc).__name__}: {exc}"
                raise StageError(message) from exc
        if after is None:
            message = f"onnxslim {onnxslim.__version__} returned no graph for this model; leave the stage out"
            raise StageError(message)
        # before IR version 4 every weight had to be an input as well, and onnxslim takes them out of there
        after.ir_version = max(after.ir_version, 4)
        differences = graph.graph_differences(after, inputs.model.signature)
        if differences:
            message = (
                f"the simplified graph has another signature: {'; '.join(differences)}; leave the stage out"
            )
            raise StageError(message)
        graph.declare(after, inputs.model.signature)
        graph.strip_notes(after)
        folder = graph.save_model(after, ctx.workdir / "model")
        graph.check_model(folder / graph.MODEL_FILE)
        measured = compare_models(inputs.model, folder, inputs.calibration, self.options, ctx)
        model = made_from(inputs.model, folder, graph.opset_of(after))
        nodes = {"nodes.before": float(nodes_before), "nodes.after": float(graph.node_count(after))}
        report = write_report(
            ctx.workdir, subject=model.digest, title="Simplified graph",
            metrics=measured.metrics() | nodes, details=measured.details(),
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)


def _converted(model: ModelProto, opset: int) -> ModelProto:
    """Return the graph in another operator set.

    :raises StageError: if onnx has no way for one of its operators
    """
    import onnx
    from onnx import version_converter

    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        message = (
            f"onnx {onnx.__version__} knows operator sets up to {newest}, not {opset}; set `opset: {newest}`"
        )
        raise StageError(message)
    if graph.opset_of(model) == opset:
        return model
    model.ir_version = max(model.ir_version, 4)
    try:
        return version_converter.convert_version(model, opset)
    except Exception as exc:  # the converter raises whatever an adapter raises
        message = (
            f"onnx cannot convert the graph from opset {graph.opset_of(model)} to {opset}: {_reason(exc)}; export "
            "the model with that opset"
        )
        raise StageError(message) from exc


def _reason(exc: Exception) -> str:
    """Return what the converter says without the place in its sources, and without its sign for versions."""
    return first_line(exc).rpartition("` failed: ")[2].replace("$", "")
