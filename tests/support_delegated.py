"""An engine in memory that goes through steps by itself, installed as the target `engine` for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, ClassVar

from shipctl.release import references
from shipctl.release.delegated import DelegatedTarget, Followed, Standing
from shipctl.release.strategy import SetWeight, Strategy
from shipctl.release.target import Applied, Candidate, Capability
from shipctl.stages.base import Serving
from shipctl.stages.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    import pytest


class Engine:
    """What drives itself, as far as it has come by now."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.stable: str | None = None
        self.current: str | None = None
        self.steps: list[tuple[str, float]] = []
        self.index = 0
        self.entered = 0.0
        self.weight = 0
        self.trouble = ""
        """Why it has given up; it then goes back by itself, and stays there until it is told otherwise."""
        self.unready = False
        self.stopped = False
        """Its controller does not run: nothing moves."""
        self.acts: list[str] = []
        self.preflight = Outcome.PASS

    def take(self, revision: str, strategy: Strategy) -> None:
        """Begin, unless it has begun already."""
        if self.current == revision and not self.trouble:
            return
        self.current, self.trouble, self.index, self.entered = revision, "", 0, self.now()
        self.steps = [] if self.stable is None else list(_compiled(strategy))
        self.weight = 100 if revision == self.stable else 0

    def go_on(self) -> None:
        """Do what can be done by now."""
        if self.stopped or self.unready or self.trouble or self.current in {None, self.stable}:
            return
        while self.index < len(self.steps):
            kind, value = self.steps[self.index]
            if kind == "weight":
                self.weight = int(value)
            elif kind == "approval" or self.entered + value > self.now():
                return
            self.index, self.entered = self.index + 1, self.now()
        self.stable, self.weight = self.current, 100

    @property
    def step(self) -> tuple[str, float] | None:
        return (
            self.steps[self.index] if self.index < len(self.steps) and self.current != self.stable else None
        )


def _compiled(strategy: Strategy) -> Sequence[tuple[str, float]]:
    steps: list[tuple[str, float]] = []
    for index, step in enumerate(strategy.steps):
        if isinstance(step, SetWeight):
            steps.append(("weight", step.setWeight))
        elif step.pause.duration is None:
            steps.append(("approval", index))
        else:
            steps.append(("pause", float(step.pause.duration)))
    return steps if strategy.autoPromotion else [*steps, ("approval", -1)]


class MemoryEngine(DelegatedTarget):
    """A target whose engine is in the test's memory."""

    api_version: ClassVar[int] = 1
    capabilities = frozenset({Capability.WEIGHTS, Capability.PREVIEW})
    engine: ClassVar[Engine]

    @classmethod
    def not_enforced(cls, strategy: Strategy, options: object) -> Sequence[str]:
        return ("whoever drives has no lease",)

    @classmethod
    def supports(cls, strategy: Strategy, options: object) -> str | None:
        return "engine cannot copy requests; use canary" if strategy.mirror is not None else None

    def preflight(self, candidate: Candidate) -> Applied:
        self.engine.acts.append("preflight")
        verdict = Verdict(gate="preflight", outcome=self.engine.preflight, message="golden samples")
        return Applied(message="asked golden samples", verdicts=(verdict,))

    def submit(self, candidate: Candidate, strategy: Strategy) -> Applied:
        self.engine.acts.append(f"submit {candidate.version}")
        self.engine.take(candidate.revision, strategy)
        return Applied(message=f"handed {candidate.version} over")

    def follow(self, revision: str) -> Followed:
        engine = self.engine
        engine.go_on()
        share = engine.weight if engine.current != engine.stable else 100
        weight = share if revision == engine.current else 100 - share if revision == engine.stable else 0
        known = {"stable": engine.stable, "current": engine.current, "weight": weight, "step": engine.index}
        if revision != engine.current:
            return Followed(standing=Standing.ABSENT, **known)
        if engine.trouble:
            return Followed(standing=Standing.DEGRADED, message=engine.trouble, **known)
        kind, value = engine.step or ("", 0.0)
        if kind == "approval" and not engine.unready:
            asks = "promote" if value < 0 else f"step {value:.0f}"
            return Followed(standing=Standing.PAUSED, asks=asks, message="it pauses", **known)
        if kind == "pause" and not engine.unready:
            return Followed(standing=Standing.PAUSED, until=engine.entered + value, **known)
        whole = engine.stable == revision and not engine.unready
        return Followed(standing=Standing.HEALTHY if whole else Standing.PROGRESSING, **known)

    def resume(self, revision: str) -> Applied:
        self.engine.acts.append("resume")
        if self.engine.step is not None and self.engine.step[0] == "approval":
            self.engine.index, self.engine.entered = self.engine.index + 1, self.engine.now()
        return Applied(message="it goes on")

    def abort(self, revision: str, stable: str | None) -> Applied:
        engine = self.engine
        engine.acts.append("abort")
        if engine.current == revision or engine.current is None:
            engine.current, engine.stable = stable, stable
            engine.weight, engine.trouble, engine.steps, engine.unready = 0, "", [], False
        return Applied(message="it goes back")

    def endpoints(self) -> dict[str, str]:
        return {"http": "http://127.0.0.1:1"}

    def status(self) -> Sequence[Serving]:
        stable = self.engine.stable
        if stable is None:
            return ()
        return (
            Serving(name="m", version="1.0.0", revision=stable, since=0.0, healthy=not self.engine.unready),
        )

    def down(self) -> Sequence[str]:
        engine = self.engine
        there = engine.current is not None
        engine.current = engine.stable = None
        engine.weight = 0
        return ("stopped",) if there else ()


def install(monkeypatch: pytest.MonkeyPatch, now: Callable[[], float] | None = None) -> Engine:
    """Install the target `engine` for one test, and return what it does."""
    counted = itertools.count()
    engine = Engine(now or (lambda: float(next(counted))))
    monkeypatch.setattr(MemoryEngine, "engine", engine, raising=False)
    point = EntryPoint("engine", "support_delegated:MemoryEngine", "shipctl.targets")
    installed = references._installed

    def found(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
        return (*installed(group, path), point) if group == "shipctl.targets" else installed(group, path)

    monkeypatch.setattr(references, "_installed", found)
    return engine
