"""Stage `int4`: weights of matrix products in 4 bits, by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from shipctl.errors import StageError, UnavailableError
from shipctl.spec.fields import fault
from shipctl.stages.base import Bound, Stage
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import graph
from shipctl_plugins._onnx.datasets import check_readable
from shipctl_plugins._onnx.layers import quantized_layers
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.plain_graphs import known_nodes, plain_graph
from shipctl_plugins._onnx.products import drop_unused_weights, split_gemms
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

QDQ_OPSET = 21
"""The first one with 4-bit integers, and scales per block, in DequantizeLinear."""
_REFUSED = {
    "gptq": "ONNX Runtime's GPTQ gives the weights of rtn: the error of a column never reaches the next ones",
    "awq": "ONNX Runtime's AWQ hands over to NVIDIA ModelOpt; use the stage `modelopt-quantize` for it",
}


class Options(UncalibratedOptions):
    """What stands below ``with:``."""

    algorithm: Literal["rtn", "hqq"] = Field(
        default="rtn",
        description="rtn rounds to the nearest value; hqq moves each block's zero point to where the error is least "
        "(https://mobiusml.github.io/hqq_blog), and needs torch.",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32, description="How many weights of a column have a scale in common."
    )
    symmetric: bool = Field(
        default=False, description="Let blocks have no zero point of their own; with rtn only."
    )
    accuracy_level: Literal[0, 1, 4] = Field(
        default=0,
        description="What products are computed in: 1 for FP32, 4 for INT8 (faster, less exact), 0 as the runtime "
        "likes; with rtn and format matmulnbits only.",
    )
    format: Literal["matmulnbits", "qdq"] = Field(
        default="matmulnbits",
        description="matmulnbits is ONNX Runtime's own operator; qdq is standard ONNX (DequantizeLinear, from opset 21 "
        "on) and with rtn only.",
    )
    min_cosine: float | None = Bound(
        0.95, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        0.95, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() in _REFUSED:
            raise fault(f"{value} is not available: {_REFUSED[value.lower()]}; write rtn or hqq")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        given = {
            "symmetric": self.symmetric,
            "accuracy_level": self.accuracy_level,
            "format": self.format == "qdq",
        }
        if self.algorithm == "hqq" and any(given.values()):
            name = next(name for name, value in given.items() if value)
            raise fault(f"`{name}` goes with algorithm rtn only; leave it out or write `algorithm: rtn`")
        if self.format == "qdq" and self.accuracy_level:
            raise fault(
                "`accuracy_level` is an attribute of MatMulNBits; leave it out or write `format: matmulnbits`"
            )
        return self


class Int4(Stage[Options, Inputs, Outputs]):
    """Quantise the constant matrices of matrix products to 4 bits, with a scale per block of weights.

    Done by ONNX Runtime; activations stay as they are. For models whose speed is that of reading weights (large
    matrices, small batches). Gemms become MatMul and Add before. Columns that are no multiple of `block_size` are
    filled up with zeros. Parity is measured on calibration samples where there are some, else on random inputs. With
    `budget.accuracy_drop` and labelled `data.evaluation`, layers stay in floating point where the metric would drop by
    more, as few as it takes. The stage fails when nothing was quantised.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]", "onnx_ir": "shipctl[optimize]"}
    reads = READS
    metrics = METRICS
    tools = ("onnxruntime", "onnx", "onnx-ir", "numpy", "torch")

    def check(self, ctx: CheckContext) -> None:
        """Look for torch where the algorithm needs it, and for what reads the data."""
        check_readable(ctx)
        if self.options.algorithm == "hqq" and find_spec("torch") is None:
            message = "algorithm hqq needs torch: pip install 'shipctl[torch]', or write `algorithm: rtn`"
            raise UnavailableError(message)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Prepare, quantise, count, keep what the budget asks for, compare."""
        options, source = self.options, inputs.model
        with temporary_files_in(ctx.workdir / "tmp"):
            before = plain_graph(graph.load_source(source))
            _require_opset(before, options)
            excluded = known_nodes(options.exclude, before.graph, "exclude")
            split_gemms(before)
            doubles = _of_doubles(before)

            def build(kept: frozenset[str]) -> ModelProto:
                return _quantize(before, kept | excluded | doubles, options, ctx)

            layers = quantized_layers(before, build(frozenset()))
            if not layers:
                besides = " beside those in `exclude`" if options.exclude else ""
                message = (
                    f"nothing was quantised: the graph has no MatMul or Gemm with a constant matrix{besides}; "
                    "leave the stage out"
                )
                raise StageError(message)
            return finish(
                Lowered(before, layers, build), source, inputs.evaluation, options,
                cases(source.signature, inputs.calibration, options, ctx.seed), ctx,
                title=f"INT4 weights by {options.algorithm}, blocks of {options.block_size}", precision="int4",
            )  # fmt: skip

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds, and the loss with the budget."""
        return judge(outputs.report, self.options, ctx)


def _of_doubles(model: ModelProto) -> frozenset[str]:
    """Return the nodes with weights of float64, which neither of the formats takes."""
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.DOUBLE}
    return frozenset(node.name for node in model.graph.node if weights.intersection(node.input))


def _require_opset(model: ModelProto, options: Options) -> None:
    if options.format == "qdq" and graph.opset_of(model) < QDQ_OPSET:
        message = (
            f"the graph has opset {graph.opset_of(model)}, 4-bit integers in standard ONNX came with {QDQ_OPSET}; "
            "export it with a newer opset, or write `format: matmulnbits`"
        )
        raise StageError(message)


def _quantize(before: ModelProto, kept: frozenset[str], options: Options, ctx: StageContext) -> ModelProto:
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(before)
    # imported with its loggers routed: at import it sets up the root logger
    with routed(ctx.log, "not writable"):
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            HQQWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )
        from onnxruntime.quantization.quant_utils import QuantFormat

        if options.algorithm == "hqq":
            algorithm = HQQWeightOnlyQuantConfig(block_size=options.block_size)
        else:
            algorithm = DefaultWeightOnlyQuantConfig(
                block_size=options.block_size, is_symmetric=options.symmetric,
                accuracy_level=options.accuracy_level or None,
                quant_format=QuantFormat.QDQ if options.format == "qdq" else QuantFormat.QOperator,
            )  # fmt: skip
        try:
            quantizer = MatMulNBitsQuantizer(twin, nodes_to_exclude=sorted(kept), algo_config=algorithm)
            quantizer.process()
        except Exception as exc:  # the quantiser raises whatever a graph makes it raise
            message = f"ONNX Runtime's quantiser fails: {type(exc).__name__}: {exc}"
            raise StageError(message) from exc
    quantized: ModelProto = quantizer.model.model
    drop_unused_weights(quantized)
    return quantized
