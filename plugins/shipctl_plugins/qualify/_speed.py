"""Latency and throughput of a model in ONNX Runtime: what `benchmark` reports and `search` compares by."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from shipctl.records import digest_of
from shipctl.spec.units import Duration, Percentage
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.base import Bound, StageOptions
from shipctl.stages.context import Objectives
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.session import open_session
from shipctl_plugins.qualify import _timing as timing
from shipctl_plugins.qualify._comparisons import show

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
CURVE = (1, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92.5, 95, 97.5, 99, 99.5, 99.9)
"""The percentiles of the plot."""
METRICS = ("latency.*", "throughput", "throughput@*", "stable", "stable@*", "size")


class SpeedOptions(StageOptions):
    """How speed is measured, and what it takes to judge it."""

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


def configurations(options: SpeedOptions, model: OnnxModel) -> list[tuple[int, int]]:
    """Return (threads, batch) of all that is measured, the headline first of its batch."""
    sizes = arrays.batch_sizes(model.signature, sorted(set(options.batch_sizes)))
    return [(threads, batch) for threads in dict.fromkeys(options.threads) for batch in sizes]


def measure_speed(
    model: OnnxModel,
    options: SpeedOptions,
    evaluation: Dataset | None,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yield a row per configuration.

    Inputs are evaluation samples where there are some, else random.

    :raises StageError: if the model does not load or run
    """
    data = samples_of(model, evaluation)
    for threads, settings in groupby(configurations(options, model), key=itemgetter(0)):
        session = open_session(model.path, threads=threads)
        for _, batch in settings:
            feed = feed_of(model, data, batch, seed, options.dimensions)
            windows, stable = timing.measure(
                partial(session.run, None, feed),
                warmup=options.warmup,
                window=options.min_duration / timing.WINDOWS,
                longest=options.max_duration,
                tolerance=options.stability,
            )
            yield row_of(batch, threads, windows, stable=stable)


def speed_metrics(model: OnnxModel, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of all configurations, the headline's without a configuration in their names."""
    metrics = row_metrics(_headline(rows)) | {
        "throughput": max(row["throughput"] for row in rows),
        "size": float(model.size),
    }
    for row in rows:
        metrics |= {
            f"{name}@batch={row['batch']},threads={row['threads']}": value
            for name, value in row_metrics(row).items()
            if not name.endswith((".low", ".high"))
        }
    return metrics


def speed_details(rows: Sequence[Mapping[str, Any]], evaluation: Dataset | None) -> dict[str, Any]:
    """Return the details of a report: the machine, and a table and a curve per configuration."""
    machine = describe_host()
    headline = _headline(rows)
    return {
        "host": digest_of(machine), "machine": machine, "configurations": list(rows),
        "headline": {"batch": headline["batch"], "threads": headline["threads"]},
        "inputs": "evaluation data" if evaluation is not None else "random",
    }  # fmt: skip


def judge_speed(
    values: Mapping[str, float], options: SpeedOptions, objectives: Objectives, subject: str, source: str
) -> list[Verdict]:
    """Ask for enough runs, for stability, and for what the SLO says about latency and throughput."""
    about = {"subject": subject, "source": source}
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
    for name, bound in objectives.slo.items():
        if name.startswith("latency."):
            verdicts.append(compare(name, values.get(name), "<=", bound, **about, show=partial(show, name)))
        elif name == "throughput":
            verdicts.append(compare(name, values.get(name), ">=", bound, **about, show="{:.6g}/s".format))
    return verdicts


def _headline(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return min(rows, key=lambda row: int(row["batch"]))


def samples_of(model: OnnxModel, evaluation: Dataset | None) -> dict[str, Array] | None:
    """Return the evaluation samples as the model's inputs, None without evaluation data."""
    if evaluation is None:
        return None
    named = arrays.load_arrays(evaluation, model.signature)
    return arrays.model_inputs(named, model.signature, evaluation.role)


def feed_of(
    model: OnnxModel, data: Mapping[str, Array] | None, batch: int, seed: int, dimensions: Mapping[str, int]
) -> dict[str, Array]:
    """Return the inputs of one run."""
    import numpy as np

    if data is None:
        return arrays.random_inputs(model.signature, batch, seed, dimensions)
    return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in data.items()}


def row_of(batch: int, threads: int, windows: Sequence[timing.Window], *, stable: bool) -> dict[str, Any]:
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


def row_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of one configuration, with the ends of confidence intervals where they are finite."""
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


def line_of(row: Mapping[str, Any]) -> str:
    """Write one configuration in a line."""
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
