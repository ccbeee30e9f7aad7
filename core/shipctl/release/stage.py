"""A release stage over the state machine: it looks at the target, measures, asks what to do, and does that one thing.

A strategy's plugin adds nothing but options: see ``shipctl_plugins/deploy``. What is done with a target that has an
engine of its own is in :mod:`shipctl.release.following`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, TypeVar

from shipctl.errors import LockedError, SpecError
from shipctl.processes import own_name
from shipctl.release import following, measuring
from shipctl.release.budget import worst_case
from shipctl.release.course import CANDIDATE, STABLE, course, wanted
from shipctl.release.delegated import DelegatedTarget
from shipctl.release.following import Following
from shipctl.release.holding import held
from shipctl.release.options import StrategyInputs, StrategyOptions
from shipctl.release.records import RecordStore
from shipctl.release.rollout import Decision, Facts, Measurement, RolloutState, advance, retreat
from shipctl.release.strategy import Strategy
from shipctl.release.target import (
    LEASE_SECONDS,
    Candidate,
    Capability,
    Preflight,
    ReleaseTarget,
    Target,
)
from shipctl.release.targets import open_target, target_class, target_name
from shipctl.stages.base import Phase, ReleaseStage, Serving, Step
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl.stages.verdicts import Verdict

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
        self._following: Following | None = None

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
        delegated = issubclass(cls, DelegatedTarget)
        if issubclass(cls, DelegatedTarget):
            following.check(strategy, self.options, cls, options)
        self._check_offered(strategy, cls.offers(options))
        way_there = tuple(wanted(strategy, leg, CANDIDATE, STABLE) for leg in course(strategy))
        for traffic in way_there:
            refused = cls.refuses(options, traffic)
            if refused is not None:
                raise SpecError(refused)
        cls.check(options, replace(ctx, surge=strategy.surge, traffic=way_there))
        measuring.check(strategy, ctx)
        budget = ctx.objectives.budget.get("rollback")
        lease = LEASE_SECONDS if Capability.WATCHDOG in cls.offers(options) else None
        way = worst_case(strategy, lease_seconds=lease, query_timeout=measuring.query_seconds(strategy))
        way = following.noticed(strategy) if delegated else way
        if budget is not None and way.seconds > budget:
            what = "telling the engine to go back" if delegated else "going back to the stable revision"
            message = (
                f"{what} can take {way.seconds:g} s ({way.arithmetic}), and "
                f"budget.rollback is {budget:g} s; shorten analysis.interval, or lower "
                "analysis.failureLimit or analysis.consecutiveErrorLimit"
            )
            raise SpecError(message)

    def _check_offered(self, strategy: Strategy, offers: frozenset[Capability]) -> None:
        missing = sorted(self._needed(strategy) - offers)
        if not missing:
            return
        message = f"the target {self.target()} cannot do {', '.join(missing)}, which {strategy.name} needs"
        if Capability.ACCESS_LOG in missing:
            message = (
                f"the target {self.target()} has no access log on this machine, from which analysis.provider "
                "access-log reads; set analysis.provider to another one, such as prometheus"
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
        if strategy.analysis is not None and strategy.analysis.provider.uses == "access-log":
            needed.add(Capability.ACCESS_LOG)
        return frozenset(needed)

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        """Say what serves, how the candidate would take over, and what can be noticed on the way."""
        target = open_target(self.options.target, ctx)
        if isinstance(target, DelegatedTarget):
            return following.preview(self._quick(ctx), self.options, target, ctx)
        target, strategy = _driven(target), self.strategy(ctx.intent)
        watched = Capability.WATCHDOG in target.offers(target.options)
        way = worst_case(
            strategy,
            target.shift_seconds(),
            LEASE_SECONDS if watched else None,
            query_timeout=measuring.query_seconds(strategy),
        )
        lines = [*target.preview(ctx.revision, strategy), strategy.summary()]
        living = "" if watched else ", as long as shipctl runs"
        lines.append(
            f"back on the stable revision within {way.seconds:g} s at worst{living}: {way.arithmetic}"
        )
        if not watched:
            lines.append("this target has no watchdog: if shipctl dies, traffic stays where it is")
        replayed = self.options.replay.rate if self.options.replay is not None else None
        return [*lines, *measuring.plan_lines(strategy, ctx, self.options.traffic or replayed)]

    # -- looking --------------------------------------------------------------------------------------------

    def records(self, ctx: ReleaseContext) -> RecordStore | None:
        """Return where the target keeps the records."""
        return open_target(self.options.target, ctx).records()

    def diff(self, inputs: StrategyInputs, ctx: ReleaseContext) -> Sequence[str]:
        """Return what a release would change on what is live."""
        return open_target(self.options.target, ctx).diff(_candidate(inputs, ctx), self._quick(ctx))

    def manifests(self, inputs: StrategyInputs, ctx: ReleaseContext) -> dict[str, str]:
        """Return what a release puts on the target."""
        return open_target(self.options.target, ctx).manifests(_candidate(inputs, ctx), self._quick(ctx))

    def rights(self, ctx: ReleaseContext) -> dict[str, str]:
        """Return what gives who runs shipctl the rights on the target."""
        return open_target(self.options.target, ctx).rights()

    def in_place(self, inputs: StrategyInputs, ctx: ReleaseContext) -> bool:
        """Whether this revision is stable, whole, and answers everything."""
        target = open_target(self.options.target, ctx)
        if isinstance(target, DelegatedTarget):
            return following.in_place(target, ctx.revision)
        seen = _driven(target).observe(ctx.revision)
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
        """Look, measure if that is due, and do the one thing that comes next.

        :raises StaleEpochError: if somebody else has the target now
        """
        delegated = self._delegated(inputs, ctx)
        if delegated is not None:
            return delegated.step(state, self._quick(ctx), ctx)
        run = self._run(inputs, ctx)
        strategy = self.strategy(ctx.intent)
        locked = self._hold(run)
        if locked is not None:
            return state, Step(phase=state.phase, message=locked, requeue=1.0)
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
        delegated = self._delegated(inputs, ctx)
        if delegated is not None:
            return delegated.abort(state, self._quick(ctx), ctx)
        run = self._run(inputs, ctx)
        locked = self._hold(run)
        if locked is not None:
            return state, Step(phase=Phase.ABORTING, message=locked, requeue=1.0)
        self._replay(run, on=False)
        strategy = self.strategy(ctx.intent)
        decision = retreat(strategy, ctx.revision, state, self._facts(run, ctx))
        return self._carried_out(run, decision)

    def _quick(self, ctx: ReleaseContext) -> Strategy:
        """Return how a release by an engine goes: to go back, it keeps to its kind of strategy, without steps."""
        strategy = self.options.strategy()
        return following.quick(strategy) if ctx.intent == "rollback" else strategy

    def _delegated(self, inputs: StrategyInputs, ctx: ReleaseContext) -> Following | None:
        """Return what follows the engine; None where there is none."""
        if not issubclass(target_class(self.options.target)[0], DelegatedTarget):
            return None
        if self._following is None or self._following.candidate.revision != ctx.revision:
            target = open_target(self.options.target, ctx)
            assert isinstance(target, DelegatedTarget)  # noqa: S101  (of the class that was looked at)
            replay = float(self.options.replay.rate) if self.options.replay is not None else None
            self._following = Following(target, _candidate(inputs, ctx), replay)
        return self._following

    def _run(self, inputs: StrategyInputs, ctx: ReleaseContext) -> _Run:
        if self._running is None or self._running.candidate.revision != ctx.revision:
            target = _driven(open_target(self.options.target, ctx))
            self._running = _Run(target=target, candidate=_candidate(inputs, ctx))
        return self._running

    def _hold(self, run: _Run) -> str | None:
        """Take or renew the lease; say who has it if it is somebody else."""
        try:
            run.epoch = held(run.target, run.epoch)
        except LockedError as exc:
            return str(exc)
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
        return run.measuring.take(state, facts.observation, facts.now)

    def _replay(self, run: _Run, *, on: bool) -> None:
        if self.options.replay is not None:
            run.target.replay(run.candidate, float(self.options.replay.rate) if on else None)


def _candidate(inputs: StrategyInputs, ctx: ReleaseContext) -> Candidate:
    return Candidate(
        revision=ctx.revision, version=ctx.version, repository=inputs.repository, golden=inputs.golden
    )


def _driven(target: ReleaseTarget) -> Target:
    """Return a target that shipctl drives.

    :raises SpecError: if it is of no kind that is known
    """
    if not isinstance(target, Target):
        message = f"{type(target).__qualname__} is neither a Target nor a DelegatedTarget, so nothing can be released"
        raise SpecError(message)
    return target
