"""Stage `trtexec`: a TensorRT engine from an ONNX model, held to the precision that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TensorrtEngine
from shipctl.stages.base import Bound, Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins._onnx import graph, parity
from shipctl_plugins._onnx.noise import routed
from shipctl_plugins._onnx.quantized import GraphTypes, Product, precision_of
from shipctl_plugins._onnx.reports import sealed, write_report
from shipctl_plugins._tensorrt.backends import Backend, ahead_of_time, check_options
from shipctl_plugins._tensorrt.building import PLAN_FILE, Built, Job
from shipctl_plugins._tensorrt.devices import gpus
from shipctl_plugins._tensorrt.layers import Inspection, inspect
from shipctl_plugins._tensorrt.options import EngineOptions, Profile
from shipctl_plugins._tensorrt.parity import run_beside, why_not_run
from shipctl_plugins._tensorrt.profiles import complete_profiles, shapes
from shipctl_plugins._tensorrt.quantizers import refused
from shipctl_plugins._tensorrt.with_module import build_with_module
from shipctl_plugins._tensorrt.with_trtexec import build_with_trtexec

_SHOWN = 5
"""Nodes that a verdict names."""


class Options(EngineOptions, parity.ParityOptions):
    """What stands below ``with:``."""

    samples: int = Field(
        default=256, ge=1, description="How many calibration samples the engine is compared on at most."
    )
    allow_full_precision: tuple[str, ...] = Bound(
        (),
        description="Names or patterns (`/head/*`) of ONNX nodes that may run in more bits than were asked for.",
    )
    require_inspection: bool = Bound(
        True,
        description="Whether every product's precision has to be seen in the engine; false accepts what TensorRT does "
        "not tell, for which the verdict else is inconclusive.",
    )
    require_run: bool = Bound(
        True,
        description="Whether the engine has to have run and been compared with the model; false accepts one that was "
        "built where no GPU can run it, for which the verdict else is inconclusive.",
    )
    max_rel_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of an output, divided by its largest magnitude."
    )
    min_cosine: float | None = Bound(
        0.999, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        0.99, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: TensorrtEngine
    report: Report


class Trtexec(Stage[Options, Inputs, Outputs]):
    """Build a TensorRT engine (TensorRT 10, 11 or for RTX) and look whether it computes in what was asked for.

    Precision lives in the graph: put fp16, int8-calibration (`activation_type: qint8`, `symmetric: true`,
    `quantize_bias: false`, `op_types: [Conv, Gemm, MatMul]`) or modelopt-quantize before this stage. Each product
    (convolution, matrix product, …) of the graph is looked up in the layers of the engine; one that fell back to a
    wider type fails, one that cannot be seen is inconclusive.

    One spec builds for several kinds of GPU, each on a machine that has it::

        uses: trtexec
        matrix: {gpu: [L4, A100]}
        resources: {gpu: 1, labels: {gpu: "${{ matrix.gpu }}"}}
        with: {gpu: "${{ matrix.gpu }}"}

    and `backend: tensorrt-rtx` builds ahead of time where there is no GPU (`compute_capability: ["8.9"]`).
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = (*parity.METRICS, "layers.*", "products.*", "inspected")
    tools = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "onnx", "onnxruntime", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Say what the back end cannot do here, and which dimension of a model that the spec brings has no sizes."""
        check_options(self.options)
        for upstream in ctx.inputs.get("model", ()):
            if isinstance(upstream.artifact, OnnxModel):
                complete_profiles(upstream.artifact.signature, self.options)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Look at the graph, build, inspect, run, report."""
        options, source = self.options, inputs.model
        try:
            backend = check_options(options)
            profiles = complete_profiles(source.signature, options)
        except SpecError as exc:
            raise StageError(str(exc)) from exc
        wanted = _wanted(source, options)
        job = _job(source, options, backend, profiles, ctx)
        with routed(ctx.log):
            built = build_with_trtexec(job) if backend.name == "trtexec" else build_with_module(job)
        found = inspect(built.layers, wanted)
        not_run = why_not_run(job, source)
        measured = (
            None if not_run else run_beside(job, source, inputs.calibration, profiles, options.samples, ctx)
        )
        engine = sealed(
            TensorrtEngine.at(
                job.plan.parent,
                signature=source.signature,
                flavor=backend.flavor,
                version=built.version,
                compute_capabilities=job.capabilities or (gpus()[0].capability if gpus() else "current",),
                precision=_claimed(source, options),
                profiles=tuple(
                    {name: (sizes.min, sizes.opt, sizes.max) for name, sizes in profile.items()}
                    for profile in profiles
                ),
                derived_from=source.digest,
            )
        )
        ctx.log(_summary(built, found))
        report = write_report(
            ctx.workdir, subject=engine.digest, title=f"Engine of {backend.flavor} {built.version}",
            metrics=_metrics(built, found) | (measured.metrics() if measured else {}),
            details={
                "built_by": str(backend), "products": found.rows, "layers": found.layers,
                "uninspected": built.uninspected, "not_run": not_run,
            } | (measured.details() if measured else {}),
        )  # fmt: skip
        return Outputs(model=engine, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Fail what fell back or moved away from the model; what could not be seen or run is inconclusive."""
        report, options = outputs.report, self.options
        verdicts = [_precision_verdict(report, options.allow_full_precision)]
        if options.require_inspection:
            verdicts.append(_inspection_verdict(report))
        if not report.details.get("not_run"):
            verdicts += parity.judge_parity(report, options)
        elif options.require_run:
            message = (
                f"the engine has not run: {report.details['not_run']}; build where a GPU can run it, or accept that "
                "with `require_run: false`"
            )
            verdicts.append(_inconclusive("parity", message, report))
        return verdicts


def _wanted(source: OnnxModel, options: Options) -> list[Product]:
    """Return the products with the types that they have to be done in.

    :raises StageError: for a graph that TensorRT does not take, or that is not typed as it claims
    """
    types = GraphTypes(graph.load_model(source.path, external=False))
    if wrong := [*refused(types)]:
        message = "TensorRT does not take the way in which this graph is quantised: " + "; ".join(wrong)
        raise StageError(message)
    lowered = {*options.precision}
    quantizing = ", ".join(sorted(lowered & {"int8", "fp8", "int4"}))
    if quantizing and not types.quantizers():
        message = (
            f"precision {quantizing} needs a graph with quantisers, and this one has none (TensorRT would make up "
            "ranges): put int8-calibration or modelopt-quantize before this stage"
        )
        raise StageError(message)
    products = types.products()
    if half := next(iter(lowered & {"fp16", "bf16"}), None):
        products = [replace(item, compute=half) if item.compute == "fp32" else item for item in products]
    low = [item for item in products if item.compute != "fp32" or item.weights]
    if source.precision != "fp32" and not low:
        message = (
            f"the model is said to be {source.precision}, and all {len(products)} products of its graph are FP32: an "
            "engine of it would be FP32"
        )
        raise StageError(message)
    return products


def _job(
    source: OnnxModel, options: Options, backend: Backend, profiles: Sequence[Profile], ctx: StageContext
) -> Job:
    plan, scratch = ctx.workdir / "engine" / PLAN_FILE, ctx.workdir / "tmp"
    plan.parent.mkdir()
    scratch.mkdir()
    return Job(
        model=source.path, plan=plan, scratch=scratch, options=options, backend=backend,
        profiles=tuple(shapes(source.signature, profile) for profile in profiles),
        capabilities=ahead_of_time(options) if backend.name == "tensorrt-rtx" else (), log=ctx.log,
    )  # fmt: skip


def _claimed(source: OnnxModel, options: Options) -> str:
    narrow = [name for name in ("int4", "fp8", "int8", "fp16", "bf16") if name in options.precision]
    return narrow[0] if narrow else precision_of(source)


def _summary(built: Built, found: Inspection) -> str:
    if built.uninspected:
        return f"layers unknown: {built.uninspected}"
    counts = ", ".join(f"{count} in {name}" for name, count in found.layers.items())
    asked = len(found.rows)
    done = len(found.named("as asked"))
    return (
        f"{len(built.layers)} layers ({counts}); {done} of {asked} products with a type asked for are in it"
    )


def _metrics(built: Built, found: Inspection) -> dict[str, float]:
    return {
        "inspected": 0.0 if built.uninspected else 1.0,
        "layers.total": float(len(built.layers)),
        "products.asked": float(len(found.rows)),
        "products.as_asked": float(len(found.named("as asked"))),
        "products.fell_back": float(len(found.named("fell back"))),
        "products.unseen": float(len(found.named("unseen"))),
    } | {f"layers.{name}": float(count) for name, count in found.layers.items()}


def _rows(report: Report, verdict: str) -> list[dict[str, Any]]:
    return [row for row in report.details.get("products", ()) if row["verdict"] == verdict]


def _precision_verdict(report: Report, allowed: Sequence[str]) -> Verdict:
    back = _rows(report, "fell back")
    excused = [row for row in back if any(fnmatchcase(row["node"], pattern) for pattern in allowed)]
    value = report.metrics.get("products.fell_back")
    verdict = compare(
        "precision", None if value is None else value - len(excused), "<=", 0, metric="products.fell_back",
        subject=report.subject, source=report.digest,
    )  # fmt: skip
    if verdict.outcome is not Outcome.FAIL:
        return verdict
    rows = [row for row in back if row not in excused]
    named = "; ".join(f"{row['node']} asked {row['asked']}, runs in {row['found']}" for row in rows[:_SHOWN])
    rest = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return verdict.model_copy(
        update={"message": f"{len(rows)} product(s) fell back to a wider type: {named}{rest}"}
    )


def _inspection_verdict(report: Report) -> Verdict:
    inspected = compare(
        "inspection", report.metrics.get("inspected"), ">=", 1, metric="inspected",
        subject=report.subject, source=report.digest,
    )  # fmt: skip
    advice = "accept that with `require_inspection: false`"
    if inspected.outcome is Outcome.FAIL:
        return _inconclusive("inspection", f"{report.details.get('uninspected')}; {advice}", report)
    if inspected.outcome is not Outcome.PASS:
        return inspected
    unseen = compare(
        "inspection", report.metrics.get("products.unseen"), "<=", 0, metric="products.unseen",
        subject=report.subject, source=report.digest,
    )  # fmt: skip
    if unseen.outcome is not Outcome.FAIL:
        return unseen
    rows = _rows(report, "unseen")
    named = ", ".join(row["node"] for row in rows[:_SHOWN])
    rest = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return _inconclusive(
        "inspection", f"TensorRT does not tell what {named}{rest} is computed in; {advice}", report
    )


def _inconclusive(gate: str, message: str, report: Report) -> Verdict:
    return Verdict(
        gate=gate, outcome=Outcome.INCONCLUSIVE, message=message, subject=report.subject, source=report.digest
    )
