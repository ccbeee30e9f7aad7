"""Release stage `canary`: a growing share of the traffic, compared with what serves, up to all or back to none."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator

from shipctl.release.options import StrategyOptions
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import RolloutStep, Strategy, canary_steps, checked_steps
from shipctl.release.target import Capability
from shipctl.stages.base import Bound


class CanaryOptions(StrategyOptions):
    """How the share grows."""

    steps: tuple[RolloutStep, ...] = Bound(
        canary_steps(),
        description="Weights and pauses in order, as in Argo Rollouts; 100 is implied at the end.",
    )

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[RolloutStep, ...]) -> tuple[RolloutStep, ...]:
        return checked_steps(steps)

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(name="canary", steps=self.steps, **self.common())


class Canary(StrategyStage[CanaryOptions]):
    """Give a new version a growing share of the traffic while it does as well as the one that serves."""

    api_version: ClassVar[int] = 1
    options_model = CanaryOptions
    needs = frozenset({Capability.WEIGHTS})
