"""What the stages `fp16` and `bf16` share: the conversion, what is kept of it, and how parity is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import StageInputs, StageOutputs
from shipctl.stages.context import StageContext
from shipctl_plugins._onnx import graph, parity, plain_graphs
from shipctl_plugins._onnx.activations import Observed, observe
from shipctl_plugins._onnx.cases import parity_cases
from shipctl_plugins._onnx.emulation import emulated
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.narrowing import Narrow, Narrowed, narrow
from shipctl_plugins._onnx.operators import MOVERS, computes_floats, first_version
from shipctl_plugins._onnx.quantized import precision_of
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import NoKernelError, open_session, run_session

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto
    from onnxruntime import InferenceSession

    Array = np.ndarray[Any, np.dtype[Any]]

METRICS = (*parity.METRICS, "parity.emulated", "converted.nodes", "kept.nodes")
Guard = Callable[["ModelProto", Mapping[str, Observed]], Mapping[str, str]]
"""Returns the nodes that have to stay in float32, by name, each with the reason."""


class HalfOptions(parity.ExactParityOptions):
    """Options that both have."""

    block_ops: tuple[str, ...] = Field(
        default=("CumSum",), description="Operator types that stay in float32, such as Softmax."
    )
    exclude: tuple[str, ...] = Field(default=(), description="Names of nodes that stay in float32.")


class Inputs(StageInputs):
    """What the stages take."""

    model: OnnxModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stages give."""

    model: OnnxModel
    report: Report


@dataclass(frozen=True)
class Plan:
    """What tells one of the stages from the other."""

    dtype: Narrow
    precision: str
    title: str
    keep_io: bool
    guard: Guard | None = None


def convert(inputs: Inputs, options: HalfOptions, plan: Plan, ctx: StageContext) -> Outputs:
    """Convert, check, compare.

    :raises StageError: if nothing was converted, or the model or its data are not as they should be
    """
    source = inputs.model
    plain = plain_graphs.plain_graph(graph.load_source(source))
    cases = partial(parity_cases, source.signature, inputs.calibration, options, ctx.seed)
    seen = observe(plain, (feed for _, feed in cases()), ctx.workdir / "tmp" / "seen", threads=ctx.threads)
    types = {name: observed.dtype for name, observed in seen.items()}
    types |= {name: str(array.dtype) for name, array in plain_graphs.weights_of(plain.graph).items()}
    kept = _kept(plain, seen, options, plan)
    narrowed = narrow(plain, types, plan.dtype, keep=frozenset(kept), keep_io=plan.keep_io)
    if MOVERS.issuperset(narrowed.converted):
        raise StageError(_nothing(plain, types, kept, plan))
    rows = _kept_rows(plain, types, kept, narrowed, plan)
    count = sum(narrowed.converted.values())
    ctx.log(f"{count} nodes converted, {len(rows)} kept in float32")
    signature = source.signature if plan.keep_io else _narrowed_signature(source.signature, plan.dtype)
    graph.declare(narrowed.model, signature)
    graph.strip_notes(narrowed.model)
    folder = graph.save_model(narrowed.model, ctx.workdir / "model")
    graph.check_model(folder / graph.MODEL_FILE)
    before = precision_of(source)
    model = made_from(
        source,
        folder,
        graph.opset_of(narrowed.model),
        precision=plan.precision if before == "fp32" else f"{before}+{plan.precision}",
        signature=signature,
    )
    measured, missing = _compare(source, model, narrowed, plan, cases, ctx)
    total = Counter(node.op_type for node in plain.graph.node)
    table = [
        {"op_type": name, "converted": number, "before": total[name]}
        for name, number in sorted(narrowed.converted.items())
    ]
    report = write_report(
        ctx.workdir, subject=model.digest, title=plan.title,
        metrics=measured.metrics() | {
            "converted.nodes": float(count), "kept.nodes": float(len(rows)), "parity.emulated": float(bool(missing)),
        },
        details=measured.details() | {"converted": table, "kept": rows, "does_not_run_here": missing},
    )  # fmt: skip
    return Outputs(model=model, report=report)


def _kept_rows(
    plain: ModelProto,
    types: Mapping[str, str],
    kept: Mapping[str, str],
    narrowed: Narrowed,
    plan: Plan,
) -> list[dict[str, str]]:
    unable = frozenset(narrowed.unable)
    return [
        {
            "node": node.name,
            "op_type": node.op_type,
            "why": kept.get(node.name) or _why_unable(node, plan.dtype),
        }
        for node in plain.graph.node
        if computes_floats(node, types) and (node.name in kept or node.name in unable)
    ]


def _kept(
    plain: ModelProto, seen: Mapping[str, Observed], options: HalfOptions, plan: Plan
) -> dict[str, str]:
    excluded = plain_graphs.known_nodes(options.exclude, plain.graph, "exclude")
    _require_operators(options, plain)
    kept = dict(plan.guard(plain, seen)) if plan.guard else {}
    kept |= {
        node.name: f"{node.op_type} is in `block_ops`"
        for node in plain.graph.node
        if node.op_type in options.block_ops
    }
    return kept | dict.fromkeys(excluded, "it is in `exclude`")


def _require_operators(options: HalfOptions, plain: ModelProto) -> None:
    """See that the graph has the operators that `block_ops` names, beyond those that it always has."""
    usual = type(options).model_fields["block_ops"].default
    there = sorted({node.op_type for node in plain.graph.node})
    if unknown := [name for name in options.block_ops if name not in there and name not in usual]:
        message = (
            f"`block_ops` names {unknown[0]!r}, which the graph does not have; it has {', '.join(there)}"
        )
        raise StageError(message)


def _why_unable(node: NodeProto, dtype: Narrow) -> str:
    first = first_version(node, dtype)
    since = f" before opset {first}" if first else ""
    return f"{node.op_type} takes no {dtype}{since}"


def _nothing(plain: ModelProto, types: Mapping[str, str], kept: Mapping[str, str], plan: Plan) -> str:
    computing = [
        node for node in plain.graph.node if computes_floats(node, types) and node.op_type not in MOVERS
    ]
    if not computing:
        return "nothing was converted: no node of the graph computes in float32; leave the stage out"
    reasons = Counter(kept.get(node.name) or _why_unable(node, plan.dtype) for node in computing)
    shown = "; ".join(reason for reason, _ in reasons.most_common(3))
    return (
        f"nothing was converted: all {len(computing)} nodes stay in float32 ({shown}); "
        "relax the options, export with a newer opset, or leave the stage out"
    )


def _narrowed_signature(signature: Signature, dtype: Narrow) -> Signature:
    def changed(specs: Any) -> tuple[Any, ...]:
        return tuple(
            spec.model_copy(update={"dtype": dtype}) if spec.dtype == "float32" else spec for spec in specs
        )

    return Signature(inputs=changed(signature.inputs), outputs=changed(signature.outputs))


def _compare(
    source: OnnxModel,
    model: OnnxModel,
    narrowed: Narrowed,
    plan: Plan,
    cases: Callable[[], Iterator[tuple[str, dict[str, Array]]]],
    ctx: StageContext,
) -> tuple[parity.Parity, str]:
    """Compare with a twin that rounds as the new model does, and with the model itself where it runs here.

    Also return why it does not run.
    """
    twin = graph.save_model(emulated(narrowed, plan.dtype), ctx.workdir / "tmp" / "twin") / graph.MODEL_FILE
    old = open_session(source.path, threads=ctx.threads)
    rounding = open_session(twin, threads=ctx.threads, optimize=False)
    missing = ""
    new: InferenceSession | None = None
    try:
        new = open_session(model.path, threads=ctx.threads)
    except NoKernelError as exc:
        missing = str(exc)
        ctx.log(f"parity is measured with emulated rounding alone: {missing}")
    measured = parity.Parity()
    for case, feed in cases():
        before = run_session(old, feed)
        measured.add(f"{case}, rounding emulated", before, run_session(rounding, feed))
        if new is not None:
            own = {
                spec.name: feed[spec.name].astype(spec.dtype) if spec.dtype == plan.dtype else feed[spec.name]
                for spec in model.signature.inputs
            }
            measured.add(case, before, run_session(new, own))
    return measured, missing
