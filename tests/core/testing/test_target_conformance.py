"""The kits for targets and routers pass good ones and catch each kind of bad one."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.errors import LockedError, StageError
from shipctl.release.router import Backend, Routed, TrafficRouter
from shipctl.release.target import (
    Action,
    Applied,
    Candidate,
    Capability,
    Commit,
    Observation,
    Preflight,
    Prepare,
    Replicas,
    ScaleDown,
    Shift,
    StaleEpochError,
    Target,
    TargetOptions,
)
from shipctl.release.traffic import Traffic
from shipctl.stages.artifacts import TritonRepository
from shipctl.stages.base import Serving
from shipctl.stages.context import ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.routers import RouterConformance
from shipctl.testing.samples import SIGNATURE
from shipctl.testing.targets import TargetConformance

pytestmark = pytest.mark.slow

OLD, NEW = "a" * 64, "b" * 64


class Shared:
    """What all objects of one target stand for."""

    def __init__(self) -> None:
        self.seen = Observation()
        self.holder = ""
        self.random = random.Random(4)


class Good(Target):
    """Keep everything in memory."""

    api_version: ClassVar[int] = 1
    capabilities = frozenset({Capability.WEIGHTS})
    shared: ClassVar[Shared]

    @property
    def seen(self) -> Observation:
        return self.shared.seen

    def update(self, **changes: Any) -> None:
        self.shared.seen = self.seen.model_copy(update=changes)

    def acquire(self, holder: str) -> int:
        if self.shared.holder not in {"", holder}:
            message = f"{self.shared.holder} holds the lease"
            raise LockedError(message)
        if not self.shared.holder:
            self.update(epoch=self.seen.epoch + 1)
            self.shared.holder = holder
        return self.seen.epoch

    def release(self, epoch: int) -> None:
        if epoch == self.seen.epoch:
            self.shared.holder = ""

    def observe(self, candidate: str | None = None) -> Observation:
        return self.seen

    def apply(self, action: Action, candidate: Candidate | None, epoch: int) -> Applied:
        self.fence(epoch)
        match action:
            case Prepare():
                assert candidate is not None
                self.prepare(candidate)
            case Preflight():
                return Applied(
                    message="asked", verdicts=(Verdict(gate="p", outcome=Outcome.PASS, message="x"),)
                )
            case Shift(traffic=traffic):
                self.shift(traffic)
            case Commit(expected=expected, revision=revision):
                self.commit(expected, revision)
            case ScaleDown(revision=revision):
                self.scale_down(revision)
        return Applied(message=action.kind)

    def fence(self, epoch: int) -> None:
        if epoch != self.seen.epoch:
            message = "somebody else has taken over"
            raise StaleEpochError(message)

    def prepare(self, candidate: Candidate) -> None:
        found = Replicas(version=candidate.version, wanted=2, ready=2)
        self.update(replicas={**self.seen.replicas, candidate.revision: found})

    def shift(self, traffic: Traffic) -> None:
        self.refuse_if(any(not self.seen.ready(name) for name in traffic.revisions), "not ready")
        if traffic != self.seen.traffic:
            self.update(traffic=traffic, shifted=time.time())

    def commit(self, expected: str | None, revision: str | None) -> None:
        if self.seen.stable != revision:
            self.refuse_if(self.seen.stable != expected, "something else is stable")
            self.update(stable=revision, previous=expected)

    def scale_down(self, revision: str) -> None:
        self.refuse_if(revision == self.seen.stable or revision in self.seen.traffic.revisions, "it serves")
        left = {name: found for name, found in self.seen.replicas.items() if name != revision}
        previous = None if self.seen.previous == revision else self.seen.previous
        self.update(replicas=left, previous=previous)

    def refuse_if(self, wrong: bool, why: str) -> None:
        if wrong:
            raise StageError(why)

    def ask(self) -> str | None:
        weights = self.seen.traffic.weights
        if not weights:
            return None
        chosen = self.shared.random.choices(list(weights), list(weights.values()))[0]
        if not self.seen.ready(chosen):
            message = "connection refused"
            raise ConnectionError(message)
        return chosen

    def endpoints(self) -> dict[str, str]:
        return {"http": "http://127.0.0.1:1"}

    def status(self) -> Sequence[Serving]:
        stable = self.seen.stable
        if stable is None:
            return ()
        return (Serving(name="m", version="1.0.0", revision=stable, since=0.0, healthy=True),)

    def down(self) -> Sequence[str]:
        lines = [f"{name} was stopped" for name in self.seen.replicas]
        self.shared.seen = Observation(epoch=self.seen.epoch)
        return lines


class OnGood(TargetConformance):
    name, plugin = "good", Good

    def test_entry_point_names_this_class(self) -> None:
        """Installed nowhere."""

    @pytest.fixture
    def target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
        return made(self.plugin, tmp_path, monkeypatch)

    @pytest.fixture
    def candidates(self, tmp_path: Path) -> tuple[Candidate, Candidate]:
        return pair(tmp_path)

    def ask(self, target: Target) -> str | None:
        assert isinstance(target, Good)
        return target.ask()


def made(plugin: type[Target], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(Good, "shared", Shared(), raising=False)
    ctx = ReleaseContext(
        project=folder, target_dir=folder, pipeline="p", version="1.0.0", stage="s", revision=NEW, run="r"
    )
    return plugin(TargetOptions(), ctx)


def pair(folder: Path) -> tuple[Candidate, Candidate]:
    repository = TritonRepository(model="m", signature=SIGNATURE, max_batch_size=0, source="0" * 64)
    return (
        Candidate(revision=OLD, version="1.0.0", repository=repository, golden=None),
        Candidate(revision=NEW, version="2.0.0", repository=repository, golden=None),
    )


class TestGood(OnGood):
    """All of it."""


class Unfenced(Good):
    """Let anybody act."""

    def fence(self, epoch: int) -> None:
        pass


class FencedTooLate(Good):
    """Act first, and then look who may."""

    def apply(self, action: Action, candidate: Candidate | None, epoch: int) -> Applied:
        applied = super().apply(action, candidate, self.seen.epoch)
        self.fence(epoch)
        return applied


class Generous(Good):
    """Give traffic to whoever is named."""

    def shift(self, traffic: Traffic) -> None:
        self.update(traffic=traffic, shifted=time.time())


class Restless(Good):
    """Take the same for a change."""

    def shift(self, traffic: Traffic) -> None:
        self.refuse_if(any(not self.seen.ready(name) for name in traffic.revisions), "not ready")
        self.update(traffic=traffic, shifted=time.time())


class Trusting(Good):
    """Commit without comparing."""

    def commit(self, expected: str | None, revision: str | None) -> None:
        self.update(stable=revision, previous=expected)


class Forgetful(Good):
    """Compare, and refuse what is done already."""

    def commit(self, expected: str | None, revision: str | None) -> None:
        self.refuse_if(self.seen.stable != expected, "something else is stable")
        self.update(stable=revision, previous=expected)


class Reckless(Good):
    """Scale down whoever is named."""

    def scale_down(self, revision: str) -> None:
        self.update(replicas={name: found for name, found in self.seen.replicas.items() if name != revision})


class Hasty(Good):
    """Scale down the old one with the commit."""

    def commit(self, expected: str | None, revision: str | None) -> None:
        super().commit(expected, revision)
        if expected is not None:
            self.scale_down(expected)


class Shutting(Good):
    """Close the door while it is changed."""

    def shift(self, traffic: Traffic) -> None:
        before = self.seen.traffic
        if self.seen.stable is not None:
            self.update(traffic=Traffic())
            time.sleep(0.05)
            self.update(traffic=before)
        super().shift(traffic)


class Repeating(Good):
    """Start replicas again that run."""

    def prepare(self, candidate: Candidate) -> None:
        before = self.seen.replicas.get(candidate.revision)
        wanted = before.wanted + 1 if before else 1
        found = Replicas(version=candidate.version, wanted=wanted, ready=wanted)
        self.update(replicas={**self.seen.replicas, candidate.revision: found})


class Open(Good):
    """Give the lease to everybody."""

    def acquire(self, holder: str) -> int:
        self.update(epoch=self.seen.epoch + 1)
        return self.seen.epoch


class Lingering(Good):
    """Leave the door open."""

    def down(self) -> Sequence[str]:
        self.update(stable=None)
        return ["stopped"]


class Skewed(Good):
    """Give the candidate nothing."""

    def ask(self) -> str | None:
        return OLD if OLD in self.seen.traffic.weights else super().ask()


@pytest.mark.parametrize(
    ("plugin", "caught_by"),
    [
        (Unfenced, "test_who_was_overtaken_does_nothing"),
        (FencedTooLate, "test_who_was_overtaken_does_nothing"),
        (Generous, "test_who_is_not_ready_gets_no_traffic"),
        (Restless, "test_weights_are_read_back"),
        (Skewed, "test_weights_are_read_back"),
        (Trusting, "test_a_commit_compares"),
        (Forgetful, "test_a_commit_compares"),
        (Reckless, "test_nobody_is_scaled_down_who_serves"),
        (Hasty, "test_a_promotion_fails_no_request"),
        (Shutting, "test_a_promotion_fails_no_request"),
        (Shutting, "test_the_way_back_fails_no_request_and_leaves_stable_whole"),
        (Repeating, "test_preparing_again_starts_nothing_again_and_moves_nothing"),
        (Open, "test_a_lease_has_one_holder"),
        (Lingering, "test_down_stops_everything"),
    ],
)
def test_a_bad_target_is_caught(
    plugin: type[Good], caught_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = made(plugin, tmp_path, monkeypatch)
    test = getattr(type("Suite", (OnGood,), {"plugin": plugin})(), caught_by)
    arguments: dict[str, Any] = {"target": target, "candidates": pair(tmp_path), "weight": 50}
    names = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    with pytest.raises((AssertionError, StageError, pytest.fail.Exception)):
        test(**{name: arguments[name] for name in names})


class GoodRouter(TrafficRouter):
    """Route in memory."""

    capabilities = frozenset({Capability.WEIGHTS})

    def __init__(self) -> None:
        self.routed = Routed(traffic=Traffic(), etag="0")
        self.current = 1
        self.random = random.Random(4)

    def get(self) -> Routed:
        return self.routed

    def set(
        self, traffic: Traffic, backends: Mapping[str, tuple[Backend, ...]], *, etag: str, epoch: int
    ) -> Routed:
        self.fence(epoch)
        if (traffic, dict(backends)) == (self.routed.traffic, self.routed.backends):
            return self.routed
        if etag != self.routed.etag or not traffic.revisions <= set(backends):
            message = "somebody else has changed it"
            raise StageError(message)
        number = str(int(self.routed.etag) + 1)
        self.routed = Routed(traffic=traffic, backends=dict(backends), since=time.time(), etag=number)
        return self.routed

    def fence(self, epoch: int) -> None:
        if epoch != self.current:
            message = "somebody else has taken over"
            raise StaleEpochError(message)

    def ask(self) -> str | None:
        weights = self.routed.traffic.weights
        return self.random.choices(list(weights), list(weights.values()))[0] if weights else None


class OnRouter(RouterConformance):
    @pytest.fixture
    def router(self) -> TrafficRouter:
        return GoodRouter()

    @pytest.fixture
    def backends(self) -> dict[str, tuple[Backend, ...]]:
        return BACKENDS

    def epoch(self, router: Any) -> int:
        return int(router.current)

    def take_over(self, router: Any) -> int:
        router.current += 1
        return int(router.current)

    def ask(self, router: Any) -> str | None:
        said: str | None = router.ask()
        return said


BACKENDS: dict[str, tuple[Backend, ...]] = {
    name: (Backend(name=name[:1], http="h:1", grpc="h:2"),) for name in (OLD, NEW)
}


class TestGoodRouter(OnRouter):
    """All of it."""


class UnfencedRouter(GoodRouter):
    """Let anybody act."""

    def fence(self, epoch: int) -> None:
        pass


class Overwriting(GoodRouter):
    """Change whatever is there."""

    def set(self, traffic: Traffic, backends: Any, *, etag: str, epoch: int) -> Routed:
        return super().set(traffic, backends, etag=self.routed.etag, epoch=epoch)


class Counting(GoodRouter):
    """Take the same for a change."""

    def set(self, traffic: Traffic, backends: Any, *, etag: str, epoch: int) -> Routed:
        routed = super().set(traffic, backends, etag=etag, epoch=epoch)
        self.routed = routed.model_copy(update={"etag": str(int(routed.etag) + 1)})
        return self.routed


class Promising(GoodRouter):
    """Say that it is so before it is."""

    def ask(self) -> str | None:
        return OLD if self.routed.traffic.weights else None


class Gaping(GoodRouter):
    """Close for a moment at each change."""

    def set(self, traffic: Traffic, backends: Any, *, etag: str, epoch: int) -> Routed:
        before = self.routed
        self.routed = before.model_copy(update={"traffic": Traffic()})
        time.sleep(0.05)
        self.routed = before
        return super().set(traffic, backends, etag=etag, epoch=epoch)


class Blind(GoodRouter):
    """Send requests to where nobody is."""

    def set(self, traffic: Traffic, backends: Any, *, etag: str, epoch: int) -> Routed:
        return super().set(traffic, {**BACKENDS, **backends}, etag=etag, epoch=epoch)


@pytest.mark.parametrize(
    ("router", "caught_by"),
    [
        (UnfencedRouter, "test_who_was_overtaken_changes_nothing"),
        (Overwriting, "test_a_change_names_the_state_that_it_was_made_from"),
        (Counting, "test_the_same_again_changes_nothing"),
        (Promising, "test_what_was_set_is_in_effect"),
        (Gaping, "test_moving_fails_no_request"),
        (Blind, "test_nobody_gets_requests_who_has_no_replicas"),
    ],
)
def test_a_bad_router_is_caught(router: type[GoodRouter], caught_by: str) -> None:
    test = getattr(OnRouter(), caught_by)
    arguments: dict[str, Any] = {"router": router(), "backends": BACKENDS, "weight": 50}
    names = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    with pytest.raises((AssertionError, StageError, pytest.fail.Exception)):
        test(**{name: arguments[name] for name in names})
