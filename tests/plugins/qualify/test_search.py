"""Stage `search`: rungs, who goes on, what time allows, and the real thing on the digits model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from shipctl.errors import GateError, SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, FileEntry, OnnxModel, Report, TensorrtEngine, TorchModel
from shipctl.stages.context import CheckContext, JudgeContext, Objectives, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins.qualify._candidates import Candidate, needed
from shipctl_plugins.qualify._choice import Choice, ChoiceOptions
from shipctl_plugins.qualify._course import Course
from shipctl_plugins.qualify._meter import Answered, Clock, Meter, MeterOptions, wilson
from shipctl_plugins.qualify._racing import Rounds, Rows
from shipctl_plugins.qualify._rungs import cut, shares
from shipctl_plugins.qualify._timing import interleave
from shipctl_plugins.qualify.search import Inputs, Options, Outputs, Search

QUICK: dict[str, Any] = {
    "batch_sizes": [1, 8], "warmup": "10ms", "min_duration": "90ms", "max_duration": "120ms",
    "require_stable": False,
}  # fmt: skip
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)


@pytest.mark.slow
class TestConformance(StageConformance):
    stage = "search"
    options: ClassVar = {**QUICK, "objective": "latency.p95", "batch_sizes": [1]}
    objectives = Objectives(slo={"latency.p95": 1.0})


def candidate(number: int, **fields: Any) -> Candidate:
    entry = FileEntry(path="model.onnx", sha256=f"{number:064x}", size=1000)
    model = OnnxModel(files=(entry,), signature=SIGNATURE, opset=21, precision=f"int{number}")
    return Candidate(model, order=number, **fields)


def choice(*subject_to: str, objective: str = "latency.p95", **fields: Any) -> Choice:
    options = ChoiceOptions(objective=objective, subject_to=subject_to, **fields)
    return Choice(options, Objectives(budget={"accuracy_drop": 0.01}))


def raced(number: int, *rounds: float, **metrics: float) -> Candidate:
    named = {name.replace("__", "."): value for name, value in metrics.items()}
    return candidate(
        number, metrics={"latency.p95": sorted(rounds)[len(rounds) // 2], **named},
        rounds={"latency.p95": list(rounds)},
    )  # fmt: skip


# -- rungs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "factor", "expected"),
    [
        (1, 2, [1]), (2, 2, [1 / 2, 1]), (8, 2, [1 / 8, 1 / 4, 1 / 2, 1]), (9, 3, [1 / 9, 1 / 3, 1]),
        (5, 2, [1 / 8, 1 / 4, 1 / 2, 1]),
    ],
)  # fmt: skip
def test_the_last_rung_is_the_full_measurement(candidates: int, factor: int, expected: list[float]) -> None:
    assert shares(candidates, factor) == pytest.approx(expected)


def test_the_sign_test_asks_for_eight_of_nine() -> None:
    assert [needed(rounds) for rounds in (4, 5, 8, 9)] == [5, 5, 7, 8]


def test_the_worse_half_is_dropped_where_it_was_slower_in_nearly_all_rounds() -> None:
    fast, slow = raced(1, *[1.0] * 9), raced(2, *[2.0] * 9)
    found = cut([slow, fast], choice(), 2)
    assert found.kept == [fast]
    ((dropped, why),) = found.dropped
    assert dropped is slow
    assert why == f"latency.p95 2 s against 1 s of {fast.name}, worse in 9 of 9 rounds"


def test_one_slow_second_of_the_machine_drops_nobody_and_saves_nobody() -> None:
    """All were measured in turn: a burst hits neighbours, and the medians and rounds stay what they are."""
    fast = raced(1, *[1.0] * 8, 50.0)
    slow = raced(2, *[2.0] * 8, 3.0)
    assert cut([slow, fast], choice(), 2).kept == [fast]
    close = raced(3, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 0.9, 0.9, 0.9)
    assert cut([close, fast], choice(), 2).kept == [fast, close]


def test_what_surely_breaks_a_constraint_goes_before_what_is_slower() -> None:
    wrong = raced(1, *[1.0] * 9, accuracy_drop=0.3, accuracy_drop__low=0.2)
    right = raced(2, *[2.0] * 9, accuracy_drop=0.0, accuracy_drop__low=0.0)
    found = cut([wrong, right], choice("accuracy_drop <= budget.accuracy_drop"), 2)
    assert found.kept == [right]
    assert found.dropped[0][1] == "accuracy_drop 0.3 is not <= 0.01"


def test_what_may_still_keep_a_constraint_is_judged_by_its_speed() -> None:
    maybe = raced(1, *[1.0] * 9, accuracy_drop=0.03, accuracy_drop__low=-0.01)
    right = raced(2, *[2.0] * 9, accuracy_drop=0.0)
    assert cut([maybe, right], choice("accuracy_drop <= budget.accuracy_drop"), 2).kept == [maybe]


def test_too_few_runs_for_a_percentile_compare_by_the_median() -> None:
    both = [
        candidate(n, metrics={"latency.p95": 1.0}, rounds={"latency.p50": [float(n)] * 9}) for n in (1, 2)
    ]
    found = cut(both, choice(), 2)
    assert (found.kept, found.compared_by) == ([both[0]], "latency.p50")


def test_scores_are_compared_by_their_intervals() -> None:
    asked = choice(objective="accuracy")
    good = candidate(1, metrics={"accuracy": 0.9, "accuracy.low": 0.85, "accuracy.high": 0.94})
    near = candidate(2, metrics={"accuracy": 0.8, "accuracy.low": 0.7, "accuracy.high": 0.87})
    bad = candidate(3, metrics={"accuracy": 0.5, "accuracy.low": 0.4, "accuracy.high": 0.6})
    found = cut([bad, near, good], asked, 3)
    assert found.kept == [good, near]
    assert [item for item, _ in found.dropped] == [bad]


def test_wilson_interval() -> None:
    """0 of 10 and 8 of 10, as in Newcombe (1998) and by statsmodels' proportion_confint."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)


def test_things_measured_in_turn_have_as_many_slices_each() -> None:
    calls: list[str] = []
    runs = [lambda name=name: calls.append(name) for name in "ab"]
    both = interleave(runs, warmup=0.0, window=0.003, longest=0.01, tolerance=1e9)
    assert [len(one.slices) for one in both] == [9, 9]
    assert [len(one.windows) for one in both] == [3, 3]
    assert all(one.settled(1e9) for one in both)
    turns = [name for name, before in zip(calls[1:], calls, strict=False) if name != before]
    assert len(turns) > 9, "they take turns"


# -- the course, with a meter that knows the answers and a clock that it moves -----------------------------------------


class Fake:
    """Candidates with known speeds; measuring one in full takes a second, a part as much less."""

    def __init__(self, speeds: dict[int, float], broken: Sequence[int] = ()) -> None:
        self.now = 0.0
        self.asked: list[tuple[int, float]] = []
        self._speeds, self._broken = speeds, broken

    def seconds(self, model: OnnxModel, share: float) -> float:
        return share

    def seconds_of_rest(self, model: OnnxModel) -> float:
        return 0.0

    def answers(self, model: OnnxModel, share: float) -> Answered:
        if _number(model) in self._broken:
            raise StageError("it does not load")
        return Answered({"accuracy": 0.9, "samples": 100 * share})

    def speed(self, models: Sequence[OnnxModel], share: float) -> list[tuple[Rows, Rounds]]:
        found = []
        for model in models:
            number = _number(model)
            self.now += share
            self.asked.append((number, share))
            found.append(([_speed_row(self._speeds[number])], {"latency.p95": [self._speeds[number]] * 9}))
        return found

    def rest(self, model: OnnxModel) -> Rows:
        return []


def _number(model: OnnxModel) -> int:
    return int(model.files[0].sha256, 16)


def _speed_row(seconds: float) -> dict[str, Any]:
    return {
        "batch": 1, "threads": 1, "stable": True, "runs": 200, "mean": seconds, "mean_interval": (seconds, seconds),
        "throughput": 1 / seconds,
        "percentiles": [{"percent": 95.0, "seconds": seconds, "interval": (seconds, seconds)}],
    }  # fmt: skip


def search(
    fake: Fake, numbers: Sequence[int], limit: float | None = None, factor: int | None = 2
) -> tuple[list[Candidate], Course]:
    candidates = [candidate(number) for number in numbers]
    clock = Clock(limit, lambda: fake.now)
    course = Course(choice(), fake, clock, lambda line: None, factor)
    course.run(candidates)
    return candidates, course


SPEEDS = {1: 8.0, 2: 7.0, 3: 6.0, 4: 5.0, 5: 4.0, 6: 3.0, 7: 2.0, 8: 1.0}


def test_halving_measures_only_the_last_one_in_full() -> None:
    fake = Fake(SPEEDS)
    candidates, course = search(fake, range(1, 9))
    assert [row["tried"] for row in course.rungs] == [8, 4, 2, 1]
    assert [number for number, share in fake.asked if share == 1] == [8]
    assert fake.now == pytest.approx(8 / 8 + 4 / 4 + 2 / 2 + 1)
    assert candidates[0].reason == (
        f"dropped in rung 1 of 4, after 1/8 of the measurement: latency.p95 8 s against 4 s of {candidates[4].name}, "
        "worse in 9 of 9 rounds"
    )
    assert choice().decide(candidates).best is candidates[7]


def test_exhaustive_measures_all_in_full() -> None:
    fake = Fake(SPEEDS)
    search(fake, [1, 2, 3], factor=None)
    assert fake.asked == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_equals_go_on_and_the_simplest_wins() -> None:
    fake = Fake(dict.fromkeys(range(1, 5), 1.0))
    candidates, course = search(fake, [1, 2, 3, 4])
    assert [row["kept"] for row in course.rungs] == [4, 4, 4]
    assert choice().decide(candidates).best.order == 4  # int4 has most bits of int1 to int4


def test_time_that_runs_out_goes_to_the_full_measurement_of_the_best_so_far() -> None:
    fake = Fake(SPEEDS)
    candidates, course = search(fake, range(1, 9), limit=2.3)
    assert fake.now <= 2.3
    assert [row["tried"] for row in course.rungs] == [8, 1, 1]
    assert course.rungs[1]["note"] == "max_time 2300ms was nearly over: straight to the full measurement"
    assert candidates[7].reason == ""
    assert [item.reason for item in candidates[4:7]] == ["not measured in full: max_time 2300ms was over"] * 3
    assert course.rungs[-1]["note"] == "max_time 2300ms was over"


def test_no_time_at_all_measures_the_first_and_names_the_others() -> None:
    fake = Fake(SPEEDS)
    candidates, _ = search(fake, [1, 2, 3], limit=0.5)
    assert fake.asked == [(1, 1.0)]
    assert [item.reason for item in candidates] == ["", *["not tried: max_time 500ms was over"] * 2]
    fake = Fake(SPEEDS)
    candidates, _ = search(fake, [1, 2, 3], limit=2.5, factor=None)
    assert [item.reason for item in candidates] == ["", "", "not tried: max_time 2500ms was over"]


def test_what_cannot_be_measured_is_out_and_the_others_go_on() -> None:
    fake = Fake(SPEEDS, broken=[8])
    candidates, _ = search(fake, [1, 7, 8])
    assert candidates[2].reason == "it cannot be measured: it does not load"
    assert choice().decide(candidates).best is candidates[1]


def test_numbers_of_different_rungs_are_put_on_one_scale() -> None:
    """The machine is half as fast in the last rung; what was dropped before would look better than it is."""
    fake = Fake({1: 3.0, 2: 2.0})
    speed = fake.speed

    def slower(models: Sequence[OnnxModel], share: float) -> list[tuple[Rows, Rounds]]:
        if share == 1:
            fake._speeds = {1: 6.0, 2: 4.0}
        return speed(models, share)

    fake.speed = slower  # type: ignore[method-assign]
    candidates, course = search(fake, [1, 2])
    best = choice().decide(candidates).best
    course.level(candidates, best)
    assert [item.level for item in candidates] == [6.0, 4.0]
    assert candidates[0].metrics["latency.p95"] == 6.0


def test_numbers_stay_as_they_were_measured_where_the_last_rounds_have_too_few_runs() -> None:
    """A machine that is suddenly busy: the whole has a percentile then, and its rounds have none."""
    fake = Fake({1: 3.0, 2: 2.0})
    speed = fake.speed

    def busy(models: Sequence[OnnxModel], share: float) -> list[tuple[Rows, Rounds]]:
        return [(rows, rounds if share < 1 else {}) for rows, rounds in speed(models, share)]

    fake.speed = busy  # type: ignore[method-assign]
    candidates, course = search(fake, [1, 2])
    best = choice().decide(candidates).best
    course.level(candidates, best)
    assert best is candidates[1]
    assert [item.metrics["latency.p95"] for item in candidates] == [3.0, 2.0]
    assert [item.level for item in candidates] == [None, None]


def test_a_late_ancestor_is_still_the_bar() -> None:
    parent = candidate(1, metrics={"latency.p95": 1.0}, reason="not measured in full: …", late=True)
    child = candidate(2, metrics={"latency.p95": 2.0})
    child.model = child.onnx.model_copy(update={"derived_from": parent.model.digest})
    with pytest.raises(GateError, match=r"latency\.p95 2 s against 1 s of int1 .* is no improvement by 2%"):
        choice().decide([parent, child])


# -- the stage ---------------------------------------------------------------------------------------------------------


def variant(base: OnnxModel, folder: Path, change: Any, **fields: Any) -> OnnxModel:
    """Return a changed copy of a model, derived from it."""
    import onnx

    model = onnx.load(base.path)
    change(model)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return sealed(
        OnnxModel.at(folder, signature=base.signature, opset=base.opset, derived_from=base.digest, **fields)
    )


def _scramble(model: Any) -> None:
    """Make the last layer answer nonsense."""
    from onnx import numpy_helper

    head = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weights = np.random.default_rng(0).standard_normal(numpy_helper.to_array(head).shape).astype(np.float32)
    head.CopyFrom(numpy_helper.from_array(weights, "w"))


def _slow(model: Any) -> None:
    """Multiply by the unit matrix many times: the same answers, later."""
    from onnx import helper, numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.eye(10, dtype=np.float32), "unit"))
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "step0"
    for step in range(400):
        after = "logits" if step == 399 else f"step{step + 1}"
        model.graph.node.append(helper.make_node("MatMul", [f"step{step}", "unit"], [after]))


@pytest.fixture
def candidates(digits_onnx: OnnxModel, tmp_path: Path) -> list[OnnxModel]:
    """The digits model, one that is slower, one that answers nonsense, and one that does not load."""
    wrong = variant(digits_onnx, tmp_path / "wrong", _scramble, precision="int8")
    slow = variant(digits_onnx, tmp_path / "slow", _slow, precision="fp16")
    broken = variant(digits_onnx, tmp_path / "broken", lambda model: model.graph.ClearField("input"))
    return [digits_onnx, slow, wrong, broken]


def run(
    models: list[Any],
    context: Any,
    evaluation: Dataset | None,
    reports: Sequence[Report] = (),
    **options: Any,
) -> Outputs:
    stage = Search(Options.model_validate({"objective": "latency.p95", **QUICK, **options}))
    inputs = Inputs.model_construct(
        models=models, reports=list(reports), evaluation=evaluation, reference=None
    )
    return stage.run(inputs, context(budget={"accuracy_drop": 0.005}))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["exhaustive", "successive-halving"])
def test_the_best_of_real_models_with_a_reason_for_each(
    candidates: list[OnnxModel], context: Any, evaluation: Dataset, strategy: str
) -> None:
    outputs = run(candidates, context, evaluation, strategy=strategy, subject_to=["accuracy >= 97%"])
    assert outputs.model is candidates[0]
    report = outputs.report
    rows = {row["digest"]: row for row in report.details["candidates"]}
    assert [rows[model.digest]["chosen"] for model in candidates] == [True, False, False, False]
    _, slow, wrong, broken = (rows[model.digest]["reason"] for model in candidates)
    if strategy == "exhaustive":
        assert "is no improvement by 2%" in slow
        assert wrong.startswith("accuracy 0.")
    else:
        assert slow.startswith("dropped in rung ")
        assert "against" in slow
        assert wrong.startswith("dropped in rung 1 of 3, after 1/4 of the measurement: accuracy 0.")
    assert broken.startswith("it cannot be measured: model.onnx does not load in ONNX Runtime")
    assert report.subject == candidates[0].digest
    assert report.metrics["samples"] == 600
    assert report.metrics["accuracy"] > 0.97
    assert report.metrics["selected.latency.p95"] == report.metrics["latency.p95"]
    assert "latency.p95@batch=8,threads=1" in report.metrics, "the chosen one has the whole benchmark"
    assert {row["on_front"] for row in report.details["pareto"]} == {True, False}
    assert report.details["pareto_axes"]["y"]["bounds"] == [{"text": "accuracy >= 97%", "value": 0.97}]


@pytest.mark.slow
def test_without_evaluation_data_only_speed_and_size_decide(
    digits_onnx: OnnxModel, context: Any, tmp_path: Path
) -> None:
    slow = variant(digits_onnx, tmp_path / "slow", _slow)
    outputs = run([slow, digits_onnx], context, None, objective="throughput", max_trials=1, batch_sizes=[1])
    assert outputs.model is slow
    reasons = {row["digest"]: row["reason"] for row in outputs.report.details["candidates"]}
    assert reasons[digits_onnx.digest] == "not tried: max_trials is 1"
    assert outputs.report.details["pareto_axes"]["y"]["metric"] == "size"


def test_parts_of_classes_have_intervals_and_other_scores_all_samples(
    digits_onnx: OnnxModel, evaluation: Dataset, dataset: Any
) -> None:
    meter = Meter(_meter_options(), evaluation, None, [], seed=0, threads=1)
    part = meter.answers(digits_onnx, 1 / 8)
    assert part.metrics["samples"] == 75
    assert part.metrics["accuracy.low"] < part.metrics["accuracy"] <= part.metrics["accuracy.high"]
    whole = meter.answers(digits_onnx, 1.0)
    assert whole.metrics["samples"] == 600
    assert "accuracy.low" not in whole.metrics
    with np.load(evaluation.path) as file:
        pairs = dataset(image=file["image"][:200], label=np.repeat(np.arange(100, dtype=np.float32), 2))
    meter = Meter(_meter_options(task="pairs"), pairs, None, [], seed=0, threads=1)
    assert meter.answers(digits_onnx, 1 / 8).metrics["samples"] == 200


def _meter_options(**fields: Any) -> MeterOptions:
    return MeterOptions.model_validate({**QUICK, **fields})


@pytest.mark.torch
@pytest.mark.slow
def test_the_drop_of_a_part_is_against_the_source_on_the_same_samples(
    digits_onnx: OnnxModel, digits_torch: TorchModel, evaluation: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    meter = Meter(_meter_options(), evaluation, digits_torch, [], seed=0, threads=1)
    same = meter.answers(digits_onnx, 1 / 4).metrics
    assert (same["accuracy_drop"], same["accuracy_drop.low"], same["accuracy_drop.high"]) == (0.0, 0.0, 0.0)
    wrong = meter.answers(variant(digits_onnx, tmp_path / "wrong", _scramble), 1 / 4).metrics
    assert 0.5 < wrong["accuracy_drop.low"] < wrong["accuracy_drop"] < wrong["accuracy_drop.high"]
    assert wrong["accuracy_source"] == same["accuracy_source"]


def test_an_engine_is_out_with_its_reason_and_parity_comes_from_reports(
    digits_onnx: OnnxModel, context: Any, tmp_path: Path
) -> None:
    engine = TensorrtEngine(
        files=(FileEntry(path="model.plan", sha256="1" * 64, size=10),), signature=digits_onnx.signature,
        flavor="tensorrt-rtx", version="1.7.1", compute_capabilities=("8.9",), precision="fp16",
    )  # fmt: skip
    other = variant(digits_onnx, tmp_path / "other", lambda model: None, precision="int8")
    reports = [
        Report(subject=other.digest, title="INT8", metrics={"parity.cosine": 0.5}),
    ]
    outputs = run(
        [digits_onnx, engine, other], context, None, reports, subject_to=["parity.cosine >= 0.98"], batch_sizes=[1]
    )  # fmt: skip
    reasons = {row["precision"]: row["reason"] for row in outputs.report.details["candidates"]}
    assert outputs.model is digits_onnx, "what derives from nothing is what the others are compared with"
    assert reasons["fp16"] == "it is a TensorRT engine, which ONNX Runtime cannot measure"
    assert "parity.cosine 0.5 is not >= 0.98" in reasons["int8"]


def test_nothing_to_choose_from_fails(context: Any) -> None:
    with pytest.raises(StageError, match=r"^there is no model to choose from; "):
        run([], context, None)


@pytest.mark.slow
def test_nothing_that_can_be_measured_is_a_gate_that_says_why(
    candidates: list[OnnxModel], context: Any
) -> None:
    with pytest.raises(
        GateError, match=r"no candidate is left under minimize latency\.p95:\n.*cannot be measured"
    ):
        run(candidates[3:], context, None)


def test_the_chosen_one_is_judged_as_benchmark_and_evaluate_do() -> None:
    metrics = {
        "latency.p95": 0.03, "latency.runs": 500.0, "stable": 0.0, "samples": 600.0, "outputs.not_finite": 0.0,
        "accuracy": 0.96, "accuracy_drop": 0.0,
    }  # fmt: skip
    report = Report(subject="0" * 64, title="Search", metrics=metrics)
    objectives = Objectives(
        slo={"latency.p95": 0.02}, budget={"accuracy_drop": 0.005},
        data={"evaluation": {"metric": "accuracy", "min": 0.97}},
    )  # fmt: skip
    stage = Search(Options(objective="size"))
    model = candidate(1).onnx
    verdicts = stage.judge(Outputs(model=model, report=report), JudgeContext(objectives=objectives))
    assert {verdict.gate: verdict.outcome for verdict in verdicts} == {
        "stability": Outcome.INCONCLUSIVE, "latency.p95": Outcome.FAIL, "samples": Outcome.PASS,
        "outputs.not_finite": Outcome.PASS, "accuracy": Outcome.FAIL, "accuracy_drop": Outcome.PASS,
    }  # fmt: skip


# -- at plan time --------------------------------------------------------------------------------------


def plan(inputs: Mapping[str, tuple[Upstream, ...]] | None = None, **options: Any) -> None:
    there = {"models": (Upstream("onnx", "torch-export"),), **(inputs or {})}
    ctx = CheckContext(project=Path(), pipeline="p", inputs=there, objectives=Objectives())
    Search(Options.model_validate({"objective": "latency.p95", **options})).check(ctx)


def test_what_it_measures_itself_needs_no_stage() -> None:
    data = {"evaluation": (Upstream("data.evaluation", ""),)}
    plan()
    plan(data, subject_to=["accuracy >= 97%", "latency.p99 <= 20ms", "size <= 1MB"])
    with pytest.raises(SpecError, match=r"^no stage before this one reports 'accuracy'; "):
        plan(subject_to=["accuracy >= 97%"])
    with pytest.raises(SpecError, match=r"^no stage before this one reports 'accuracy_drop'; "):
        plan(data, subject_to=["accuracy_drop <= 1%"])
    with pytest.raises(SpecError) as caught:
        plan(subject_to=["parity.cosine >= 0.99"])
    assert str(caught.value) == (
        "no stage before this one reports 'parity.cosine'; stages that convert or optimise a model do: put those that "
        "make the candidates (onnx) into `needs`"
    )
    plan(
        {"reports": (Upstream("int8", "int8-calibration", ("parity.cosine",)),)},
        subject_to=["parity.cosine >= 0.99"],
    )


def test_too_little_time_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        plan(max_time="2s")
    assert str(caught.value) == (
        "max_time 2s is less than one candidate takes (3300ms); give it more, or shorten `min_duration`, `batch_sizes` "
        "or `threads`"
    )
    plan(max_time="4s")


def test_factor_belongs_to_halving() -> None:
    with pytest.raises(ValueError, match="factor belongs to strategy: successive-halving"):
        Options(objective="size", strategy="exhaustive", factor=3)


def test_options_survive_the_way_to_a_worker() -> None:
    options = Options.model_validate({"objective": "size", **QUICK, "max_time": "2m"})
    assert Options.model_validate(options.model_dump(mode="json")) == options


def test_infinite_metrics_never_win() -> None:
    lost = candidate(1, metrics={"latency.p95": math.inf})
    kept = candidate(2, metrics={"latency.p95": 1.0})
    assert choice().decide([lost, kept]).best is kept
    assert lost.reason == "latency.p95 is inf"
