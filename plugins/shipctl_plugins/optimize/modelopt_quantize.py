"""Stage `modelopt-quantize`: INT8, FP8, INT4 weights or mixed precision by NVIDIA ModelOpt, for TensorRT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Bound, Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl_plugins._onnx import arrays, graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.plain_graphs import known_nodes, plain_graph
from shipctl_plugins._onnx.quantized import PRODUCTS, GraphTypes, Product
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import NoKernelError, open_session, run_session
from shipctl_plugins.optimize import _modelopt

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    Array = np.ndarray[Any, np.dtype[Any]]

METHODS = {
    "int8": ("entropy", "max"),
    "fp8": ("entropy", "max"),
    "int4": ("awq_clip", "awq_lite", "awq_full", "rtn_dq"),
    "autocast": (),
}
"""Calibration methods by mode, the default first. Its `rtn` writes what neither ONNX Runtime nor TensorRT takes."""
WITHOUT_DATA = "rtn_dq"


class Options(parity.ParityOptions):
    """What stands below ``with:``."""

    mode: Literal["int8", "fp8", "int4", "autocast"] = Field(
        default="int8",
        description="int8 and fp8 quantise weights and activations, int4 weights in blocks, autocast lowers floating "
        "point where values stay in range.",
    )
    method: Literal["entropy", "max", "awq_clip", "awq_lite", "awq_full", "rtn_dq"] | None = Field(
        default=None,
        description="How ranges are chosen: entropy (default) or max for int8 and fp8; awq_clip (default), awq_lite, "
        "awq_full or rtn_dq (which needs no data) for int4.",
    )
    high_precision_dtype: Literal["fp32", "fp16", "bf16"] | None = Field(
        default=None,
        description="What the rest is computed in, and what autocast lowers to; left out: fp16, with int4 fp32, which "
        "is all that ModelOpt does there.",
    )
    op_types: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Operator types to quantise; left out, all that ModelOpt can. Each one named has to be quantised "
        "somewhere.",
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="Names of nodes that stay as they are. One without a name goes by its type."
    )
    exclude_op_types: tuple[str, ...] = Field(default=(), description="Operator types that stay as they are.")
    block_size: int | None = Field(
        default=None,
        ge=2,
        description="With int4: weights with a scale of their own in a row; 128 if left out.",
    )
    store_quantized: bool = Field(
        default=True,
        description="Store INT8 and FP8 weights in that type; false keeps floats with a quantiser behind, as ModelOpt "
        "does by itself, for training on.",
    )
    samples: int = Field(default=512, ge=1, description="How many calibration samples are used at most.")
    min_samples: int = Field(
        default=8,
        ge=1,
        description="How many there have to be where ranges are taken from them (not with autocast and rtn_dq).",
    )
    batch: int = Field(
        default=16, ge=1, description="Samples per calibration run, if the model's batch varies."
    )
    require_parity: bool = Bound(
        True,
        description="Whether the result has to be compared with the model before; false accepts one that ONNX Runtime "
        "has no CPU kernels for (bf16, some of FP8), for which the verdict else is inconclusive.",
    )
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
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class ModeloptQuantize(Stage[Options, Inputs, Outputs]):
    """Quantise an ONNX model with NVIDIA ModelOpt, in the way that TensorRT takes.

    The defaults are for TensorRT (`trtexec`); on CPUs int8-calibration is faster. What became of the products
    (convolutions, matrix products) is counted by type and compared with what was asked: the stage fails when nothing
    was quantised, or nothing of an operator type that `op_types` names. Parity is measured on the calibration samples,
    else on random inputs.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {
        "modelopt": "shipctl[modelopt]", "onnx_graphsurgeon": "shipctl[modelopt]", "lief": "shipctl[modelopt]",
        "polygraphy": "shipctl[modelopt]", "onnxruntime": "shipctl[cpu]",
    }  # fmt: skip
    metrics = (*parity.METRICS, "quantized.*")
    tools = ("nvidia-modelopt", "onnx-graphsurgeon", "onnxruntime", "onnxslim", "onnx", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Refuse options that contradict each other, missing data and a missing compiler."""
        options = self.options
        if wrong := "; ".join(_contradictions(options)):
            raise SpecError(wrong)
        if _needs_data(options) and not ctx.inputs.get("calibration"):
            message = (
                f"mode {options.mode} takes its ranges from calibration data (ModelOpt would make up numbers); say "
                "`data: {calibration: {uri: …}}`"
            )
            if options.mode == "int4":
                message += f", or `method: {WITHOUT_DATA}`"
            raise SpecError(message)
        if options.mode == "int4" and _modelopt.lacks_compiler():
            message = (
                "mode int4 compiles an extension on its first use, and there is no C++ compiler; install g++"
            )
            raise UnavailableError(message)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Prepare, call ModelOpt, count, compare."""
        options, source = self.options, inputs.model
        before = plain_graph(graph.load_source(source))
        known_nodes(options.exclude, before.graph, "exclude")
        _require_operators(options, before)
        data = _samples(inputs, options)
        after, used = _lower(before, options, data, source.signature, ctx)
        differences = graph.graph_differences(after, source.signature)
        if differences:
            message = f"ModelOpt gives the model another signature: {'; '.join(differences)}"
            raise StageError(message)
        table = _counted(before, after, options)
        graph.declare(after, source.signature)
        graph.strip_notes(after)
        folder = graph.save_model(after, ctx.workdir / "model")
        graph.check_model(folder / graph.MODEL_FILE)
        measured, not_compared = _compare(inputs, folder / graph.MODEL_FILE, data, options, ctx)
        model = made_from(
            source,
            folder,
            graph.opset_of(after),
            precision=_dtype(options) if options.mode == "autocast" else options.mode,
        )
        numbers = {
            "quantized.nodes": float(sum(row["quantized"] for row in table)),
            "quantized.samples": float(used),
        }
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"ModelOpt, {options.mode}",
            metrics=(measured.metrics() if measured else {}) | numbers,
            details=(measured.details() if measured else {}) | {"quantized": table, "not_compared": not_compared},
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds; what could not be compared is inconclusive."""
        report = outputs.report
        reason = report.details.get("not_compared")
        if not reason:
            return parity.judge_parity(report, self.options)
        if not self.options.require_parity:
            return ()
        message = f"{reason}; compare it where it is served, and accept that with `require_parity: false`"
        return [
            Verdict(
                gate="parity", outcome=Outcome.INCONCLUSIVE, message=message, subject=report.subject,
                source=report.digest,
            )
        ]  # fmt: skip


def _dtype(options: Options) -> str:
    return options.high_precision_dtype or ("fp32" if options.mode == "int4" else "fp16")


def _needs_data(options: Options) -> bool:
    return options.mode in {"int8", "fp8"} or (options.mode == "int4" and options.method != WITHOUT_DATA)


def _contradictions(options: Options) -> Sequence[str]:
    mode, found = options.mode, []
    if options.method is not None and options.method not in METHODS[mode]:
        methods = ", ".join(METHODS[mode]) or "none"
        found.append(f"method {options.method} does not go with mode {mode}, which has {methods}")
    if options.block_size is not None and mode != "int4":
        found.append(f"block_size belongs to mode int4, not {mode}")
    if mode == "int4" and options.high_precision_dtype not in {None, "fp32"}:
        found.append(
            f"high_precision_dtype {options.high_precision_dtype}: with mode int4 ModelOpt leaves the rest as it is; "
            "put fp16 before this stage"
        )
    if mode == "autocast" and options.high_precision_dtype == "fp32":
        found.append("mode autocast lowers to fp16 or bf16; high_precision_dtype fp32 leaves nothing to do")
    if mode in {"int4", "autocast"} and options.op_types is not None:
        found.append(f"op_types: ModelOpt has no such choice in mode {mode}; name what stays in exclude")
    if mode in {"int4", "autocast"} and not options.store_quantized:
        found.append(f"store_quantized: mode {mode} has no other way to store weights")
    if mode == "int4" and options.exclude_op_types:
        found.append("exclude_op_types: ModelOpt has no such choice in mode int4; name the nodes in exclude")
    return found


def _require_operators(options: Options, before: ModelProto) -> None:
    """See that the graph has the operators that the options name.

    :raises StageError: if it has not
    """
    there = sorted({node.op_type for node in before.graph.node})
    for option, names in (("op_types", options.op_types), ("exclude_op_types", options.exclude_op_types)):
        if unknown := [name for name in names or () if name not in there]:
            message = (
                f"`{option}` names {unknown[0]!r}, which the graph does not have; it has {', '.join(there)}"
            )
            raise StageError(message)


def _samples(inputs: Inputs, options: Options) -> dict[str, Array]:
    """Return the calibration samples to use; none where there is no data."""
    if inputs.calibration is None:
        if _needs_data(options):
            message = f"mode {options.mode} takes its ranges from calibration data, and there is none"
            raise StageError(message)
        return {}
    signature = inputs.model.signature
    data = arrays.model_inputs(
        arrays.load_arrays(inputs.calibration, signature), signature, inputs.calibration.role
    )
    data = {name: array[: options.samples] for name, array in data.items()}
    if _needs_data(options):
        arrays.require_samples(data, options.min_samples, inputs.calibration.role)
        arrays.require_ranges(data, inputs.calibration.role)
    return data


def _lower(
    before: ModelProto, options: Options, data: Mapping[str, Array], signature: Signature, ctx: StageContext
) -> tuple[ModelProto, int]:
    """Return what ModelOpt makes of ``before``, and from how many samples."""
    request = _modelopt.Request(
        mode=options.mode, method=options.method or next(iter(METHODS[options.mode]), None), dtype=_dtype(options),
        op_types=options.op_types, exclude=options.exclude, exclude_op_types=options.exclude_op_types,
        block_size=options.block_size, store_quantized=options.store_quantized and options.mode != "int4",
    )  # fmt: skip
    feed: dict[str, Array] = {}
    shapes = ""
    if data and request.method != WITHOUT_DATA:
        size = 1 if options.mode == "autocast" else options.batch
        feed, shapes = _modelopt.calibration_feed(data, signature, size, "calibration")
    scratch = ctx.workdir / "tmp"
    scratch.mkdir()
    if options.mode == "autocast":
        first = {
            name: array[: arrays.fixed_batch(signature) or options.batch] for name, array in feed.items()
        }
        used = len(next(iter(first.values()))) if first else 0
        return _modelopt.autocast(before, request, first, scratch, ctx.log), used
    if options.mode == "int4":
        _modelopt.transpose_gemms(before)
    after = _modelopt.quantize(before, request, feed, shapes, scratch, ctx.log)
    return after, len(next(iter(feed.values()))) if feed else 0


def _counted(before: ModelProto, after: ModelProto, options: Options) -> list[dict[str, Any]]:
    """Return, per operator type, how many products there were and how many are in the type asked for.

    :raises StageError: if none is, none of an operator type that was asked for, or one that was excluded
    """
    wanted = _dtype(options) if options.mode == "autocast" else options.mode
    lowered = [item for item in GraphTypes(after).products() if _is_in(item, wanted)]
    done = Counter(item.op_type for item in lowered)
    total = Counter(node.op_type for node in before.graph.node if node.op_type in PRODUCTS)
    there = ", ".join(f"{count} {name}" for name, count in sorted(total.items())) or "no products"
    if not done:
        message = (
            f"nothing became {wanted}: the graph has {there}, and ModelOpt takes none of them (it leaves out small "
            "ones); leave the stage out"
        )
        raise StageError(message)
    if lost := [name for name in options.op_types or () if name in PRODUCTS and not done[name]]:
        message = (
            f"no {' and no '.join(lost)} became {wanted}, which op_types asks for: the graph has {there}, and ModelOpt "
            "leaves out small ones; take it out of op_types, or use int8-calibration"
        )
        raise StageError(message)
    excluded = {item.name for item in lowered if item.name in options.exclude}
    excluded |= {item.op_type for item in lowered if item.op_type in options.exclude_op_types}
    if excluded:
        message = f"ModelOpt turned {', '.join(sorted(excluded))} into {wanted} against exclude"
        raise StageError(message)
    return [{"op_type": name, "quantized": done[name], "before": total[name]} for name in sorted(total)]


def _is_in(product: Product, wanted: str) -> bool:
    return wanted in {product.compute, product.weights}


def _compare(
    inputs: Inputs, path: Any, data: Mapping[str, Array], options: Options, ctx: StageContext
) -> tuple[parity.Parity | None, str]:
    """Return how far the outputs moved, or why that cannot be measured here."""
    try:
        new = open_session(path, threads=ctx.threads)
    except NoKernelError as exc:
        return None, str(exc)
    old, signature = open_session(inputs.model.path, threads=ctx.threads), inputs.model.signature
    measured = parity.Parity()
    if data:
        for index, (feed, _) in enumerate(arrays.batches(data, options.batch, signature), start=1):
            measured.add(f"calibration data, batch {index}", run_session(old, feed), run_session(new, feed))
    else:
        for batch in arrays.batch_sizes(signature, (1, 3, options.batch)):
            feed = arrays.random_inputs(signature, batch, ctx.seed + 1)
            measured.add(f"random inputs, batch {batch}", run_session(old, feed), run_session(new, feed))
    return measured, ""
