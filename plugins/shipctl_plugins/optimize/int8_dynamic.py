"""Stage `int8-dynamic`: INT8 weights, and activations that are quantised while the model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.stages.artifacts import OnnxModel
from shipctl.stages.base import Stage
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import graph
from shipctl_plugins._onnx.datasets import check_readable
from shipctl_plugins._onnx.layers import quantized_layers
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.plain_graphs import known_nodes, plain_graph
from shipctl_plugins._onnx.products import split_gemms
from shipctl_plugins._onnx.sensitivity import Lowered
from shipctl_plugins.optimize._quantized import (
    METRICS,
    READS,
    Inputs,
    Outputs,
    UncalibratedOptions,
    cases,
    finish,
    judge,
)

if TYPE_CHECKING:
    from onnx import ModelProto

OLDEST_OPSET = 11
"""The first one with DynamicQuantizeLinear."""
_OTHER_FLOATS = (10, 11, 16)
"""FLOAT16, DOUBLE and BFLOAT16 of onnx.TensorProto, which DynamicQuantizeLinear does not take."""
_NOISE = ("Please consider to run pre-processing",)


class Options(UncalibratedOptions):
    """What stands below ``with:``."""

    op_types: tuple[Literal["MatMul", "Gemm", "Conv", "LSTM", "Attention", "Gather"], ...] = Field(
        default=("MatMul", "Gemm", "LSTM", "Attention"),
        min_length=1,
        description="Operator types to quantise. Conv is slower that way than in floating point on most CPUs, Gather "
        "(embeddings) only gets smaller.",
    )
    weight_type: Literal["qint8", "quint8"] = Field(default="qint8", description="Type of quantised weights.")
    per_channel: bool = Field(
        default=False, description="Give every output channel of a weight a scale of its own."
    )
    reduce_range: bool = Field(
        default=False,
        description="Use 7 bits for weights: on x86 without VNNI, sums of 8-bit products can overflow.",
    )


class Int8Dynamic(Stage[Options, Inputs, Outputs]):
    """Quantise weights to INT8, and activations on the fly with the range that each request has.

    Done by ONNX Runtime, without calibration data; for models of matrix products (transformers, MLPs, LSTMs). Gemms
    become MatMul and Add before. Parity is measured on calibration samples where there are some, else on random
    inputs. With `budget.accuracy_drop` and labelled `data.evaluation`, layers stay in floating point where the metric
    would drop by more, as few as it takes. The stage fails when nothing was quantised.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    reads = READS
    metrics = METRICS
    tools = ("onnxruntime", "onnx", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Look for what reads the data."""
        check_readable(ctx)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Prepare, quantise, count, keep what the budget asks for, compare."""
        options, source = self.options, inputs.model
        with temporary_files_in(ctx.workdir / "tmp"):
            dynamic = _Dynamic(source, options, ctx)
            layers = quantized_layers(dynamic.before, dynamic.build(frozenset()))
            if not layers:
                besides = " beside those in `exclude`" if options.exclude else ""
                message = (
                    f"nothing was quantised: the graph has no {' or '.join(options.op_types)} with a constant float32 "
                    f"weight{besides}; leave the stage out"
                )
                raise StageError(message)
            return finish(
                Lowered(dynamic.before, layers, dynamic.build), source, inputs.evaluation, options,
                cases(source.signature, inputs.calibration, options, ctx.seed), ctx,
                title="INT8, ranges at run time", precision="int8",
            )  # fmt: skip

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds, and the loss with the budget."""
        return judge(outputs.report, self.options, ctx)


class _Dynamic:
    """A model, ready to be quantised with any layers left out."""

    def __init__(self, source: OnnxModel, options: Options, ctx: StageContext) -> None:
        self._options, self._ctx = options, ctx
        # plain: shapes that the exporter left behind can contradict the inference that comes now
        self.before = plain_graph(graph.load_source(source))
        if graph.opset_of(self.before) < OLDEST_OPSET:
            message = (
                f"the graph has opset {graph.opset_of(self.before)}, ranges at run time came with {OLDEST_OPSET}; "
                "export it with a newer opset"
            )
            raise StageError(message)
        excluded = known_nodes(options.exclude, self.before.graph, "exclude")
        others = {
            tensor.name for tensor in self.before.graph.initializer if tensor.data_type in _OTHER_FLOATS
        }
        self._chosen = [
            node.name
            for node in self.before.graph.node
            if node.op_type in options.op_types
            and node.name not in excluded
            and not others.intersection(node.input)
        ]
        split_gemms(self.before)
        self._path = graph.save_model(self.before, ctx.workdir / "tmp" / "plain") / graph.MODEL_FILE
        self._large = self.before.ByteSize() > graph.INLINE_LIMIT

    def build(self, kept: frozenset[str]) -> ModelProto:
        """Quantise all that the options say but these nodes.

        :raises StageError: if the quantiser fails
        """
        from onnxruntime.quantization import QuantType, quantize_dynamic

        chosen = [name for name in self._chosen if name not in kept]
        if not chosen:  # for the quantiser, no names mean all
            return graph.load_model(self._path)
        folder = self._ctx.workdir / "tmp" / "quantized"
        folder.mkdir(parents=True, exist_ok=True)
        options = self._options
        types = sorted({node.op_type for node in self.before.graph.node if node.name in set(chosen)})
        with routed(self._ctx.log, *_NOISE):
            try:
                quantize_dynamic(
                    self._path, folder / graph.MODEL_FILE, op_types_to_quantize=types, per_channel=options.per_channel,
                    reduce_range=options.reduce_range, nodes_to_quantize=chosen,
                    weight_type=QuantType.QInt8 if options.weight_type == "qint8" else QuantType.QUInt8,
                    use_external_data_format=self._large,
                )  # fmt: skip
            except Exception as exc:  # the quantiser raises whatever an operator makes it raise
                message = f"ONNX Runtime's quantiser fails: {type(exc).__name__}: {exc}"
                raise StageError(message) from exc
        return graph.load_model(folder / graph.MODEL_FILE)
