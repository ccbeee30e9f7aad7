"""Shadow verdicts: never a pass on little or nothing, an end as soon as it is sure, numbers that say why."""

from __future__ import annotations

import random

import pytest

from shipctl.release.analysis.shadow import ALPHA, Comparisons, ShadowState, judge_shadow, needed
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import ShadowOptions
from shipctl.spec.units import Percentage
from shipctl.stages.verdicts import Outcome

OPTIONS = ShadowOptions()


def window(compared: int, differing: int = 0, *, at: float = 0.0, **more: object) -> Comparisons:
    """A window of 10 s; each answer has one sample with a class, and `wrong` of them have another one."""
    wrong, failed = int(str(more.pop("wrong", 0))), int(str(more.pop("failed", 0)))
    answered = compared - failed
    fields = {
        "since": at,
        "until": at + 10,
        "compared": compared,
        "differing": differing,
        "failed": failed,
        "classed": answered,
        "samples": answered,
        "agreeing": answered - wrong,
        "disagreement": float(wrong),
        **more,
    }
    return Comparisons.model_validate(fields)


def judged(*windows: Comparisons, options: ShadowOptions = OPTIONS) -> Measurement:
    """Judge windows one after another, with what is remembered stored and read in between."""
    state, measurement = ShadowState(), None
    for number, one in enumerate(windows):
        later = one.model_copy(update={"since": one.since + 10 * number, "until": one.until + 10 * number})
        state, measurement = judge_shadow(options, state, later)
        state = ShadowState.model_validate_json(state.model_dump_json())
        assert ShadowState.model_validate(measurement.analysis) == state
    assert measurement is not None
    return measurement


def test_enough_equal_answers_pass() -> None:
    found = judged(window(200), window(200))
    assert (found.outcome, found.conclusive) == (Outcome.PASS, True)
    assert found.summary == (
        "0 of 400 answers differ (0 %), 1 % may; 0 of 400 samples have another class (0 %), 1 % may"
    )
    assert [verdict.gate for verdict in found.verdicts] == [
        "comparisons",
        "differing answers",
        "top-1 agreement",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no copy of a request arrived; send some, or let `replay` do it"),
        ({"unusable": 7}, "the stable revision failed all 7 copies itself, so that they say nothing"),
        (
            {"dropped": 7, "skipped": 2},
            "no copy could be compared: left out are 7 that came too fast, 2 of a kind that cannot be asked again",
        ),
    ],
)
def test_nothing_compared_is_inconclusive(given: dict[str, object], message: str) -> None:
    found = judged(window(0).model_copy(update=given))
    assert (found.outcome, found.conclusive) == (Outcome.INCONCLUSIVE, False)
    assert found.verdicts[0].message == message


def test_few_equal_answers_are_inconclusive_and_say_what_they_could_mean() -> None:
    found = judged(window(100))
    assert (found.outcome, found.conclusive) == (Outcome.INCONCLUSIVE, False)
    assert found.verdicts[0].message == "100 answers were compared so far, 400 are asked for"
    assert found.verdicts[1].message == "0 of 100 answers differ (0 %), which can mean up to 3.38 %, 1 % may"


def test_as_many_as_were_asked_for_are_not_always_enough() -> None:
    found = judged(window(200), options=ShadowOptions(comparisons=200))
    assert (found.outcome, found.conclusive) == (Outcome.INCONCLUSIVE, False)
    assert found.verdicts[0].outcome is Outcome.PASS
    assert 200 < needed(0.01) < 400


def test_enough_by_the_bound_but_fewer_than_asked_for_are_inconclusive() -> None:
    options = ShadowOptions(comparisons=500)
    found = judged(window(400), options=options)
    assert (found.outcome, found.conclusive) == (Outcome.INCONCLUSIVE, False)
    assert judged(window(400), window(100), options=options).outcome is Outcome.PASS


def test_a_clear_failure_ends_early_with_its_reasons() -> None:
    found = judged(window(30, 15, reasons={"relative error above 0.05": 14, "y: shape 3 instead of 4": 1}))
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)
    assert found.summary == (
        "15 of 30 answers differ (50 %), 1 % may: 14 × relative error above 0.05, 1 × y: shape 3 instead of 4"
    )


def test_a_candidate_that_gives_no_answer_fails() -> None:
    found = judged(window(30, 30, failed=30, reasons={"the candidate failed: not reached": 30}))
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)


def test_a_few_bad_answers_at_the_start_fail_nobody() -> None:
    assert judged(window(10, 10)).outcome is Outcome.INCONCLUSIVE


def test_other_classes_fail_even_where_values_are_close() -> None:
    found = judged(window(100, wrong=20))
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)
    assert "20 of 100 samples have another class (20 %), 1 % may" in found.summary


def test_samples_of_one_request_count_as_one_observation() -> None:
    """A hundred frames of one scene in one request are no hundred pieces of evidence."""
    batch = Comparisons(
        since=0, until=10, compared=40, classed=40, samples=4000, agreeing=3900, disagreement=1.0
    )
    assert judged(batch).outcome is Outcome.INCONCLUSIVE


def test_what_breaks_after_a_long_good_time_fails_though_its_share_is_small() -> None:
    """Of 30,050 answers 50 are far below 1 %."""
    options = ShadowOptions(comparisons=40_000)
    found = judged(*[window(3000)] * 10, window(50, 50), options=options)
    assert (found.outcome, found.conclusive) == (Outcome.FAIL, True)
    assert found.summary == "50 of 50 answers differ (100 %) lately, 1 % may"
    later = judged(*[window(3000)] * 10, window(50, 50), window(3000), options=options)
    assert later.outcome is Outcome.FAIL


def test_where_nothing_may_differ_one_that_does_is_enough() -> None:
    options = ShadowOptions(comparisons=200, differing=Percentage("0%"), top1Agreement=None)
    assert judged(window(200), options=options).outcome is Outcome.PASS
    assert judged(window(199), options=options).outcome is Outcome.INCONCLUSIVE
    assert judged(window(200, 1), options=options).outcome is Outcome.FAIL


def test_without_any_bound_nothing_passes() -> None:
    options = ShadowOptions(maxRelError=None, top1Agreement=None)
    found = judged(window(1000), options=options)
    assert (found.outcome, found.conclusive) == (Outcome.ERROR, False)
    assert found.summary == "no bound is set; set one of maxAbsError, maxRelError, top1Agreement"


def test_a_bound_that_applies_to_no_output_passes_nothing() -> None:
    plain = window(1000, classed=0, samples=0, agreeing=0)
    assert judged(plain).outcome is Outcome.PASS  # maxRelError is there by default
    found = judged(plain, options=ShadowOptions(maxRelError=None))
    assert found.outcome is Outcome.ERROR
    assert found.summary == (
        "no output has classes, so that top1Agreement bounds nothing; set maxAbsError or maxRelError"
    )


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"compared": 10, "differing": 11}, "11 of 10 answers differ"),
        ({"compared": 10, "failed": 1, "differing": 0}, "1 of 0 answers that differ failed"),
        ({"compared": 10, "classed": 11, "samples": 11}, "11 of 10 answers have classes"),
        ({"compared": 10, "classed": 5, "samples": 5, "agreeing": 6}, "6 of 5 samples agree"),
        ({"compared": 10, "classed": 5, "samples": 4}, "4 samples in 5 answers"),
        ({"compared": 10, "disagreement": 1.0}, "a disagreement of 1 in 0 answers"),
        ({"until": -1.0}, "the window ends before it begins"),
    ],
)
def test_numbers_that_make_no_sense_are_errors_and_change_nothing(
    wrong: dict[str, object], fault: str
) -> None:
    state, found = judge_shadow(
        OPTIONS, ShadowState(), Comparisons.model_validate({"since": 0, "until": 10, **wrong})
    )
    assert found.outcome is Outcome.ERROR
    assert f"the comparisons make no sense: {fault}" in found.summary
    assert state == ShadowState()


def test_a_window_twice_counts_once_and_one_that_overlaps_is_an_error() -> None:
    state, _ = judge_shadow(OPTIONS, ShadowState(), window(100))
    again, _ = judge_shadow(OPTIONS, state, window(100))
    assert again == state
    _, found = judge_shadow(OPTIONS, state, window(100, at=5))
    assert found.outcome is Outcome.ERROR


def test_a_window_that_is_known_in_part_decides_nothing_good() -> None:
    found = judged(window(400), window(100, coverage=0.5))
    assert (found.outcome, found.conclusive) == (Outcome.INCONCLUSIVE, False)
    assert found.summary == "only 50 % of the window's comparisons are known"


def ended(share: float, rng: random.Random, windows: int) -> Outcome:
    """Look after every 50 answers until the test is over."""
    state = ShadowState()
    for number in range(windows):
        bad = sum(rng.random() < share for _ in range(50))
        state, found = judge_shadow(OPTIONS, state, window(50, bad, at=10.0 * number))
        if found.conclusive:
            return found.outcome
    return Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("share", "wrong"), [(0.01, Outcome.FAIL), (0.0101, Outcome.PASS)])
def test_looking_all_the_time_does_not_make_errors_more_frequent(share: float, wrong: Outcome) -> None:
    """At the very limit, 20 looks each: 40 runs would have 2 wrong ends at most, on average."""
    rng = random.Random(7)
    outcomes = [ended(share, rng, 20) for _ in range(40)]
    assert outcomes.count(wrong) <= 40 * ALPHA * 2


@pytest.mark.parametrize(("share", "right"), [(0.0, Outcome.PASS), (0.1, Outcome.FAIL)])
def test_what_is_clear_is_told_soon(share: float, right: Outcome) -> None:
    rng = random.Random(7)
    assert [ended(share, rng, 8) for _ in range(10)] == [right] * 10
