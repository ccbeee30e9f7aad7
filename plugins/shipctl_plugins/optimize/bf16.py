"""Stage `bf16`: 16 bits with the range of float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from shipctl.stages.base import Bound, Stage
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import parity
from shipctl_plugins.optimize import _halves


class Options(_halves.HalfOptions):
    """What stands below ``with:``."""

    max_abs_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of any output element."
    )
    max_rel_error: float | None = Bound(
        0.1, ge=0, description="Largest absolute error of an output, divided by its largest magnitude."
    )
    min_cosine: float | None = Bound(
        0.99, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        0.97, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )


class Bf16(Stage[Options, _halves.Inputs, _halves.Outputs]):
    """Convert an ONNX graph to bfloat16, its inputs and outputs excepted.

    bfloat16 has float32's range and rounds by 2⁻⁸, eight times what float16 does: nothing overflows, and the
    bounds of parity are wider. Convolution and pooling take it from opset 22 on; export the model with that one.

    ONNX Runtime has few kernels for it on CPUs, so `evaluate` and `benchmark` mostly cannot run the result
    there. Parity is measured with a float32 twin that rounds every bfloat16 tensor, and with the model itself
    where it runs; `parity.emulated` is 1 where it does not, and the report says which operator it lacks.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = _halves.METRICS
    tools = ("ml-dtypes", "numpy", "onnx", "onnxruntime")

    def run(self, inputs: _halves.Inputs, ctx: StageContext) -> _halves.Outputs:
        """Convert, check, compare."""
        plan = _halves.Plan("bfloat16", "bf16", "bfloat16", keep_io=True)
        return _halves.convert(inputs, self.options, plan, ctx)

    def judge(self, outputs: _halves.Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)
