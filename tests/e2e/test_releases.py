"""Releases on real Tritons behind a real Envoy, under the load of Triton's own client, while something breaks.

One after the other on one project, as they would come: each begins with what the one before has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import support_faults as faults
import support_prometheus
from shipctl.release.target import LEASE_SECONDS
from support_faults import Outcome, World, world

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Version 1.0.0 serves, and requests come."""
    root = tmp_path_factory.mktemp("live")
    (root / ".shipctl").mkdir()
    with world(root, rate=50) as running:
        yield running


def show(outcome: Outcome) -> str:
    """Return what to print where something is not as it should be."""
    failed = [line["error"] for line in outcome.requests.failed]
    return f"{outcome.line}\n{failed[:3]}\n{outcome.output}"


@pytest.mark.parametrize("move", [faults.promote_by_bluegreen, faults.shipctl_is_killed])
def test_a_planned_move_loses_no_request(live: World, move: Callable[[World], Outcome]) -> None:
    """Even if shipctl is killed on the way, wherever that is."""
    before = live.stable()
    outcome = move(live)
    assert outcome.exit_code == 0, show(outcome)
    assert outcome.requests.failed == (), show(outcome)
    assert live.stable() == live.number() != before
    assert set(outcome.requests.versions()) == {str(before), str(live.stable())}
    assert live.servers(before) == [], "the old servers are stopped"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            faults.candidate_fails,
            "failed|is not ready",
        ),  # the door may throw it out before it is sure of the errors
        (faults.candidate_is_slow, "slower|above"),
        (faults.candidate_is_killed, "is not ready"),
    ],
)
def test_a_candidate_that_goes_bad_goes_back(
    live: World, fault: Callable[[World], Outcome], reason: str
) -> None:
    before = live.stable()
    outcome = fault(live)
    assert outcome.exit_code == 7, show(outcome)
    assert live.stable() == before
    assert outcome.back is not None
    assert outcome.back < 60, show(outcome)
    assert any(word in outcome.output.splitlines()[-1] for word in reason.split("|")), outcome.output
    if fault is not faults.candidate_fails:
        assert len(outcome.requests.failed) <= 0.001 * len(outcome.requests.all) + 1, show(outcome)


def test_a_candidate_that_answers_wrongly_gets_no_request(live: World) -> None:
    before = live.stable()
    outcome = faults.candidate_is_wrong(live)
    assert outcome.exit_code == 4, show(outcome)
    assert outcome.requests.versions().keys() == {str(before)}
    assert outcome.requests.failed == ()


def test_a_shadow_finds_answers_that_differ(live: World) -> None:
    before = live.stable()
    outcome = faults.candidate_differs(live)
    assert outcome.exit_code in {4, 7}, show(outcome)
    assert outcome.requests.versions().keys() == {str(before)}, "users see only the stable version"
    assert outcome.requests.failed == (), show(outcome)
    assert "differ" in outcome.output, outcome.output


def test_one_of_two_stable_servers_may_die(live: World) -> None:
    outcome = faults.stable_is_killed(live)
    assert outcome.exit_code == 0, show(outcome)
    assert len(outcome.requests.failed) <= 0.001 * len(outcome.requests.all) + 1, show(outcome)
    assert outcome.requests.trouble < 5


def test_if_nobody_comes_back_the_watchdog_returns_to_stable(live: World) -> None:
    before = live.stable()
    outcome = faults.nobody_comes_back(live)
    assert outcome.requests.failed == (), show(outcome)
    assert outcome.back is not None
    assert 1 < outcome.back < LEASE_SECONDS + 3, show(outcome)
    assert live.stable() == before


@pytest.mark.skipif(support_prometheus.BINARY is None, reason=support_prometheus.MISSING)
def test_a_prometheus_that_goes_away_never_promotes(live: World, tmp_path: Path) -> None:
    before = live.stable()
    with support_prometheus.prometheus(tmp_path, []) as server:
        outcome = faults.source_goes_away(live, server.url, server.kill)
    assert outcome.exit_code == 7, show(outcome)
    assert outcome.requests.failed == (), show(outcome)
    assert live.stable() == before
    assert f"{server.url}/api/v1/query cannot be asked" in outcome.output.splitlines()[-1], outcome.output
