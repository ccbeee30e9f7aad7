"""A target in memory, installed as a plugin for tests, with everything that a test may want to go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, ClassVar

from shipctl.errors import LockedError, StageError
from shipctl.release import references
from shipctl.release.metrics import MetricProvider, Samples
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
)
from shipctl.stages.base import Serving
from shipctl.stages.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    import pytest


class World:
    """What the targets and providers of one test share."""

    def __init__(self) -> None:
        self.seen = Observation()
        self.holder = ""
        self.acts: list[str] = []
        self.preflight = Outcome.PASS
        self.unready: set[str] = set()
        self.broken: set[str] = set()
        """Kinds of acts that raise."""
        self.errors: dict[str, float] = {}
        """Revision to its share of errors."""
        self.slow: dict[str, float] = {}
        """Revision to the factor by which it is slower."""
        self.rate = 200.0
        """Requests per second through the door."""
        self.replaying: float | None = None
        self.provider_down = False

    def take_over(self) -> None:
        """Act as the watchdog does."""
        stable = self.seen.stable
        traffic = type(self.seen.traffic).only(stable)
        update = {"epoch": self.seen.epoch + 1, "traffic": traffic, "rescued": True}
        self.seen = self.seen.model_copy(update=update)
        self.holder = ""


class MemoryTarget(Target):
    """Replicas and weights that are numbers in a test's memory."""

    api_version: ClassVar[int] = 1
    capabilities = frozenset(Capability)
    world: ClassVar[World]

    def acquire(self, holder: str) -> int:
        world = self.world
        if world.holder not in {"", holder}:
            message = f"the lease is held by {world.holder}"
            raise LockedError(message)
        if not world.holder:
            world.seen = world.seen.model_copy(update={"epoch": world.seen.epoch + 1})
            world.holder = holder
        return world.seen.epoch

    def release(self, epoch: int) -> None:
        if epoch == self.world.seen.epoch:
            self.world.holder = ""

    def observe(self, candidate: str | None = None) -> Observation:
        seen = self.world.seen
        replicas = {
            name: found.model_copy(
                update={"ready": 0, "problem": "it crashed"} if name in self.world.unready else {}
            )
            for name, found in seen.replicas.items()
        }
        return seen.model_copy(update={"replicas": replicas})

    def apply(self, action: Action, candidate: Candidate | None, epoch: int) -> Applied:
        world, seen = self.world, self.world.seen
        if epoch != seen.epoch:
            message = "somebody else has taken over"
            raise StaleEpochError(message)
        if action.kind in world.broken:
            message = f"{action.kind} does not work"
            raise StageError(message)
        changed: dict[str, Any] = {}
        verdicts: tuple[Verdict, ...] = ()
        text: str = action.kind
        match action:
            case Prepare():
                assert candidate is not None
                found = Replicas(version=candidate.version, wanted=2, ready=2)
                changed["replicas"] = {**seen.replicas, candidate.revision: found}
            case Preflight():
                verdicts = (Verdict(gate="preflight", outcome=world.preflight, message="golden samples"),)
            case Shift(traffic=traffic):
                assert all(
                    self.observe().ready(name) for name, weight in traffic.weights.items() if weight
                ), traffic
                changed |= {"traffic": traffic, "shifted": self.ctx.now(), "rescued": False}
                text = "shift " + (
                    " ".join(f"{seen.replicas[name].version}:{weight}" for name, weight in sorted(
                        traffic.weights.items(), key=lambda item: seen.replicas[item[0]].version))
                    or "closed"
                )  # fmt: skip
                if traffic.mirror is not None:
                    text += f" mirror {traffic.mirror.percent:g}"
            case Commit(expected=expected, revision=revision):
                assert seen.stable in {expected, revision}
                changed |= {"stable": revision, "previous": seen.stable}
                text = f"commit {seen.replicas[revision].version if revision else 'nothing'}"
            case ScaleDown(revision=revision):
                assert not seen.traffic.weight(revision)
                text = (
                    f"scale-down {seen.replicas[revision].version}"
                    if revision in seen.replicas
                    else "scale-down"
                )
                changed["replicas"] = {name: item for name, item in seen.replicas.items() if name != revision}
                if seen.previous == revision:
                    changed["previous"] = None
        world.seen = seen.model_copy(update=changed)
        world.acts.append(text)
        return Applied(message=text, verdicts=verdicts)

    def endpoints(self) -> dict[str, str]:
        return {"http": "http://127.0.0.1:1"}

    def replay(self, candidate: Candidate, rate: float | None) -> None:
        self.world.replaying = rate

    def status(self) -> Sequence[Serving]:
        seen = self.world.seen
        if seen.stable is None:
            return ()
        version = seen.replicas[seen.stable].version
        return (Serving(name="m", version=version, revision=seen.stable, since=0.0, healthy=True),)

    def down(self) -> Sequence[str]:
        self.world.seen = Observation(epoch=self.world.seen.epoch)
        return ("stopped",)


class MemoryMetrics(MetricProvider):
    """Requests as the world says they go, evenly spread."""

    api_version: ClassVar[int] = 1
    world: ClassVar[World]

    def query(self, revision: str, since: float, until: float) -> Samples:
        world = self.world
        if world.provider_down:
            message = "the source of numbers is gone"
            raise StageError(message)
        share = world.seen.traffic.weight(revision) / 100
        count = int((until - since) * world.rate * share)
        errors = int(count * world.errors.get(revision, 0.0))
        times = tuple(
            since + (index + 0.5) * (until - since) / max(1, count) for index in range(count - errors)
        )
        factor = world.slow.get(revision, 1.0)
        durations = tuple(factor * (0.010 + 0.0001 * (index * 37 % 100)) for index in range(count - errors))
        return Samples(
            revision=revision, since=since, until=until, requests=count, errors=errors, durations=durations,
            times=times, value=sum(durations) / len(durations) if durations else None, query="memory",
        )  # fmt: skip


def install(monkeypatch: pytest.MonkeyPatch) -> World:
    """Install the target `memory` and the metric provider `memory` for one test, and return what they share."""
    world = World()
    monkeypatch.setattr(MemoryTarget, "world", world, raising=False)
    monkeypatch.setattr(MemoryMetrics, "world", world, raising=False)
    installed = references._installed
    points = {
        "shipctl.targets": EntryPoint("memory", "support_target:MemoryTarget", "shipctl.targets"),
        "shipctl.metrics": EntryPoint("memory", "support_target:MemoryMetrics", "shipctl.metrics"),
    }

    def found(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
        return (*installed(group, path), points[group])

    monkeypatch.setattr(references, "_installed", found)
    return world
