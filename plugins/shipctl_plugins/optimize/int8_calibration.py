"""Stage `int8-calibration`: static INT8 quantisation with ranges taken from real data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Bound, Stage, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import arrays, graph, parity
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.reports import sealed, write_report
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

OLDEST_OPSET = 13
HISTOGRAM_BINS = {"minmax": 0, "entropy": 512, "percentile": 2048}
"""Bins per tensor. ONNX Runtime's own 128 for entropy leave its search a single candidate, the full range."""

_NOISE = ("Collecting tensor data", "Finding optimal threshold", "Number of ", "Percentile :")
"""Progress that the calibrators print, the same for every model."""


class Options(parity.ParityOptions):
    """What stands below ``with:``."""

    method: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax", description="How the range of each activation is chosen from the calibration data."
    )
    percentile: float = Field(
        default=99.999,
        gt=50,
        le=100,
        description="With method percentile: the share (in percent) of values kept.",
    )
    per_channel: bool = Field(
        default=True, description="Give every output channel of a weight a scale of its own."
    )
    samples: int = Field(default=512, ge=1, description="How many calibration samples are used at most.")
    batch: int = Field(
        default=16, ge=1, description="Samples per calibration run, if the model's batch varies."
    )
    activation_type: Literal["quint8", "qint8"] = Field(
        default="quint8",
        description="Type of quantised activations: quint8 is fast on CPUs, TensorRT needs qint8.",
    )
    symmetric: bool = Field(
        default=False, description="Let activations have zero point 0, as TensorRT needs it."
    )
    quantize_bias: bool = Field(
        default=True, description="Quantise biases to INT32; TensorRT does not take those."
    )
    op_types: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Operator types to quantise; left out, all that ONNX Runtime can.",
    )
    exclude: tuple[str, ...] = Field(default=(), description="Names of nodes that stay in floating point.")
    min_cosine: float | None = Bound(
        0.98, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        0.98,
        ge=0,
        le=1,
        description="Smallest fraction of calibration samples whose largest output stays the same.",
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    calibration: Dataset


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


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
    on ONNX Runtime's own optimiser breaks such a graph on x86 when activations are qint8.

    Parity is measured on the calibration samples: random inputs are outside of the ranges chosen from them.
    The stage fails when nothing was quantised.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = (*parity.METRICS, "quantized.*")
    tools = ("onnxruntime", "onnx", "numpy")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Prepare, calibrate, quantise, count, compare."""
        options, source = self.options, inputs.model
        data = arrays.model_inputs(
            arrays.load_arrays(inputs.calibration), source.signature, inputs.calibration.role
        )
        data = {name: array[: options.samples] for name, array in data.items()}
        samples = len(next(iter(data.values())))
        if not samples:
            message = "calibration data is empty; give some hundred samples of what the model will see"
            raise StageError(message)
        feeds = [feed for feed, _ in arrays.batches(data, options.batch, source.signature)]
        scratch = ctx.workdir / "tmp"
        with routed(ctx.log, *_NOISE), temporary_files_in(scratch):
            quantized = _quantize(source.path, feeds, options, scratch)
        counted = _count(quantized)
        if not counted:
            wanted = (
                " or ".join(options.op_types) if options.op_types else "operator that ONNX Runtime quantises"
            )
            message = (
                f"nothing was quantised: the graph has no {wanted} with a float weight; leave the stage out"
            )
            raise StageError(message)
        graph.declare(quantized, source.signature)
        graph.strip_notes(quantized)
        folder = graph.save_model(quantized, ctx.workdir / "model")
        graph.check_model(folder / graph.MODEL_FILE)
        measured = _compare(source.path, folder / graph.MODEL_FILE, feeds, ctx)
        model = sealed(
            OnnxModel.at(
                folder,
                signature=source.signature,
                opset=graph.opset_of(quantized),
                precision="int8",
                derived_from=source.digest,
            )
        )
        total = Counter(node.op_type for node in graph.load_model(source.path).graph.node)
        numbers = {"quantized.nodes": float(sum(counted.values())), "quantized.samples": float(samples)}
        table = [
            {"op_type": name, "quantized": counted[name], "before": total[name]} for name in sorted(counted)
        ]
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"INT8, ranges by {options.method}",
            metrics=measured.metrics() | numbers, details=measured.details() | {"quantized": table},
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)


def _quantize(path: Path, feeds: Sequence[Mapping[str, Any]], options: Options, scratch: Path) -> ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = graph.load_model(path)
    if graph.opset_of(model) < OLDEST_OPSET:
        message = (
            f"the graph has opset {graph.opset_of(model)}, scales per channel came with {OLDEST_OPSET}; "
            "export it with a newer opset"
        )
        raise StageError(message)
    large = model.ByteSize() > graph.INLINE_LIMIT
    # shapes that the exporter left behind can contradict the inference that comes now
    model.graph.ClearField("value_info")
    plain = graph.save_model(model, scratch / "source") / graph.MODEL_FILE
    prepared = scratch / "prepared.onnx"
    try:
        # onnx's own inference is enough here; the symbolic one would need sympy
        quant_pre_process(plain, prepared, skip_symbolic_shape=True, save_as_external_data=large)
        ranges = _ranges(prepared, feeds, options, scratch, large=large)
        quantizer = QDQQuantizer(
            graph.load_model(prepared), options.per_channel,
            reduce_range=False, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if options.activation_type == "qint8" else QuantType.QUInt8,
            tensors_range=ranges, nodes_to_quantize=[], nodes_to_exclude=list(options.exclude),
            op_types_to_quantize=list(options.op_types or sorted({*QDQRegistry, *QLinearOpsRegistry})),
            extra_options={
                "ActivationSymmetric": options.symmetric, "WeightSymmetric": True,
                "QuantizeBias": options.quantize_bias,
            },
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    except Exception as exc:  # the quantiser raises whatever an operator makes it raise
        message = f"ONNX Runtime's quantiser fails: {type(exc).__name__}: {exc}"
        raise StageError(message) from exc
    quantized: ModelProto = quantizer.model.model
    return quantized


def _ranges(
    model: Path, feeds: Sequence[Mapping[str, Any]], options: Options, scratch: Path, *, large: bool
) -> Any:
    """Return the range of every activation over ``feeds``.

    Not left to `quantize_static`, which has no option for the number of bins and keeps the activations of all
    samples in memory; here it is one batch at a time.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[options.method]  # fmt: skip

    # in ONNX Runtime, no choice of operators means all; the calibrator then looks at every float tensor
    calibrator = create_calibrator(
        model, list(options.op_types or ()), str(scratch / "augmented.onnx"), method, large,
        extra_options={"symmetric": options.symmetric, "percentile": options.percentile}
        | ({"num_bins": HISTOGRAM_BINS[options.method]} if method != CalibrationMethod.MinMax else {}),
    )  # fmt: skip
    for feed in feeds:
        calibrator.collect_data(_Reader(feed))
    return calibrator.compute_data()


class _Reader:
    """A calibration data reader, as ONNX Runtime wants it, over one batch."""

    def __init__(self, feed: Mapping[str, Any]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([dict(feed)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _count(model: ModelProto) -> Counter[str]:
    """Return, by type, how many operators take a quantised weight or give a quantised sum of products.

    An operator counts when one of its inputs is a dequantised constant: activations alone buy nothing.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    weights = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return Counter(
        node.op_type
        for node in model.graph.node
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} and weights & set(node.input)
    )


def _compare(
    before: Path, after: Path, feeds: Sequence[Mapping[str, Any]], ctx: StageContext
) -> parity.Parity:
    old, new = open_session(before, threads=ctx.threads), _open_quantized(after, ctx.threads)
    measured = parity.Parity()
    for index, feed in enumerate(feeds, start=1):
        measured.add(f"calibration data, batch {index}", run_session(old, feed), run_session(new, feed))
    return measured


def _open_quantized(path: Path, threads: int) -> InferenceSession:
    try:
        return open_session(path, threads=threads)
    except StageError as exc:
        if "does not match y_zero_point type" not in str(exc):
            raise
        # https://github.com/microsoft/onnxruntime/issues/25526: on x86 it turns INT8 activations into UINT8 and
        # forgets the output_dtype that it gave to quantisers moved past a Reshape or Transpose
        message = f"{exc}; ONNX Runtime does this from opset 21 on: export the model with `opset: 20`"
        raise StageError(message) from exc
