"""What the quantising stages share: keeping the budget, comparing with the model before, and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Bound, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import arrays, graph, parity, sensitivity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.sensitivity import Lowered, SensitivityOptions, judge_budget, settle
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

    Array = np.ndarray[Any, np.dtype[Any]]
    Cases = Iterable[tuple[str, dict[str, Array]]]

METRICS = (*parity.METRICS, *sensitivity.METRICS)
READS = sensitivity.READS


class QuantizeOptions(parity.ParityOptions, SensitivityOptions):
    """What all of them have."""

    exclude: tuple[str, ...] = Field(default=(), description="Names of nodes that stay in floating point.")
    min_cosine: float | None = Bound(
        0.98, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        0.98, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )


class UncalibratedOptions(QuantizeOptions):
    """What those have that need no calibration data: where parity is measured."""

    samples: int = Field(
        default=256, ge=1, description="How many calibration samples parity is measured on at most."
    )
    batches: tuple[parity.Size, ...] = Field(
        default=(1, 16),
        min_length=1,
        description="Batch sizes in which parity is measured, if the model's batch varies.",
    )
    dimensions: dict[str, parity.Size] = Field(
        default_factory=dict,
        description="Sizes in random inputs of the varying dimensions other than the batch; 8 if not named.",
    )


class Inputs(StageInputs):
    """What those stages take."""

    model: OnnxModel
    calibration: Dataset | None = None
    evaluation: Dataset | None = None


class Outputs(StageOutputs):
    """What the stages give."""

    model: OnnxModel
    report: Report


def cases(
    signature: Signature, calibration: Dataset | None, options: UncalibratedOptions, seed: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield what parity is measured on: calibration samples if there are some, else random inputs.

    What an answer turns over on noise says little about what the model will see.
    """
    arrays.require_dimensions(signature, options.dimensions)
    sizes = arrays.batch_sizes(signature, options.batches)
    if calibration is not None:
        yield from arrays.sample_batches(calibration, signature, options.samples, max(sizes))
        return
    for batch in sizes:
        feed = arrays.random_inputs(signature, batch, seed + 1, options.dimensions)
        yield f"random inputs, batch {batch}", feed


def finish(
    lowered: Lowered,
    source: OnnxModel,
    evaluation: Dataset | None,
    options: QuantizeOptions,
    feeds: Cases,
    ctx: StageContext,
    *,
    title: str,
    precision: str,
    numbers: Mapping[str, float] | None = None,
    open_quantized: Callable[..., InferenceSession] = open_session,
) -> Outputs:
    """Keep what the budget asks for, write the model, check it, compare it with ``source`` on ``feeds``.

    :raises StageError: if the model is refused by the checker, or does not run
    """
    settled = settle(lowered, source, evaluation, options, ctx)
    quantized = settled.model
    graph.declare(quantized, source.signature)
    graph.strip_notes(quantized)
    folder = graph.save_model(quantized, ctx.workdir / "model")
    graph.check_model(folder / graph.MODEL_FILE)
    measured = _compare(source.path, folder / graph.MODEL_FILE, feeds, ctx, open_quantized)
    model = made_from(source, folder, graph.opset_of(quantized), precision=precision)
    total = Counter(node.op_type for node in lowered.before.graph.node)
    counted = Counter(layer.op_type for layer in lowered.layers if layer.name not in settled.kept)
    table = [{"op_type": name, "quantized": counted[name], "before": total[name]} for name in sorted(counted)]
    report = write_report(
        ctx.workdir, subject=model.digest, title=title,
        metrics=measured.metrics() | settled.metrics | dict(numbers or {}),
        details=measured.details() | {"quantized": table} | settled.details,
    )  # fmt: skip
    return Outputs(model=model, report=report)


def judge(report: Report, options: QuantizeOptions, ctx: JudgeContext) -> Sequence[Verdict]:
    """Compare parity with its bounds, and what was lost of the metric with the budget."""
    return [*parity.judge_parity(report, options), *judge_budget(report, ctx)]


def _compare(
    before: Path,
    after: Path,
    feeds: Cases,
    ctx: StageContext,
    open_quantized: Callable[..., InferenceSession],
) -> parity.Parity:
    old, new = open_session(before, threads=ctx.threads), open_quantized(after, threads=ctx.threads)
    measured = parity.Parity()
    for case, feed in feeds:
        measured.add(case, run_session(old, feed), run_session(new, feed))
    return measured
