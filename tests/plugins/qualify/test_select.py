"""Stage `select`."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.errors import GateError, SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import FileEntry, OnnxModel, Report, TensorrtEngine
from shipctl.stages.context import CheckContext, Objectives, Upstream
from shipctl.testing.conformance import StageConformance
from shipctl_plugins.qualify.select import Inputs, Options, Outputs, Select


class TestConformance(StageConformance):
    stage = "select"
    options: ClassVar = {"objective": "size"}


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)


def model(
    number: int, precision: str = "fp32", parent: OnnxModel | None = None, size: int = 1000
) -> OnnxModel:
    entry = FileEntry(path="model.onnx", sha256=f"{number:064x}", size=size)
    return OnnxModel(
        files=(entry,),
        signature=SIGNATURE,
        opset=21,
        precision=precision,
        derived_from=parent.digest if parent else None,
    )


def report(about: OnnxModel, host: str | None = "h", **metrics: float) -> Report:
    details: dict[str, Any] = {"host": host} if host else {}
    named = {name.replace("__", "."): value for name, value in metrics.items()}
    return Report(subject=about.digest, title="Benchmark", metrics=named, details=details)


BASE = model(1)
HALF = model(2, "fp16", BASE, size=500)
INT8 = model(3, "int8", BASE, size=300)


def select(
    models: list[OnnxModel],
    reports: list[Report],
    context: Any,
    objective: str = "latency.p95",
    **options: Any,
) -> Outputs:
    stage = Select(Options(objective=objective, **options))
    budget = {"accuracy_drop": 0.005}
    return stage.run(
        Inputs(models=models, reports=reports), context(budget=budget, slo={"latency.p95": 0.02})
    )


def reasons(outputs: Outputs) -> dict[str, str]:
    return {row["precision"]: row["reason"] for row in outputs.report.details["candidates"]}


def test_fastest_is_chosen_and_returned_unchanged(context: Any) -> None:
    reports = [
        report(BASE, latency__p95=0.03),
        report(HALF, latency__p95=0.02),
        report(INT8, latency__p95=0.01),
    ]
    outputs = select([BASE, HALF, INT8], reports, context)
    assert outputs.model is INT8
    assert outputs.report.subject == INT8.digest
    assert reasons(outputs) == {
        "fp32": f"latency.p95 30 ms, the chosen int8 {INT8.digest[:12]} has 10 ms",
        "fp16": f"latency.p95 20 ms, the chosen int8 {INT8.digest[:12]} has 10 ms",
        "int8": "latency.p95 10 ms",
    }
    assert outputs.report.metrics == {"candidates": 3, "survivors": 3, "selected.latency.p95": 0.01}


def test_variant_slower_than_what_it_derives_from_is_dropped(context: Any) -> None:
    reports = [
        report(BASE, latency__p95=0.01),
        report(HALF, latency__p95=0.012),
        report(INT8, latency__p95=0.0099),
    ]
    outputs = select([BASE, HALF, INT8], reports, context)
    assert outputs.model is BASE
    assert reasons(outputs)["fp16"] == (
        f"latency.p95 12 ms against 10 ms of fp32 {BASE.digest[:12]} is no improvement by 2%"
    )
    assert reasons(outputs)["int8"] == (
        f"latency.p95 9.9 ms against 10 ms of fp32 {BASE.digest[:12]} is no improvement by 2%"
    )
    assert select([BASE, INT8], reports, context, min_improvement="0.5%").model is INT8


def test_improvement_within_the_confidence_intervals_is_none(context: Any) -> None:
    wide = {"latency__p95__low": 0.005, "latency__p95__high": 0.011}
    narrow = {"latency__p95__low": 0.0095, "latency__p95__high": 0.0105}
    reports = [report(BASE, "h", latency__p95=0.01, **narrow), report(INT8, "h", latency__p95=0.008, **wide)]
    outputs = select([BASE, INT8], reports, context)
    assert outputs.model is BASE
    assert reasons(outputs)["int8"] == (
        f"latency.p95 8 ms against 10 ms of fp32 {BASE.digest[:12]} is within the confidence intervals "
        "(11 ms and 9.5 ms)"
    )


def test_candidates_that_are_about_as_good_do_not_depend_on_noise(context: Any) -> None:
    twin = model(4, "int8-b", BASE)
    reports = [
        report(BASE, latency__p95=0.03),
        report(INT8, latency__p95=0.0101),
        report(twin, latency__p95=0.01),
    ]
    assert select([BASE, INT8, twin], reports, context).model is INT8
    assert select([BASE, twin, INT8], reports, context).model is twin


def test_of_equals_the_simplest_is_chosen(context: Any) -> None:
    """Fewer steps from the source, then more bits, floats before integers; the declared order comes last."""
    half, eighth, quarter = (model(10 + n, name, BASE) for n, name in enumerate(("bf16", "fp8", "int4")))
    pruned = model(14, "fp16", half)
    everyone = [BASE, quarter, pruned, INT8, eighth, half]
    speeds = {item.digest: 0.01 for item in everyone} | {BASE.digest: 0.03}
    for simplest in (half, eighth, INT8, quarter):
        reports = [report(item, latency__p95=speeds[item.digest]) for item in everyone]
        assert select(everyone, reports, context).model is simplest
        speeds[simplest.digest] = 0.02
    assert (
        select(everyone, [report(i, latency__p95=speeds[i.digest]) for i in everyone], context).model
        is pruned
    )


def test_a_better_one_that_is_not_worth_it_says_so(context: Any) -> None:
    reports = [
        report(BASE, latency__p95=0.03),
        report(HALF, latency__p95=0.01),
        report(INT8, latency__p95=0.0099),
    ]
    outputs = select([BASE, INT8, HALF], reports, context)
    assert outputs.model is HALF
    assert reasons(outputs)["int8"] == (
        f"latency.p95 9.9 ms is no improvement by 2% on 10 ms of fp16 {HALF.digest[:12]}, which is simpler"
    )


def test_only_so_many_are_tried(context: Any) -> None:
    reports = [report(BASE, latency__p95=0.03), report(INT8, latency__p95=0.01)]
    outputs = select([BASE, INT8], reports, context, max_trials=1)
    assert outputs.model is BASE
    assert reasons(outputs)["int8"] == "not tried: max_trials is 1"
    assert Select(Options(objective="size", max_trials=3)).limits() == {"models": 3}
    assert Select(Options(objective="size")).limits() == {}


def test_parity_is_found_in_the_reports_of_the_stages_that_made_the_candidates(context: Any) -> None:
    reports = [report(HALF, None, parity__cosine=0.99999), report(INT8, None, parity__cosine=0.97)]
    outputs = select([BASE, HALF, INT8], reports, context, "size", subject_to=["parity.cosine >= 0.98"])
    assert outputs.model is HALF
    assert reasons(outputs)["int8"] == "parity.cosine 0.97 is not >= 0.98"
    assert reasons(outputs)["fp32"].startswith("size 1000 B, the chosen"), (
        "it is what others are compared with"
    )


def test_front_between_objective_and_accuracy(context: Any) -> None:
    wrong, beside = model(20, "int4", BASE), model(21, "int8", BASE)
    reports = [
        report(BASE, latency__p95=0.03, accuracy_drop=0.0, accuracy=0.99),
        report(HALF, latency__p95=0.04, accuracy_drop=0.0, accuracy=0.99),
        report(INT8, latency__p95=0.02, accuracy_drop=0.004, accuracy=0.986),
        report(wrong, latency__p95=0.01, accuracy_drop=0.5, accuracy=0.49),
        report(beside, latency__p95=0.02, accuracy_drop=0.005, accuracy=0.985),
    ]
    asked = ["accuracy_drop <= budget.accuracy_drop", "latency.p95 <= slo.latency.p95"]
    details = select([BASE, HALF, INT8, wrong, beside], reports, context, subject_to=asked).report.details
    assert [(row["x"], row["y"], row["on_front"], row["chosen"]) for row in details["pareto"]] == [
        (0.03, 0.0, True, False), (0.04, 0.0, False, False), (0.02, 0.004, True, True), (0.01, 0.5, True, False),
        (0.02, 0.005, False, False),
    ]  # fmt: skip
    assert details["pareto_axes"] == {
        "x": {
            "metric": "latency.p95",
            "direction": "minimize",
            "bounds": [{"text": asked[1], "value": 0.02}],
        },
        "y": {
            "metric": "accuracy_drop",
            "direction": "minimize",
            "bounds": [{"text": asked[0], "value": 0.005}],
        },
    }


def test_front_against_size_where_nobody_knows_the_accuracy(context: Any) -> None:
    reports = [report(BASE, latency__p95=0.03), report(HALF, latency__p95=0.02)]
    details = select([BASE, HALF, INT8], reports, context).report.details
    assert [(row["y"], row["chosen"]) for row in details["pareto"]] == [(1000.0, False), (500.0, True)]
    assert details["pareto_axes"]["y"]["metric"] == "size"


def test_engine_is_a_candidate_that_is_never_handed_on(context: Any) -> None:
    engine = TensorrtEngine(
        files=(FileEntry(path="model.plan", sha256="1" * 64, size=10),), signature=SIGNATURE,
        flavor="tensorrt-rtx", version="1.7.1", compute_capabilities=("8.9",), precision="fp16",
    )  # fmt: skip
    assert select([BASE, engine], [], context, "size").model is BASE  # type: ignore[list-item]
    outputs = select([BASE, engine], [report(BASE, latency__p95=0.03)], context)  # type: ignore[list-item]
    assert reasons(outputs)["fp16"] == "no report about it has latency.p95"
    outputs = select([BASE, engine], [], context, "size")  # type: ignore[list-item]
    assert reasons(outputs)["fp16"].startswith(
        "it is a TensorRT engine, and what is handed on here is an ONNX model"
    )


def test_nearest_surviving_ancestor_is_the_bar(context: Any) -> None:
    """A slower middle one is dropped, and its child has to be better than the first."""
    child = model(5, "int8", HALF)
    reports = [
        report(BASE, latency__p95=0.01),
        report(HALF, latency__p95=0.02),
        report(child, latency__p95=0.015),
    ]
    outputs = select([child, HALF, BASE], reports, context)
    assert outputs.model is BASE
    assert f"of fp32 {BASE.digest[:12]}" in reasons(outputs)["int8"]


def test_baseline_is_the_bar_for_all(context: Any) -> None:
    other = model(6, "fp16", None)
    reports = [report(BASE, latency__p95=0.01), report(other, latency__p95=0.0099)]
    assert select([BASE, other], reports, context).model is BASE
    assert select([other, BASE], reports, context, baseline="fp32").model is BASE
    with pytest.raises(StageError) as caught:
        select([BASE, other], reports, context, baseline="int8")
    assert str(caught.value) == "baseline 'int8' fits 0 of the candidates (fp32, fp16), not one"


def test_constraints_drop_what_breaks_them(context: Any) -> None:
    reports = [
        report(BASE, latency__p95=0.03, accuracy_drop=0.0),
        report(HALF, latency__p95=0.02, accuracy_drop=0.001),
        report(INT8, latency__p95=0.01, accuracy_drop=0.01),
    ]
    constraints = ["accuracy_drop <= budget.accuracy_drop", "size <= 500B"]
    outputs = select([BASE, HALF, INT8], reports, context, subject_to=constraints)
    assert outputs.model is HALF
    assert reasons(outputs)["fp32"] == "size 1000 B is not <= 500 B"
    assert reasons(outputs)["int8"] == "accuracy_drop 0.01 is not <= 0.005"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({}, "no report about it has latency.p95"),
        ({"latency__p95": math.nan}, "latency.p95 is nan"),
        ({"latency__p95": math.inf}, "latency.p95 is inf"),
    ],
)
def test_candidate_without_a_finite_metric_is_out(
    context: Any, metrics: dict[str, float], reason: str
) -> None:
    outputs = select([INT8, BASE], [report(INT8, "h", **metrics), report(BASE, latency__p95=0.01)], context)
    assert outputs.model is BASE
    assert reasons(outputs)["int8"] == reason


def test_no_survivor_is_a_gate_that_names_every_loser(context: Any) -> None:
    reports = [report(BASE, latency__p95=0.03), report(INT8)]
    with pytest.raises(GateError) as caught:
        select([BASE, INT8], reports, context, subject_to=["latency.p95 <= slo.latency.p95"])
    assert str(caught.value) == (
        "no candidate is left under minimize latency.p95:\n"
        f"  fp32 {BASE.digest[:12]}: latency.p95 30 ms is not <= 20 ms\n"
        f"  int8 {INT8.digest[:12]}: no report about it has latency.p95"
    )


def test_measurements_of_different_hosts_are_not_compared(context: Any) -> None:
    reports = [report(BASE, host="a" * 64, latency__p95=0.03), report(INT8, host="b" * 64, latency__p95=0.01)]
    with pytest.raises(StageError) as caught:
        select([BASE, INT8], reports, context)
    assert str(caught.value) == (
        "measurements from different machines cannot be compared ("
        f"host aaaaaaaaaaaa: fp32 {BASE.digest[:12]}; host bbbbbbbbbbbb: int8 {INT8.digest[:12]}); "
        "run the benchmarks again on one"
    )


def test_host_does_not_matter_to_what_was_not_measured_there(context: Any) -> None:
    reports = [report(BASE, host=None, accuracy=0.9), report(INT8, host="b", accuracy=0.99)]
    assert select([BASE, INT8], reports, context, objective="accuracy").model is INT8


def test_size_needs_no_report(context: Any) -> None:
    assert select([BASE, HALF, INT8], [], context, objective="size").model is INT8


def test_reports_that_contradict_each_other_fail(context: Any) -> None:
    reports = [report(BASE, latency__p95=0.03), report(BASE, latency__p95=0.01)]
    with pytest.raises(
        StageError, match=rf"^latency\.p95 of fp32 {BASE.digest[:12]} differs between reports \("
    ):
        select([BASE], reports, context)
    assert select([BASE], [reports[0], reports[0]], context).model is BASE


def test_report_about_something_else_does_not_count(context: Any) -> None:
    outputs = select(
        [INT8, BASE], [report(BASE, latency__p95=0.03), report(HALF, latency__p95=0.01)], context
    )
    assert outputs.model is BASE


def test_same_model_twice_is_one_candidate(context: Any) -> None:
    outputs = select([BASE, BASE], [report(BASE, latency__p95=0.03)], context)
    assert outputs.report.metrics["candidates"] == 1


def test_nothing_to_choose_from_fails(context: Any) -> None:
    with pytest.raises(StageError, match=r"^there is no model to choose from; "):
        select([], [], context)


def plan(*metrics: str, objectives: Objectives | None = None, **options: Any) -> None:
    inputs = {
        "models": (Upstream("onnx", "torch-export"), Upstream("int8[method=minmax]", "int8-calibration")),
        "reports": (Upstream("checks", "evaluate", metrics),),
    }
    ctx = CheckContext(project=Path(), pipeline="p", inputs=inputs, objectives=objectives or Objectives())
    Select(Options(**{"objective": "latency.p95", **options})).check(ctx)


def test_plan_passes_when_everything_is_measured() -> None:
    plan("latency.*", "accuracy_drop", subject_to=["accuracy_drop <= 1%", "size <= 1MB"])
    plan(objective="size")


def test_plan_says_which_benchmark_to_add() -> None:
    with pytest.raises(SpecError) as caught:
        plan("accuracy")
    assert str(caught.value) == (
        "no stage before this one reports 'latency.p95'; "
        "add one for every candidate and put `benchmark` into `needs`:\n"
        "  - id: benchmark\n    uses: benchmark\n    needs: [onnx, int8]\n    matrix: {candidate: [onnx, int8]}\n"
        '    inputs: {model: "${{ matrix.candidate }}"}'
    )


def test_plan_says_which_check_a_constraint_lacks() -> None:
    with pytest.raises(
        SpecError,
        match=r"^no stage before this one reports 'accuracy_drop'; add one for every candidate and put `evaluate` ",
    ):
        plan("latency.*", subject_to=["accuracy_drop <= 1%"])
    with pytest.raises(SpecError) as caught:
        plan("latency.*", subject_to=["gpu.memory <= 1GB"])
    assert str(caught.value) == (
        "no stage before this one reports 'gpu.memory'; add the stage that does to its `needs`. "
        "Reported are: checks: latency.*"
    )


def test_plan_refuses_a_bound_that_the_spec_lacks() -> None:
    with pytest.raises(SpecError) as caught:
        plan("latency.*", "accuracy_drop", subject_to=["accuracy_drop <= budget.accuracy_drop"])
    assert str(caught.value) == (
        "subject_to: 'accuracy_drop <= budget.accuracy_drop': the spec's budget has no 'accuracy_drop', only nothing"
    )


@pytest.mark.parametrize("options", [{"objective": "speed?"}, {"objective": "size", "subject_to": ["size"]}])
def test_options_that_cannot_be_read_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no "):
        Options.model_validate(options)


def test_it_loads_no_framework() -> None:
    """It runs inside of shipctl's own process."""
    script = (
        "import sys; import shipctl_plugins.qualify.select\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
