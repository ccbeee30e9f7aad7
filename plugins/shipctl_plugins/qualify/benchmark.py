"""Stage `benchmark`: how fast a model is on this machine."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from shipctl.records import digest_of
from shipctl.spec.units import Duration, Percentage
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Bound, Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import open_session
from shipctl_plugins.qualify import _timing as timing
from shipctl_plugins.qualify._comparisons import show

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
CURVE = (1, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92.5, 95, 97.5, 99, 99.5, 99.9)
"""The percentiles of the plot."""


class Options(StageOptions):
    """What stands below ``with:``."""

    batch_sizes: tuple[int, ...] = Field(
        default=(1, 8, 32),
        min_length=1,
        description="Samples per call, if the model's batch varies; each is measured.",
    )
    threads: tuple[int, ...] = Field(
        default=(1,),
        min_length=1,
        description="Threads inside of ONNX Runtime's operators; each is measured.",
    )
    warmup: Duration = Field(
        default=Duration("200ms"), description="How long each configuration runs unmeasured."
    )
    min_duration: Duration = Field(
        default=Duration("900ms"),
        description="How long each configuration is measured at least: three windows.",
    )
    max_duration: Duration = Field(
        default=Duration("3s"), description="How long to wait at most for three windows that agree."
    )
    stability: Percentage = Field(
        default=Percentage("10%"),
        description="How far p95 and rate of a window may be from the mean of three.",
    )
    dimensions: dict[str, int] = Field(
        default_factory=dict,
        description="Sizes in random inputs of the varying dimensions other than the batch; 8 if not named.",
    )
    require_stable: bool = Bound(
        True, description="Whether a measurement that did not settle is inconclusive."
    )
    min_runs: int = Bound(
        100, ge=1, description="How many runs of the headline configuration it takes to judge."
    )

    @model_validator(mode="after")
    def _durations(self) -> Self:
        if not 0 < self.min_duration <= self.max_duration:
            message = f"min_duration {self.min_duration} has to be above 0 and at most max_duration {self.max_duration}"
            raise ValueError(message)
        if any(number < 1 for number in (*self.batch_sizes, *self.threads)):
            message = "batch_sizes and threads have to be 1 or more"
            raise ValueError(message)
        return self


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
    metrics = ("latency.*", "throughput", "throughput@*", "stable", "stable@*", "size")
    tools = ("onnxruntime", "numpy")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Measure every configuration."""
        options, model = self.options, inputs.model
        sizes = arrays.batch_sizes(model.signature, sorted(set(options.batch_sizes)))
        rows: list[dict[str, Any]] = []
        for threads in dict.fromkeys(options.threads):
            session = open_session(model.path, threads=threads)
            for batch in sizes:
                feed = self._feed(inputs, batch, ctx.seed)
                windows, stable = timing.measure(
                    partial(session.run, None, feed),
                    warmup=options.warmup,
                    window=options.min_duration / timing.WINDOWS,
                    longest=options.max_duration,
                    tolerance=options.stability,
                )
                rows.append(_row(batch, threads, windows, stable=stable))
                ctx.log(_line(rows[-1]))
        headline = min(rows, key=lambda row: row["batch"])
        metrics = _metrics(headline) | {
            "throughput": max(row["throughput"] for row in rows),
            "size": float(model.size),
        }
        for row in rows:
            metrics |= {
                f"{name}@batch={row['batch']},threads={row['threads']}": value
                for name, value in _metrics(row).items()
                if not name.endswith((".low", ".high"))
            }
        machine = describe_host()
        report = write_report(
            ctx.workdir, subject=model.digest, title="Benchmark in ONNX Runtime on the CPU", metrics=metrics,
            details={
                "host": digest_of(machine), "machine": machine, "configurations": rows,
                "headline": {"batch": headline["batch"], "threads": headline["threads"]},
                "inputs": "evaluation data" if inputs.evaluation is not None else "random",
            },
        )  # fmt: skip
        return Outputs(report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask for enough runs, for stability, and for what the SLO says about latency and throughput."""
        report, options = outputs.report, self.options
        values = report.metrics
        about = {"subject": report.subject, "source": report.digest}
        verdicts: list[Verdict] = []
        runs = values.get("latency.runs", 0.0)
        if not runs >= options.min_runs:
            message = f"only {runs:.0f} runs, {options.min_runs} were asked for; raise max_duration"
            verdicts.append(Verdict(gate="runs", outcome=Outcome.INCONCLUSIVE, message=message, **about))
        if options.require_stable and values.get("stable") != 1.0:
            message = (
                "the measurement did not settle: no three windows within the tolerance; "
                "measure on a quieter machine, raise max_duration, or set require_stable: false"
            )
            verdicts.append(Verdict(gate="stability", outcome=Outcome.INCONCLUSIVE, message=message, **about))
        for name, bound in ctx.objectives.slo.items():
            if name.startswith("latency."):
                verdicts.append(
                    compare(name, values.get(name), "<=", bound, **about, show=partial(show, name))
                )
            elif name == "throughput":
                verdicts.append(compare(name, values.get(name), ">=", bound, **about, show="{:.6g}/s".format))
        return verdicts

    def _feed(self, inputs: Inputs, batch: int, seed: int) -> dict[str, Array]:
        import numpy as np

        signature = inputs.model.signature
        if inputs.evaluation is None:
            return arrays.random_inputs(signature, batch, seed, self.options.dimensions)
        data = arrays.model_inputs(arrays.load_arrays(inputs.evaluation), signature, inputs.evaluation.role)
        return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in data.items()}


def _row(batch: int, threads: int, windows: Sequence[timing.Window], *, stable: bool) -> dict[str, Any]:
    """Return all that is known about one configuration, from its last three windows."""
    import numpy as np

    used = windows[-timing.WINDOWS :]
    latencies = np.concatenate([window.latencies for window in used])
    mean, error = float(latencies.mean()), float(latencies.std() / math.sqrt(len(latencies)))
    percentiles = [
        {"percent": percent, "seconds": timing.percentile(latencies, percent),
         "interval": timing.percentile_interval(latencies, percent)}
        for percent in PERCENTILES
    ]  # fmt: skip
    return {
        "batch": batch, "threads": threads, "stable": stable, "runs": len(latencies), "mean": mean,
        # normal approximation
        "mean_interval": (mean - 1.96 * error, mean + 1.96 * error), "percentiles": percentiles,
        "throughput": batch * len(latencies) / sum(window.seconds for window in used),
        "windows": [
            {"p95": window.p95, "throughput": batch * window.rate, "runs": len(window.latencies)} for window in windows
        ],
        "curve": [[percent, timing.percentile(latencies, percent)] for percent in CURVE],
    }  # fmt: skip


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    found = {
        "latency.mean": row["mean"], "latency.mean.low": row["mean_interval"][0],
        "latency.mean.high": row["mean_interval"][1], "latency.runs": float(row["runs"]),
        "throughput": row["throughput"], "stable": float(row["stable"]),
    }  # fmt: skip
    for entry in row["percentiles"]:
        name = f"latency.p{entry['percent']:g}"
        found[name] = entry["seconds"]
        ends = dict(zip((f"{name}.low", f"{name}.high"), entry["interval"], strict=True))
        found |= {key: value for key, value in ends.items() if math.isfinite(value)}
    return found


def _line(row: Mapping[str, Any]) -> str:
    p95 = next(entry["seconds"] for entry in row["percentiles"] if entry["percent"] == 95)  # noqa: PLR2004
    settled = "" if row["stable"] else ", did not settle"
    return (
        f"batch {row['batch']}, {row['threads']} threads: p95 {show('latency.p95', p95)}, "
        f"{row['throughput']:.0f} samples/s{settled}"
    )


def describe_host() -> dict[str, Any]:
    """Return what tells this machine from others as far as speed goes."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or an architecture that has no such line
    return {
        "node": platform.node(), "system": platform.system(), "machine": platform.machine(),
        "processor": processor, "cores": os.cpu_count() or 0,
    }  # fmt: skip
