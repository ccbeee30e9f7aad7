"""The half of a release stage for targets with an engine: it hands over, follows, measures what was promoted.

See :mod:`shipctl.release.delegation` for what is done when; :class:`shipctl.release.stage.StrategyStage` is the other
half, for targets that shipctl drives.
"""

from __future__ import annotations

from typing import Any

from shipctl.errors import LockedError, SpecError, StageError
from shipctl.release import measuring
from shipctl.release.budget import WayBack, worst_case
from shipctl.release.delegated import DelegatedTarget, Followed, Standing
from shipctl.release.delegation import Act, Say, Sight, advance, retreat
from shipctl.release.holding import held
from shipctl.release.options import StrategyOptions
from shipctl.release.rollout import Measurement, RolloutState
from shipctl.release.strategy import Strategy
from shipctl.release.target import Applied, Candidate, Observation, ReleaseTarget, StaleEpochError
from shipctl.release.traffic import WHOLE, Traffic
from shipctl.stages.base import Phase, Step
from shipctl.stages.context import ReleaseContext

LOOK = 3.0
"""Seconds at most between two looks, so that an abort is heard."""


def check(strategy: Strategy, given: StrategyOptions, target: type[DelegatedTarget], options: Any) -> None:
    """Look whether the engine can do what the strategy says.

    :raises SpecError: if not
    """
    unable = target.supports(strategy, options)
    if unable is not None:
        raise SpecError(unable)
    if given.replay is not None and target.replay is ReleaseTarget.replay:
        message = f"the target {given.target.uses} cannot replay golden samples; leave `replay` out"
        raise SpecError(message)


def noticed(strategy: Strategy) -> WayBack:
    """Return how long it takes, once the candidate has everything, until the engine is told to go back."""
    terms = worst_case(strategy, query_timeout=measuring.query_seconds(strategy)).terms
    return WayBack(terms=terms[:-2])  # without the watchdog and the shift, which are the engine's affair


def preview(
    strategy: Strategy, given: StrategyOptions, target: DelegatedTarget, ctx: ReleaseContext
) -> list[str]:
    """Say what serves, how the engine takes over, and what it does not keep of what shipctl promises elsewhere."""
    name = given.target.uses
    lines = [*target.preview(ctx.revision, strategy), strategy.summary()]
    lines += [
        f"not enforced by {name}: {promise}" for promise in target.not_enforced(strategy, target.options)
    ]
    way = noticed(strategy)
    lines.append(
        f"once promoted, {name} is told to go back within {way.seconds:g} s at worst: {way.arithmetic}"
    )
    options = strategy.analysis
    if options is None:
        return [*lines, "nothing is measured once it is promoted: `analysis` is null"]
    if not target.steps_itself:
        return [*lines, *measuring.plan_lines(strategy, ctx, given.traffic)]
    rest = f"for {strategy.scaleDownDelay}, by absolute bounds"
    return [*lines, f"shipctl measures by {options.provider.uses} once it is promoted, {rest}"]


def quick(strategy: Strategy) -> Strategy:
    """Return how an earlier revision is gone back to: at once, as it has passed everything before."""
    now = {"preflight": False, "steps": (), "analysis": None, "autoPromotion": True, "preview": False}
    return strategy.model_copy(update=now)


def in_place(target: DelegatedTarget, revision: str) -> bool:
    """Whether a revision is stable, whole, and answers everything, and nothing else is under way."""
    seen = target.follow(revision)
    healthy = seen.standing is Standing.HEALTHY and seen.stable == revision
    return healthy and seen.weight == WHOLE and seen.current == revision


class Following:
    """What one process keeps while an engine drives its release."""

    def __init__(self, target: DelegatedTarget, candidate: Candidate, replay: float | None = None) -> None:
        """``replay``: golden samples per second that are sent while it is measured; None for none."""
        self.target = target
        self.candidate = candidate
        self.replay = replay
        self._epoch = 0
        self._measuring: measuring.Measuring | None = None

    def step(self, state: RolloutState, strategy: Strategy, ctx: ReleaseContext) -> tuple[RolloutState, Step]:
        """Look, measure if that is due, and do the one thing that comes next.

        :raises StaleEpochError: if somebody else drives by now, or has told the engine something else meanwhile
        """
        locked = self._hold()
        if locked is not None:
            return state, Step(phase=state.phase, message=locked, requeue=1.0)
        sight = self._sight(ctx)
        said = self._advance(strategy, state, sight)
        if said.measure:
            measurement = self._measure(strategy, said.state, sight, ctx)
            sight = sight.model_copy(update={"measurement": measurement, "now": ctx.now()})
            said = self._advance(strategy, said.state, sight)
        if said.act is Act.PREFLIGHT:
            applied = self.target.preflight(self.candidate)
            found = sight.model_copy(update={"preflight": applied.verdicts, "now": ctx.now()})
            said = self._advance(strategy, said.state, found)
            giving_up = said.state.phase is Phase.ABORTING
            phase = said.state.phase if giving_up else Phase.PREFLIGHT
            return self._told(said, (not giving_up and applied.message) or said.message, phase)
        return self._carried_out(said, strategy)

    def abort(
        self, state: RolloutState, strategy: Strategy, ctx: ReleaseContext
    ) -> tuple[RolloutState, Step]:
        """Take the next step back.

        :raises StageError: if the engine does not go back
        :raises StaleEpochError: if somebody else drives by now
        """
        locked = self._hold()
        if locked is not None:
            return state, Step(phase=Phase.ABORTING, message=locked, requeue=1.0)
        self._replay(on=False)
        said = retreat(strategy, self.candidate.revision, state, self._sight(ctx, state))
        return self._carried_out(said, strategy)

    def _hold(self) -> str | None:
        """Take or renew the lease; say who has it if it is somebody else."""
        try:
            self._epoch = held(self.target, self._epoch)
        except LockedError as exc:
            return str(exc)
        return None

    def _sight(self, ctx: ReleaseContext, state: RolloutState | None = None) -> Sight:
        home = state.previous if state is not None else None
        return Sight(
            now=ctx.now(),
            candidate=self.target.follow(self.candidate.revision),
            home=self.target.follow(home) if home is not None else None,
            approved=ctx.approved(),
            abort=ctx.aborted(),
        )

    def _advance(self, strategy: Strategy, state: RolloutState, sight: Sight) -> Say:
        itself = self.target.steps_itself
        said = advance(strategy, self.candidate.revision, state, sight, steps_itself=itself)
        if said.taken:
            raise StaleEpochError(said.message)
        return said

    def _carried_out(self, said: Say, strategy: Strategy) -> tuple[RolloutState, Step]:
        applied = self._applied(said, strategy)
        if said.stuck:
            raise StageError(said.message)
        return self._told(said, (applied is not None and applied.message) or said.message, said.state.phase)

    def _applied(self, said: Say, strategy: Strategy) -> Applied | None:
        match said.act:
            case Act.SUBMIT:
                return self.target.submit(self.candidate, strategy)
            case Act.RESUME:
                return self.target.resume(self.candidate.revision)
            case Act.ABORT:
                return self.target.abort(self.candidate.revision, said.state.previous)
            case _:
                return None

    def _told(self, said: Say, message: str, phase: Phase) -> tuple[RolloutState, Step]:
        step = Step(
            phase=phase, message=message, requeue=min(said.requeue, LOOK), verdicts=said.verdicts, asks=said.asks
        )  # fmt: skip
        if phase.is_final or said.asks:
            self._replay(on=False)
            self.target.release(self._epoch)
            self._epoch = 0  # whoever goes on from a pause takes it anew
        return said.state, step

    def _replay(self, *, on: bool) -> None:
        if self.replay is not None:
            self.target.replay(self.candidate, self.replay if on else None)

    def _measure(
        self, strategy: Strategy, state: RolloutState, sight: Sight, ctx: ReleaseContext
    ) -> Measurement:
        if self._measuring is None:
            self._measuring = measuring.Measuring(strategy, self.target, self.candidate, ctx)
        self._replay(on=True)
        return self._measuring.take(
            state, observed(self.candidate.revision, sight.candidate, state), sight.now
        )


def observed(revision: str, seen: Followed, state: RolloutState) -> Observation:
    """Return what an engine says as an observation, for the measurements: who gets how much, and since when."""
    rival = seen.stable if seen.stable not in {None, revision} else None
    rest = {rival: WHOLE - seen.weight} if rival is not None and seen.weight < WHOLE else {}
    weights = {revision: WHOLE - sum(rest.values()), **rest}
    return Observation(stable=seen.stable, traffic=Traffic(weights=weights), shifted=state.entered)
