"""A release stage over the state machine: it looks at the target, measures, asks what to do, and does that one thing.

A strategy's plugin adds nothing but options: see ``shipctl_plugins/deploy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from shipctl.errors import LockedError, SpecError, StageError
from shipctl.processes import own_name
from shipctl.release import measuring
from shipctl.release.budget import worst_case
from shipctl.release.options import StrategyInputs, StrategyOptions
from shipctl.release.rollout import Decision, Facts, Measurement, RolloutState, advance, retreat
from shipctl.release.strategy import Strategy
from shipctl.release.target import (
    LEASE_SECONDS,
    Candidate,
    Capability,
    Preflight,
    StaleEpochError,
    Target,
)
from shipctl.release.targets import open_target, target_class, target_name
from shipctl.stages.base import Phase, ReleaseStage, Serving, Step
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict

OptionsT = TypeVar("OptionsT", bound=StrategyOptions)

LOOK = 3.0
"""Seconds at most between two looks, so that the lease is renewed and an abort is heard."""


@dataclass
class _Run:
    """What one process keeps while it drives a release."""

    target: Target
    candidate: Candidate
    epoch: int = 0
    measuring: measuring.Measuring | None = None
    verdicts: tuple[Verdict, ...] | None = field(default=None)


class StrategyStage(ReleaseStage[OptionsT, StrategyInputs, RolloutState], Generic[OptionsT]):
    """Base of the release stages that move traffic."""

    api_version: ClassVar[int] = 1
    inputs_model = StrategyInputs
    state_model = RolloutState
    needs: ClassVar[frozenset[Capability]] = frozenset()
    """What the target has to be able to do."""

    def __init__(self, options: OptionsT) -> None:
        super().__init__(options)
        self._running: _Run | None = None

    def target(self) -> str:
        """Return the target's name."""
        return target_name(self.options.target)

    def strategy(self, intent: str = "apply") -> Strategy:
        """Return how a release goes; what is gone back to has passed its preflight before."""
        strategy = self.options.strategy()
        if intent == "rollback":
            quick = {
                "preflight": False,
                "steps": (),
                "analysis": None,
                "autoPromotion": True,
                "preview": False,
            }
            return strategy.model_copy(update={**quick, "name": "bluegreen", "mirror": None})
        return strategy

    # -- before anything has run ----------------------------------------------------------------------------

    def check(self, ctx: CheckContext) -> None:
        """Look whether the target is there and does what the strategy needs, and whether the way back is short.

        :raises SpecError: if going back could take longer than `budget.rollback`, with the arithmetic
        """
        cls, options = target_class(self.options.target)
        strategy = self.strategy()
        missing = sorted(self._needed(strategy) - cls.capabilities)
        if missing:
            message = (
                f"the target {self.target()} cannot do {', '.join(missing)}, which {strategy.name} needs"
            )
            raise SpecError(message)
        cls.check(options, ctx)
        measuring.check(strategy, ctx)
        budget = ctx.objectives.budget.get("rollback")
        way = worst_case(
            strategy, lease_seconds=LEASE_SECONDS, query_timeout=measuring.query_seconds(strategy)
        )
        if budget is not None and way.seconds > budget:
            message = (
                f"going back to the stable revision can take {way.seconds:g} s ({way.arithmetic}), and "
                f"budget.rollback is {budget:g} s; shorten analysis.interval, or lower "
                "analysis.failureLimit or analysis.consecutiveErrorLimit"
            )
            raise SpecError(message)

    def _needed(self, strategy: Strategy) -> frozenset[Capability]:
        needed = set(self.needs)
        if strategy.mirror is not None:
            needed.add(Capability.MIRROR)
        if strategy.sticky is not None or strategy.segments:
            needed.add(Capability.HEADERS)
        if strategy.preview:
            needed.add(Capability.PREVIEW)
        return frozenset(needed)

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        """Say what serves, how the candidate would take over, and what can be noticed on the way."""
        target = open_target(self.options.target, ctx)
        strategy = self.strategy(ctx.intent)
        way = worst_case(
            strategy, target.shift_seconds(), LEASE_SECONDS, query_timeout=measuring.query_seconds(strategy)
        )
        lines = [*target.preview(ctx.revision), strategy.summary()]
        lines.append(f"back on the stable revision within {way.seconds:g} s at worst: {way.arithmetic}")
        if Capability.WATCHDOG not in target.capabilities:
            lines.append("this target has no watchdog: if shipctl dies, traffic stays where it is")
        replayed = self.options.replay.rate if self.options.replay is not None else None
        return [*lines, *measuring.plan_lines(strategy, ctx, self.options.traffic or replayed)]

    # -- looking --------------------------------------------------------------------------------------------

    def in_place(self, inputs: StrategyInputs, ctx: ReleaseContext) -> bool:
        """Whether this revision is stable, whole, and answers everything."""
        seen = open_target(self.options.target, ctx).observe(ctx.revision)
        return (
            seen.stable == ctx.revision
            and seen.ready(ctx.revision)
            and seen.traffic.weight(ctx.revision) == 100  # noqa: PLR2004
        )

    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        """Return what serves."""
        return open_target(self.options.target, ctx).status()

    def down(self, ctx: ReleaseContext) -> Sequence[str]:
        """Stop what this pipeline runs there."""
        return open_target(self.options.target, ctx).down()

    # -- releasing ------------------------------------------------------------------------------------------

    def step(
        self, state: RolloutState, inputs: StrategyInputs, ctx: ReleaseContext
    ) -> tuple[RolloutState, Step]:
        """Look, measure if that is due, and do the one thing that comes next."""
        run = self._run(inputs, ctx)
        strategy = self.strategy(ctx.intent)
        held = self._hold(run, ctx)
        if held is not None:
            return state, Step(phase=state.phase, message=held, requeue=1.0)
        facts = self._facts(run, ctx)
        decision = advance(strategy, ctx.revision, state, facts)
        if decision.measure:
            measurement = self._measure(run, strategy, decision.state, facts, ctx)
            facts = facts.model_copy(update={"measurement": measurement, "now": ctx.now()})
            measured = decision.state
            decision = advance(strategy, ctx.revision, measured, facts)
        if isinstance(decision.action, Preflight):
            applied = run.target.apply(decision.action, run.candidate, run.epoch)
            facts = facts.model_copy(update={"preflight": applied.verdicts, "now": ctx.now()})
            decision = advance(strategy, ctx.revision, decision.state, facts)
            message = applied.message or decision.message
            told = decision.model_copy(update={"action": None, "message": message, "requeue": 0.0})
            state, step = self._told(run, told)
            going_on = not step.phase.is_final and step.phase is not Phase.ABORTING
            return state, step.model_copy(update={"phase": Phase.PREFLIGHT}) if going_on else step
        return self._carried_out(run, decision)

    def abort(
        self, state: RolloutState, inputs: StrategyInputs, ctx: ReleaseContext
    ) -> tuple[RolloutState, Step]:
        """Take the next step back."""
        run = self._run(inputs, ctx)
        held = self._hold(run, ctx)
        if held is not None:
            return state, Step(phase=Phase.ABORTING, message=held, requeue=1.0)
        self._replay(run, on=False)
        strategy = self.strategy(ctx.intent)
        decision = retreat(strategy, ctx.revision, state, self._facts(run, ctx))
        return self._carried_out(run, decision)

    def _run(self, inputs: StrategyInputs, ctx: ReleaseContext) -> _Run:
        if self._running is None or self._running.candidate.revision != ctx.revision:
            target = open_target(self.options.target, ctx)
            candidate = Candidate(
                revision=ctx.revision, version=ctx.version, repository=inputs.repository, golden=inputs.golden
            )
            self._running = _Run(target=target, candidate=candidate)
        return self._running

    def _hold(self, run: _Run, ctx: ReleaseContext) -> str | None:
        """Take or renew the lease; say who has it if it is somebody else."""
        try:
            epoch = run.target.acquire(own_name())
        except LockedError as exc:
            if run.epoch:  # we had it, slept, and somebody else has it now
                raise StaleEpochError(str(exc)) from exc
            return str(exc)
        if run.epoch and epoch != run.epoch:
            run.target.release(epoch)
            message = (
                f"this process stood still for longer than its lease of {LEASE_SECONDS:g} s, and the target was taken "
                "over meanwhile. It does nothing more; look with `shipctl status`, and apply again to go on"
            )
            raise StaleEpochError(message)
        run.epoch = epoch
        return None

    def _facts(self, run: _Run, ctx: ReleaseContext) -> Facts:
        seen = run.target.observe(ctx.revision)
        return Facts(now=ctx.now(), observation=seen, approved=ctx.approved(), abort=ctx.aborted())

    def _carried_out(self, run: _Run, decision: Decision) -> tuple[RolloutState, Step]:
        message = decision.message
        if decision.action is not None:
            applied = run.target.apply(decision.action, run.candidate, run.epoch)
            message = applied.message or message
        return self._told(run, decision.model_copy(update={"message": message}))

    def _told(self, run: _Run, decision: Decision) -> tuple[RolloutState, Step]:
        if decision.phase.is_final or (decision.phase is Phase.PAUSED and decision.requeue == 0):
            self._replay(run, on=False)
            run.target.release(run.epoch)
            run.epoch = 0  # whoever goes on from a pause takes it anew
        step = Step(
            phase=decision.phase,
            message=decision.message,
            requeue=min(decision.requeue, LOOK),
            verdicts=decision.verdicts,
            asks=decision.asks,
        )
        return decision.state, step

    # -- measuring ------------------------------------------------------------------------------------------

    def _measure(
        self, run: _Run, strategy: Strategy, state: RolloutState, facts: Facts, ctx: ReleaseContext
    ) -> Measurement:
        """Ask the providers and judge. What cannot be asked is an error, and never a pass."""
        if run.measuring is None:
            run.measuring = measuring.measuring(strategy, run.target, run.candidate, ctx)
            run.measuring.renew = lambda: run.target.acquire(own_name())
        self._replay(run, on=True)
        try:
            return run.measuring.measure(state, facts.observation, facts.now)
        except Exception as exc:  # noqa: BLE001  (whatever a provider raises, it said nothing)
            text = str(exc) if isinstance(exc, StageError) else f"{type(exc).__name__}: {exc}"
            verdict = Verdict(gate="analysis", outcome=Outcome.ERROR, message=text)
            return Measurement(
                outcome=Outcome.ERROR,
                until=facts.now,
                verdicts=(verdict,),
                summary=text,
                analysis=state.analysis,
            )

    def _replay(self, run: _Run, *, on: bool) -> None:
        if self.options.replay is not None:
            run.target.replay(run.candidate, float(self.options.replay.rate) if on else None)
