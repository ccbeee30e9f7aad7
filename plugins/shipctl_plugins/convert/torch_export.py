"""Stage `torch-export`: from a PyTorch module to an ONNX graph that does the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TorchModel
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import arrays, graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._sources.source_parity import compare_with_source, require
from shipctl_plugins._sources.torch_onnx import EXAMPLE_BATCH, export_graph, save_graph
from shipctl_plugins._sources.torch_source import torch_source


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

    The model is a builder with its weights (safetensors or a state dict), an exported program (`.pt2`), TorchScript,
    or a pickled module where the spec says `trust_pickle: true`.

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
            require(
                graph.array_differences(source.run(example), example, source_model.signature), "the model"
            )
            exported = export_graph(source, example, options.opset, folder, ctx)
            require(graph.graph_differences(exported, source_model.signature), "the exported graph")
            graph.declare(exported, source_model.signature)
            graph.strip_notes(exported)
            save_graph(exported, folder)
            measured = compare_with_source(
                source, folder / graph.MODEL_FILE, source_model.signature, inputs.calibration, options, ctx,
                parity.Parity(),
            )  # fmt: skip
        model = made_from(source_model, folder, options.opset)
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"Export to ONNX, opset {options.opset}",
            metrics=measured.metrics(), details=measured.details() | {"nodes": graph.node_count(exported)},
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)
