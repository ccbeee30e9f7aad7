"""Stage `benchmark`."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.context import JudgeContext, Objectives
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl_plugins.qualify.benchmark import Benchmark, Inputs, Options, Outputs

QUICK = {"warmup": "10ms", "min_duration": "60ms", "max_duration": "120ms"}


@pytest.mark.slow
class TestConformance(StageConformance):
    stage = "benchmark"
    options: ClassVar = {**QUICK, "batch_sizes": [1], "min_duration": "15ms", "max_duration": "30ms"}
    objectives = Objectives(slo={"latency.p95": 1.0})


@pytest.fixture(scope="module")
def measured(digits_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outputs, list[str]]:
    """One short benchmark of the digits model, and what it logged."""
    from shipctl.stages.context import StageContext

    said: list[str] = []
    ctx = StageContext(workdir=tmp_path_factory.mktemp("benchmark"), log=said.append)
    options = Options.model_validate({**QUICK, "batch_sizes": [8, 1], "threads": [1, 2]})
    return Benchmark(options).run(Inputs(model=digits_onnx), ctx), said


def report(**metrics: float) -> Outputs:
    good = {"latency.p95": 0.01, "latency.runs": 1000.0, "stable": 1.0, "throughput": 100.0}
    return Outputs(report=Report(subject="0" * 64, title="Benchmark", metrics={**good, **metrics}))


def judge(
    outputs: Outputs, slo: dict[str, float] | None = None, **options: Any
) -> dict[str, tuple[Outcome, str]]:
    verdicts = Benchmark(Options(**options)).judge(
        outputs, JudgeContext(objectives=Objectives(slo=slo or {}))
    )
    return {verdict.gate: (verdict.outcome, verdict.message) for verdict in verdicts}


@pytest.mark.slow
def test_headline_is_the_smallest_batch_with_the_first_number_of_threads(measured: Any) -> None:
    metrics = measured[0].report.metrics
    assert metrics["latency.p95"] == metrics["latency.p95@batch=1,threads=1"]
    assert measured[0].report.details["headline"] == {"batch": 1, "threads": 1}


@pytest.mark.slow
def test_every_configuration_has_its_numbers(measured: Any, digits_onnx: OnnxModel) -> None:
    metrics = measured[0].report.metrics
    for batch in (1, 8):
        for threads in (1, 2):
            names = [
                f"latency.{name}@batch={batch},threads={threads}" for name in ("p50", "p90", "p95", "p99")
            ]
            values = [metrics[name] for name in names]
            assert values == sorted(values)
            assert values[0] > 0
    assert metrics["throughput"] == max(
        value for name, value in metrics.items() if name.startswith("throughput@")
    )
    assert metrics["size"] == digits_onnx.size
    assert metrics["latency.p50.low"] <= metrics["latency.p50"] <= metrics["latency.p50.high"]


@pytest.mark.slow
def test_metrics_are_declared(measured: Any) -> None:
    from fnmatch import fnmatchcase

    assert [
        name
        for name in measured[0].report.metrics
        if not any(fnmatchcase(name, p) for p in Benchmark.metrics)
    ] == []


@pytest.mark.slow
def test_report_has_host_and_series_for_a_plot(measured: Any) -> None:
    details = measured[0].report.details
    assert len(details["host"]) == 64
    assert set(details["machine"]) == {"node", "system", "machine", "processor", "cores"}
    for row in details["configurations"]:
        seconds = [value for _, value in row["curve"]]
        assert seconds == sorted(seconds)
        assert row["windows"]


@pytest.mark.slow
def test_what_was_measured_is_logged_a_line_each(measured: Any) -> None:
    assert len(measured[1]) == 4
    assert measured[1][0].startswith("batch 1, 1 threads: p95 ")


def test_evaluation_samples_are_used_where_there_are_some(
    digits_onnx: OnnxModel, evaluation: Dataset, context: Any
) -> None:
    stage = Benchmark(Options.model_validate({**QUICK, "batch_sizes": [700]}))  # more than there are
    outputs = stage.run(Inputs(model=digits_onnx, evaluation=evaluation), context())
    assert outputs.report.details["inputs"] == "evaluation data"


def test_slo_is_judged() -> None:
    slo = {"latency.p95": 0.02, "throughput": 200.0, "error_rate": 0.01}
    assert judge(report(), slo) == {
        "latency.p95": (Outcome.PASS, "latency.p95 10 ms <= 20 ms"),
        "throughput": (Outcome.FAIL, "throughput 100/s is not >= 200/s"),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latency_that_is_no_number_does_not_pass(value: float) -> None:
    assert judge(report(**{"latency.p95": value}), {"latency.p95": 0.02})["latency.p95"][0] is Outcome.ERROR


def test_percentile_that_was_not_measured_does_not_pass() -> None:
    assert judge(report(), {"latency.p99.9": 0.02})["latency.p99.9"][0] is Outcome.ERROR


def test_unsettled_measurement_is_inconclusive_unless_allowed() -> None:
    outcome, message = judge(report(stable=0.0))["stability"]
    assert outcome is Outcome.INCONCLUSIVE
    assert message == (
        "the measurement did not settle: no three windows within the tolerance; "
        "measure on a quieter machine, raise max_duration, or set require_stable: false"
    )
    assert judge(report(stable=0.0), require_stable=False) == {}


@pytest.mark.parametrize("runs", [99.0, float("nan")])
def test_too_few_runs_are_inconclusive(runs: float) -> None:
    assert judge(report(**{"latency.runs": runs}))["runs"][0] is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_duration": "2s", "max_duration": "1s"},
         "min_duration 2s has to be above 0 and at most max_duration 1s"),
        ({"batch_sizes": [0]}, "batch_sizes and threads have to be 1 or more"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options.model_validate(options)


def test_options_survive_the_way_to_a_worker() -> None:
    options = Options.model_validate(QUICK)
    assert Options.model_validate(options.model_dump(mode="json")) == options
