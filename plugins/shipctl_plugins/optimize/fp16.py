"""Stage `fp16`: half precision where float16 carries the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shipctl.stages.base import Bound, Stage
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import parity
from shipctl_plugins._onnx.activations import Observed
from shipctl_plugins._onnx.float16_range import unsafe_nodes
from shipctl_plugins.optimize import _halves

if TYPE_CHECKING:
    from onnx import ModelProto


class Options(_halves.HalfOptions):
    """What stands below ``with:``."""

    keep_io_types: bool = Field(
        default=True,
        description="Leave the model's inputs and outputs in float32; without it callers send and get float16.",
    )
    keep_unsafe: bool = Field(
        default=True,
        description="Keep nodes in float32 whose values overflow or underflow in float16.",
    )
    margin: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="With keep_unsafe: the part of float16's range (65504) that measured values may use.",
    )
    max_abs_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of any output element."
    )
    max_rel_error: float | None = Bound(
        0.01, ge=0, description="Largest absolute error of an output, divided by its largest magnitude."
    )
    min_cosine: float | None = Bound(
        0.999, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )


class Fp16(Stage[Options, _halves.Inputs, _halves.Outputs]):
    """Convert an ONNX graph to half precision, except for the nodes whose values float16 does not carry.

    The calibration data (random inputs without it) goes through the model, and a node stays in float32 where a
    tensor around it exceeds `margin` of float16's range, is altogether below its normal numbers, or is a weight
    that rounding would take too much of. The report names those nodes and the reasons.

    Parity is measured with a float32 twin that rounds every float16 tensor, because ONNX Runtime's CPU kernels
    leave out roundings that a GPU does, and with the model itself. The bounds allow some dozen roundings of 2⁻¹¹
    (normwise error 0.01). A GPU is what makes it faster: a CPU computes it in float32 with casts around.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = _halves.METRICS
    tools = ("ml-dtypes", "numpy", "onnx", "onnxruntime")

    def run(self, inputs: _halves.Inputs, ctx: StageContext) -> _halves.Outputs:
        """Watch, convert, check, compare."""
        plan = _halves.Plan(
            "float16", "fp16", "Half precision (float16)", self.options.keep_io_types, self._guard
        )
        return _halves.convert(inputs, self.options, plan, ctx)

    def judge(self, outputs: _halves.Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)

    def _guard(self, model: ModelProto, seen: Mapping[str, Observed]) -> Mapping[str, str]:
        return unsafe_nodes(model, seen, self.options.margin) if self.options.keep_unsafe else {}
