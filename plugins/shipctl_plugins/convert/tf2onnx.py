"""Stage `tf2onnx`: from a SavedModel or a Keras 3 file to an ONNX graph that does the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TensorflowModel
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.naming import name_as_declared
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._sources.source_parity import compare_with_source, require
from shipctl_plugins._sources.tensorflow_files import described
from shipctl_plugins._sources.tensorflow_source import TensorflowSource, import_tensorflow, tensorflow_source

if TYPE_CHECKING:
    from onnx import ModelProto

NEWEST_OPSET = 18
"""What tf2onnx 1.17 writes."""


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    opset: int = Field(
        default=NEWEST_OPSET, ge=9, le=NEWEST_OPSET, description="Version of the ONNX operator set."
    )
    signature_name: str | None = Field(
        default=None,
        min_length=1,
        description="The signature of a SavedModel to convert; left out, `serving_default`, or the only other one "
        "that has the declared inputs and outputs.",
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: TensorflowModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class Tf2onnx(Stage[Options, Inputs, Outputs]):
    """Convert a SavedModel or a Keras 3 file (`.keras`) to ONNX and compare the two.

    Inputs and outputs are found by the names that the signature in the spec says; where the model has made-up
    names, as Keras gives them, they go by order. Images stay as the model takes them (mostly `[batch, height,
    width, channels]`): write the shape so. The dimensions that the signature names (`batch`) vary in the graph as
    well. Parity with the model in TensorFlow is measured on random inputs of several batch sizes, and on
    calibration data where there is some.

    A Keras file with Lambda layers, and a SavedModel that reads or writes files, run code of their maker's and are
    refused unless the spec says `trust_pickle: true`.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {
        "tensorflow": "shipctl[tensorflow]",
        "keras": "shipctl[tensorflow]",
        "tf2onnx": "shipctl[tensorflow]",
        "onnxruntime": "shipctl[cpu]",
    }
    metrics = parity.METRICS
    tools = ("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Refuse to choose a signature where there are none."""
        for source in ctx.inputs.get("model", ()):
            if (
                self.options.signature_name is not None
                and isinstance(source.artifact, TensorflowModel)
                and source.artifact.format == "keras"
            ):
                raise SpecError("a .keras file has no signatures to choose from; take `signature_name` out")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Open, convert, check against the signature, compare."""
        source_model, options = inputs.model, self.options
        if source_model.size > graph.INLINE_LIMIT:
            message = (
                f"the model has {source_model.size} bytes, and tf2onnx makes graphs of one file, which ends at "
                f"{graph.INLINE_LIMIT}; store its weights in half precision or split the model"
            )
            raise StageError(message)
        import_tensorflow()
        with (
            routed(ctx.log),
            temporary_files_in(ctx.workdir / "tmp"),
            tensorflow_source(
                source_model, threads=ctx.threads, signature_name=options.signature_name
            ) as source,
        ):
            converted = _converted(source, options.opset)
            name_as_declared(converted, source_model.signature)
            require(graph.graph_differences(converted, source_model.signature), "the converted graph")
            graph.declare(converted, source_model.signature)
            graph.strip_notes(converted)
            folder = graph.save_model(converted, ctx.workdir / "model")
            graph.check_model(folder / graph.MODEL_FILE)
            measured = compare_with_source(
                source, folder / graph.MODEL_FILE, source_model.signature, inputs.calibration, options, ctx,
                parity.Parity(),
            )  # fmt: skip
        model = made_from(source_model, folder, graph.opset_of(converted))
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"Conversion to ONNX, opset {options.opset}",
            metrics=measured.metrics(), details=measured.details() | {"nodes": graph.node_count(converted)},
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)


def _converted(source: TensorflowSource, opset: int) -> ModelProto:
    """Return the graph of ``source``, whose inputs and outputs are in the signature's order.

    Not by `tf2onnx.convert.from_keras`, which fails on Keras 3's sequential models: a function does for all.
    """
    import tf2onnx

    tf2onnx.utils.INTERNAL_NAME = 1  # by its counter it also sorts
    model: ModelProto
    try:
        model, _ = tf2onnx.convert.from_function(source.function, input_signature=source.specs, opset=opset)
    except Exception as exc:  # tracing raises whatever a layer raises
        message = f"tf2onnx {tf2onnx.__version__} fails: {described(exc)}"
        raise StageError(message) from exc
    foreign = _foreign_operators(model)
    if foreign:
        message = (
            f"tf2onnx {tf2onnx.__version__} has no ONNX of opset {opset} for TensorFlow's {', '.join(foreign)}; "
            "write that part of the model otherwise"
        )
        raise StageError(message)
    # shapes of inner tensors are named by a counter; the checker infers them
    model.graph.ClearField("value_info")
    return model


def _foreign_operators(model: ModelProto) -> list[str]:
    """Return the operators that ONNX does not have: tf2onnx leaves what it cannot convert in the graph."""
    import onnx

    domains = {"", "ai.onnx", "ai.onnx.ml"}
    return sorted(
        {
            node.op_type
            for inner in graph.every_graph(model.graph)
            for node in inner.node
            if node.domain not in domains
            or not onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)
        }
    )
