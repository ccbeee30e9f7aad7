"""Stage `int8-calibration`: static INT8 quantisation with ranges taken from real data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.base import Stage, StageInputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.datasets import check_readable
from shipctl_plugins._onnx.layers import quantized_layers
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.sensitivity import Lowered
from shipctl_plugins._onnx.session import open_session
from shipctl_plugins.optimize._quantized import METRICS, READS, Outputs, QuantizeOptions, finish, judge
from shipctl_plugins.optimize._static_int8 import NOISE, StaticInt8, StaticOptions, quantizable

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

    Array = np.ndarray[Any, np.dtype[Any]]


class Options(QuantizeOptions, StaticOptions):
    """What stands below ``with:``."""

    samples: int = Field(default=512, ge=1, description="How many calibration samples are used at most.")
    min_samples: int = Field(
        default=8,
        ge=1,
        description="How many there have to be: ranges from a sample or two cut off what other samples need.",
    )
    batch: int = Field(
        default=16, ge=1, description="Samples per calibration run, if the model's batch varies."
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    calibration: Dataset
    evaluation: Dataset | None = None


class Int8Calibration(Stage[Options, Inputs, Outputs]):
    """Quantise weights and activations of an ONNX model to INT8 (QDQ format) with calibration data.

    Done by ONNX Runtime. The defaults are the fastest on CPUs. For an artifact that TensorRT takes as well
    write::

        with:
          activation_type: qint8
          symmetric: true
          quantize_bias: false
          op_types: [Conv, Gemm, MatMul]

    and export a model with Reshape or Transpose between its products (a transformer) with `opset: 20`: from 21
    on ONNX Runtime's own optimiser breaks such a graph on x86 when activations are qint8. A transformer mostly wants
    `op_types: [MatMul, Gemm]` on CPUs as well: rounding what is added up and normalised costs it most.

    With `budget.accuracy_drop` and labelled `data.evaluation`, layers stay in floating point where the metric would
    drop by more, as few as it takes. Each layer's own error (signal to noise, with exact inputs) says which to try
    first, evaluations say which are needed.

    Parity is measured on the calibration samples: random inputs are outside of the ranges chosen from them.
    The stage fails when nothing was quantised.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    reads = READS
    metrics = METRICS
    tools = ("onnxruntime", "onnx", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Look for what reads the data, and for operators that ONNX Runtime does not quantise."""
        check_readable(ctx)
        if self.options.op_types is None:
            return  # and nothing heavy is imported for a plan
        known = quantizable()
        if unknown := [name for name in self.options.op_types if name not in known]:
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            message = f"op_types: ONNX Runtime does not quantise {unknown[0]}; {hint}"
            raise SpecError(message)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Prepare, calibrate, quantise, count, keep what the budget asks for, compare."""
        options, source = self.options, inputs.model
        data = _samples(inputs.calibration, source, options)
        feeds = [feed for feed, _ in arrays.batches(data, options.batch, source.signature)]
        scratch = ctx.workdir / "tmp"
        with temporary_files_in(scratch):
            static = StaticInt8(source, feeds, options, scratch, partial(routed, ctx.log, *NOISE))
            layers = quantized_layers(static.before, static.build(frozenset()))
            if not layers:
                raise StageError(_nothing(options))
            return finish(
                Lowered(static.before, layers, static.build), source, inputs.evaluation, options,
                ((f"calibration data, batch {index}", feed) for index, feed in enumerate(feeds, start=1)), ctx,
                title=f"INT8, ranges by {options.method}", precision="int8",
                numbers={"quantized.samples": float(len(next(iter(data.values()))))},
                open_quantized=_open_quantized,
            )  # fmt: skip

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds, and the loss with the budget."""
        return judge(outputs.report, self.options, ctx)


def _samples(calibration: Dataset, source: OnnxModel, options: Options) -> dict[str, Array]:
    """Return the samples that are used, by the names of the model's inputs.

    :raises StageError: if they are too few, not all of them numbers, or all the same
    """
    named = arrays.load_arrays(calibration, source.signature, limit=options.samples)
    data = arrays.model_inputs(named, source.signature, calibration.role)
    arrays.require_samples(data, options.min_samples, calibration.role)
    arrays.require_ranges(data, calibration.role)
    return data


def _nothing(options: Options) -> str:
    wanted = " or ".join(options.op_types) if options.op_types else "operator that ONNX Runtime quantises"
    besides = " beside those in `exclude`" if options.exclude else ""
    return (
        f"nothing was quantised: the graph has no {wanted} with a float weight{besides}; leave the stage out"
    )


def _open_quantized(path: Path, *, threads: int) -> InferenceSession:
    try:
        return open_session(path, threads=threads)
    except StageError as exc:
        if "does not match y_zero_point type" not in str(exc):
            raise
        # https://github.com/microsoft/onnxruntime/issues/25526: on x86 it turns INT8 activations into UINT8 and
        # forgets the output_dtype that it gave to quantisers moved past a Reshape or Transpose
        message = f"{exc}; ONNX Runtime does this from opset 21 on: export the model with `opset: 20`"
        raise StageError(message) from exc
