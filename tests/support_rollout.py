"""A target that is only numbers, and a driver that persists and dies as a real one does, for the state machine."""

from __future__ import annotations

from typing import Any

from shipctl.release.decision import Decision, Facts, Measurement, RolloutState
from shipctl.release.rollout import advance, retreat
from shipctl.release.strategy import AnalysisOptions, Pause, PauseStep, SetWeight, Strategy
from shipctl.release.target import (
    Action,
    Commit,
    Observation,
    Preflight,
    Prepare,
    Replicas,
    ScaleDown,
    Shift,
)
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome, Verdict

OLD, NEW = "a" * 64, "b" * 64
OLD_NAME, NEW_NAME = "1.0.0 (aaaaaaaaaaaa)", "1.1.0 (bbbbbbbbbbbb)"


def weight(percent: int) -> SetWeight:
    return SetWeight(setWeight=percent)


def pause(duration: str | None = None) -> PauseStep:
    return PauseStep(pause=Pause(duration=Duration(duration) if duration else None))


def strategy(name: str = "canary", **changes: Any) -> Strategy:
    """A strategy with short times: an interval of 10 s, a deadline of 100 s."""
    given: dict[str, Any] = {
        "name": name,
        "analysis": AnalysisOptions(interval=Duration("10s")),
        "scaleDownDelay": Duration("30s"),
        "progressDeadline": Duration("100s"),
        **changes,
    }
    return Strategy(**given)


def measurement(outcome: Outcome = Outcome.PASS, until: float = 0.0, **changes: Any) -> Measurement:
    return Measurement(
        outcome=outcome, until=until, summary=changes.pop("summary", f"it is {outcome}"), **changes
    )


def verdict(outcome: Outcome = Outcome.PASS) -> Verdict:
    return Verdict(gate="golden samples", outcome=outcome, message=f"3 of 4 {outcome}")


def replicas(version: str, ready: int = 2, problem: str | None = None) -> Replicas:
    return Replicas(version=version, wanted=2, ready=ready, problem=problem)


class Driven:
    """A release of NEW beside OLD, driven step by step as the release stage does it."""

    def __init__(self, plan: Strategy, *, first: bool = False, now: float = 1000.0) -> None:
        self.plan = plan
        self.now = now
        self.stable: str | None = None if first else OLD
        self.traffic = Traffic() if first else Traffic.only(OLD)
        self.shifted: float | None = None
        self.replicas: dict[str, Replicas] = {} if first else {OLD: replicas("1.0.0")}
        self.state = RolloutState()
        self.approved: frozenset[str] = frozenset()
        self.abort: str | None = None
        self.preflight = Outcome.PASS
        self.outcomes: list[Outcome] = []
        self.outcome = Outcome.PASS
        self.conclusive = False
        self.starting = False
        """Whether replicas of NEW are not ready at once."""
        self.acts: list[str] = []
        self.messages: list[str] = []
        self.measured: list[float] = []

    @property
    def phase(self) -> Phase:
        return self.state.phase

    def observe(self) -> Observation:
        return Observation(
            stable=self.stable, replicas=dict(self.replicas), traffic=self.traffic, shifted=self.shifted
        )

    def facts(self, **changes: Any) -> Facts:
        given = {
            "now": self.now,
            "observation": self.observe(),
            "approved": self.approved,
            "abort": self.abort,
        }
        return Facts(**{**given, **changes})

    def apply(self, action: Action) -> None:
        match action:
            case Prepare():
                self.replicas.setdefault(NEW, replicas("1.1.0", 0 if self.starting else 2))
                self.acts.append("prepare")
            case Preflight():
                self.acts.append("preflight")
            case Shift(traffic=traffic):
                if traffic != self.traffic:
                    self.traffic, self.shifted = traffic, self.now
                self.acts.append(f"shift {shares(traffic)}")
            case Commit(expected=expected, revision=revision):
                assert self.stable in {expected, revision}
                self.stable = revision
                self.acts.append(f"commit {names(revision)}")
            case ScaleDown(revision=revision):
                self.replicas.pop(revision, None)
                self.acts.append(f"scale-down {names(revision)}")

    def decide(self) -> Decision:
        """Ask for the next step, measuring and preflighting as the driver does; nothing is applied but these."""
        if self.phase is Phase.ABORTING:
            return retreat(self.plan, NEW, self.state, self.facts())
        decision = advance(self.plan, NEW, self.state, self.facts())
        if decision.measure:
            outcome = self.outcomes.pop(0) if self.outcomes else self.outcome
            self.measured.append(self.now)
            taken = measurement(outcome, self.now, conclusive=self.conclusive)
            decision = advance(self.plan, NEW, decision.state, self.facts(measurement=taken))
        if isinstance(decision.action, Preflight):
            self.apply(decision.action)
            found = (verdict(self.preflight),)
            decision = advance(self.plan, NEW, decision.state, self.facts(preflight=found))
            decision = decision.model_copy(update={"action": None, "requeue": 0.0})
        return decision

    def step(self, *, kill: bool = False) -> Decision:
        """Take one step; killed, its act is done and its state is lost."""
        decision = self.decide()
        if decision.action is not None:
            self.apply(decision.action)
        if not kill:
            self.state = RolloutState.model_validate(decision.state.model_dump(mode="json"))
            self.messages.append(decision.message)
            self.now += decision.requeue
        return decision

    def run(self, *until: Phase, index: int | None = None, steps: int = 2000) -> Decision:
        """Go on until a phase (at a leg), the end, or a pause that waits for people."""
        for _ in range(steps):
            decision = self.step()
            if self.phase in until and index in {None, self.state.index}:
                return decision
            if self.phase.is_final or (self.phase is Phase.PAUSED and decision.requeue == 0):
                return decision
        message = f"{steps} steps, and still at {self.phase} {self.state.index}: {self.messages[-1]}"
        raise AssertionError(message)

    def lose(self, revision: str, ready: int = 0, problem: str | None = "it exited with code 1") -> None:
        self.replicas[revision] = self.replicas[revision].model_copy(
            update={"ready": ready, "problem": problem}
        )

    def heal(self, revision: str) -> None:
        self.replicas[revision] = self.replicas[revision].model_copy(update={"ready": 2, "problem": None})


def names(revision: str | None) -> str:
    return {OLD: "old", NEW: "new", None: "nothing"}.get(revision, "other")


def shares(traffic: Traffic) -> str:
    parts = [f"{names(name)} {part}" for name, part in sorted(traffic.weights.items()) if part]
    parts += [f"preview {names(traffic.preview)}"] if traffic.preview else []
    parts += [f"mirror {traffic.mirror.percent:g}"] if traffic.mirror else []
    return ", ".join(parts) or "closed"
