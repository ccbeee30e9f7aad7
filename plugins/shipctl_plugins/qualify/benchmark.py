"""Stage `benchmark`: how fast a model is on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx.datasets import check_readable
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.qualify import _speed as speed


class Options(speed.SpeedOptions):
    """What stands below ``with:``."""


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    evaluation: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    report: Report


class Benchmark(Stage[Options, Inputs, Outputs]):
    """Measure latency and throughput of an ONNX model in ONNX Runtime on this machine's CPU.

    Every batch size is measured with every number of threads, in windows, until three in a row agree. The
    headline (`latency.p95` and the like, which the SLO bounds) is the smallest batch with the first number of
    threads; `throughput` is the best of all, in samples per second. The rest is called
    `latency.p95@batch=8,threads=1`. Percentiles come with 95 % confidence intervals (`latency.p95.low`,
    `latency.p95.high`). Inputs are evaluation samples where there are some, else random.
    """

    api_version = 1
    subject = "model"
    measurement = True
    max_age = 7 * 86400.0
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = speed.METRICS
    tools = ("onnxruntime", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Look for what it takes to read the data."""
        check_readable(ctx)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Measure every configuration."""
        model = inputs.model
        rows: list[dict[str, Any]] = []
        for row in speed.measure_speed(model, self.options, inputs.evaluation, ctx.seed):
            rows.append(row)
            ctx.log(speed.line_of(row))
        report = write_report(
            ctx.workdir, subject=model.digest, title="Benchmark in ONNX Runtime on the CPU",
            metrics=speed.speed_metrics(model, rows), details=speed.speed_details(rows, inputs.evaluation),
        )  # fmt: skip
        return Outputs(report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask for enough runs, for stability, and for what the SLO says about latency and throughput."""
        report = outputs.report
        return speed.judge_speed(report.metrics, self.options, ctx.objectives, report.subject, report.digest)
