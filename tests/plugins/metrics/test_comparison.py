"""What the comparator has written, counted with the bounds of a shadow release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shipctl.errors import StageError
from shipctl.release.analysis.shadow import Comparisons, ShadowState, judge_shadow
from shipctl.release.metrics import MetricContext
from shipctl.release.strategy import ShadowOptions
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._triton.comparator_log import FILE, Line, Log
from shipctl_plugins.metrics.comparison import LAG, Comparison, ComparisonOptions
from support_metrics import CANDIDATE, STABLE

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes ``count`` lines of equal answers, each changed as it is told."""
    log = Log(tmp_path)

    def write(count: int = 1, *, at: float = 100.0, **changes: object) -> None:
        for number in range(count):
            fields = {
                "time": at + number / 1000,
                "stable": STABLE,
                "candidate": CANDIDATE,
                "protocol": "http",
                "ok": True,
                "max_abs": 0.001,
                "max_rel": 0.001,
                "samples": 1,
                "agree": 1,
                "seconds_stable": 0.01,
                "seconds_candidate": 0.02,
            }
            log.write(Line.model_validate({**fields, **changes}))

    return write


def provider(
    ctx: MetricContext, options: dict[str, object] | None = None, *, now: float = 1000.0
) -> Comparison:
    return Comparison(ComparisonOptions.model_validate(options or {}), ctx, now=lambda: now)


def counted(found: Comparison, since: float = 100.0, until: float = 110.0) -> Comparisons:
    return Comparisons.model_validate_json(found.query(CANDIDATE, since, until).raw)


FAILED = {"ok": False, "error_candidate": "not reached", "seconds_candidate": None, "samples": 0, "agree": 0}


def test_comparisons_are_counted_and_can_be_judged(ctx: MetricContext, write: Write) -> None:
    write(3)
    write(2, at=101.0, **FAILED)
    found = provider(ctx).query(CANDIDATE, 100.0, 110.0)
    assert (found.requests, found.errors, found.coverage) == (5, 2, 1.0)
    assert found.durations == (0.02, 0.02, 0.02)
    assert found.times == (100.0, 100.001, 100.002)
    assert found.failed == (101.0, 101.001)
    counts = Comparisons.model_validate_json(found.raw)
    assert (counts.compared, counts.differing, counts.failed, counts.agreeing) == (5, 2, 2, 3)
    assert counts.reasons == {"the candidate failed: not reached": 2}
    _, measurement = judge_shadow(ShadowOptions(), ShadowState(), counts)
    assert measurement.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"max_rel": 0.06}, {}, "relative error above 0.05"),
        ({"max_rel": 0.06}, {"maxRelError": 0.1}, None),
        ({"max_abs": 2.0}, {}, None),
        ({"max_abs": 2.0}, {"maxAbsError": 1}, "absolute error above 1"),
        ({"problem": "y: shape 3 instead of 4"}, {"maxRelError": None}, "y: shape 3 instead of 4"),
        ({"agree": 0}, {}, None),
        ({"agree": 0, "unequal": 1}, {}, None),
        ({"agree": 0, "unequal": 1}, {"top1Agreement": None}, "values that are not equal"),
    ],
)
def test_what_differs_depends_on_the_bounds(
    ctx: MetricContext,
    write: Write,
    changes: dict[str, object],
    options: dict[str, object],
    reason: str | None,
) -> None:
    write(1, **changes)
    found = counted(provider(ctx, options))
    assert found.reasons == ({} if reason is None else {reason: 1})
    assert found.differing == (reason is not None)


def test_disagreement_is_a_share_of_each_answer(ctx: MetricContext, write: Write) -> None:
    write(1, samples=32, agree=24)
    write(1, at=101, samples=1, agree=0)
    write(1, at=102, samples=0, agree=0)
    found = counted(provider(ctx))
    assert (found.classed, found.samples, found.agreeing) == (2, 33, 24)
    assert found.disagreement == pytest.approx(1.25)


def test_what_stable_itself_failed_is_no_evidence(ctx: MetricContext, write: Write) -> None:
    write(
        4,
        ok=False,
        error_stable="status 400: no such input",
        seconds_stable=None,
        samples=0,
        agree=0,
    )
    found = provider(ctx).query(CANDIDATE, 100.0, 110.0)
    assert (found.requests, found.errors) == (0, 0)
    assert Comparisons.model_validate_json(found.raw).unusable == 4
    stable = provider(ctx).query(STABLE, 100.0, 110.0)
    assert (stable.requests, stable.errors) == (4, 4)


def test_copies_that_were_left_out_are_told(ctx: MetricContext, tmp_path: Path) -> None:
    Log(tmp_path).write(Line(time=101, stable=STABLE, candidate=CANDIDATE, dropped=3, skipped=2))
    found = counted(provider(ctx))
    assert (found.compared, found.dropped, found.skipped) == (0, 3, 2)


def test_another_candidate_and_another_window_do_not_count(ctx: MetricContext, write: Write) -> None:
    write(1)
    write(1, candidate="c" * 64)
    write(1, at=99.0)
    write(1, at=110.0)
    assert counted(provider(ctx)).compared == 1


def test_the_log_is_read_as_it_grows(ctx: MetricContext, write: Write) -> None:
    found = provider(ctx)
    write(1)
    assert counted(found).compared == 1
    write(2, at=110.0)
    assert counted(found, 110.0, 120.0).compared == 2
    assert counted(found, 100.0, 110.0).compared == 1


def test_a_full_log_goes_on_in_another_file(ctx: MetricContext, tmp_path: Path) -> None:
    found = provider(ctx)
    log = Log(tmp_path, limit=300)
    for number in range(4):
        log.write(
            Line(time=100 + number, stable=STABLE, candidate=CANDIDATE, protocol="grpc", ok=True, max_rel=0.0)
        )
    assert (tmp_path / f"{FILE}.1").exists()
    assert counted(found).compared + 0 >= 2
    assert found.query(CANDIDATE, 90.0, 110.0).coverage < 1  # what was before is gone


def test_a_window_that_has_not_ended_is_known_in_part(ctx: MetricContext, write: Write) -> None:
    write(1)
    assert provider(ctx, now=105.0 + LAG).query(CANDIDATE, 100.0, 110.0).coverage == pytest.approx(0.5)


def test_no_comparator_is_an_error(ctx: MetricContext, tmp_path: Path) -> None:
    message = f"{tmp_path / FILE} is not there: no comparator has run; see whether the traffic is copied"
    with pytest.raises(StageError) as caught:
        provider(ctx).query(CANDIDATE, 100.0, 110.0)
    assert str(caught.value) == message


def test_another_kind_of_file_is_an_error(ctx: MetricContext, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("a\nb\nc\n")
    with pytest.raises(StageError, match=r"^3 of 3 lines of .* are not those of a comparator$"):
        provider(ctx).query(CANDIDATE, 100.0, 110.0)
