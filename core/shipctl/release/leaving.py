"""What becomes of a target when whoever drives a release stops before its end, and how long one may be waited for.

All of it is about stages that drive a target by themselves (:class:`~shipctl.release.stage.StrategyStage` over a
:class:`~shipctl.release.target.Target`); of other stages nothing is known, and nothing is done to them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from shipctl.errors import ShipctlError
from shipctl.processes import own_name
from shipctl.release import measuring
from shipctl.release.budget import WATCHDOG_SECONDS, worst_case
from shipctl.release.decision import label
from shipctl.release.delegated import DelegatedTarget
from shipctl.release.situation import GIVEN
from shipctl.release.stage import StrategyStage
from shipctl.release.target import LEASE_SECONDS, Capability, Observation, ReleaseTarget, Target
from shipctl.release.targets import open_target
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase, ReleaseStage
from shipctl.stages.context import ReleaseContext

PATIENCE = 600.0
"""Seconds that an abort may take by a stage that does not say."""
AnyStage = ReleaseStage[Any, Any, Any]


def patience(stage: AnyStage, phase: Phase) -> float:
    """Return within how many seconds an abort that is asked for in ``phase`` is over at worst.

    That is the worst case of the plan, the lease in case that its holder dies over it, the time that the candidate is
    kept to be looked at, and before any traffic also what replicas and a preflight may take.
    """
    if not isinstance(stage, StrategyStage):
        return PATIENCE
    strategy = stage.strategy()
    way = worst_case(strategy, query_timeout=measuring.query_seconds(strategy))
    seconds = way.seconds + LEASE_SECONDS + float(strategy.abortScaleDownDelay)
    return seconds if phase in GIVEN else seconds + float(strategy.progressDeadline)


def may_be_left(stage: AnyStage, ctx: ReleaseContext) -> bool:
    """Whether a release that is being watched can do without anybody: all requests are where they are to stay.

    :raises StageError: if the target cannot be asked
    """
    target = _target(stage, ctx)
    if not isinstance(target, Target):
        return True
    seen = target.observe(ctx.revision)
    return seen.traffic == Traffic.only(seen.stable)


def unwatched(stage: AnyStage) -> AnyStage:
    """Return the stage as it goes on with what is promoted already, if that is not to be watched any longer."""
    if not isinstance(stage, StrategyStage):
        return stage
    return type(stage)(stage.options.model_copy(update={"scaleDownDelay": Duration(0)}))


def let_go(stage: AnyStage, ctx: ReleaseContext) -> str:
    """Give back the lease that this process holds, and say what becomes of the traffic; "" if that stays as it is."""
    target = _target(stage, ctx)
    if isinstance(target, DelegatedTarget):
        with suppress(ShipctlError):
            target.release(target.acquire(own_name()))
    if not isinstance(target, Target):
        return ""
    try:
        epoch = target.acquire(own_name())  # its number, if it is ours, and an error if it is somebody else's
        try:
            seen = target.observe(ctx.revision)
        finally:
            target.release(epoch)
    except ShipctlError:
        return ""  # the lease runs out by itself, and whoever drives next looks at the target first
    if not _away(seen, ctx.revision):
        return ""
    stable = label(seen, seen.stable)
    if Capability.WATCHDOG in target.offers(target.options):
        return (
            f"the lease was given back, so the watchdog puts all requests back on {stable} within "
            f"{WATCHDOG_SECONDS:g} s"
        )
    share = f"{seen.traffic.weight(ctx.revision)} % of the requests"
    return f"this target has no watchdog, so {label(seen, ctx.revision)} keeps {share} until somebody goes on"


def versions(stage: AnyStage, ctx: ReleaseContext) -> dict[str, str]:
    """Return revision to the version number that the target's servers use for it, where it tells."""
    target = _target(stage, ctx)
    return target.versions() if target is not None else {}


def _away(seen: Observation, revision: str) -> bool:
    """Whether requests, or copies of them, reach a revision that is not the stable one."""
    mirror = seen.traffic.mirror
    copied = mirror is not None and mirror.candidate == revision
    return seen.stable not in {None, revision} and (copied or seen.traffic.weight(revision) > 0)


def _target(stage: AnyStage, ctx: ReleaseContext) -> ReleaseTarget | None:
    return open_target(stage.options.target, ctx) if isinstance(stage, StrategyStage) else None
