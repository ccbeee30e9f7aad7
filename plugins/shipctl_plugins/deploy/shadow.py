"""Release stage `shadow`: copies of requests go to both versions, whose answers are compared tensor by tensor."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from shipctl.release.options import StrategyOptions
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import AnalysisOptions, ShadowOptions, Strategy
from shipctl.release.target import Capability
from shipctl.spec.units import Duration, Percentage
from shipctl.stages.base import Bound


class ShadowStageOptions(StrategyOptions):
    """How much is copied, and how far answers may differ."""

    percent: Percentage = Bound(Percentage("10%"), description="Share of the requests that are copied.")
    duration: Duration = Bound(
        Duration("10m"), description="How long at most until there are enough of them."
    )
    compare: ShadowOptions = Bound(ShadowOptions(), description="How far the answers may differ.")
    promote: bool = Bound(
        False, description="Whether the new version takes over if its answers agree; else it is stopped."
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.percent or not self.duration:
            name = "duration" if self.percent else "percent"
            message = f"{name} is {getattr(self, name)}, so nothing would be compared; leave it out, or use bluegreen"
            raise ValueError(message)
        return self

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(
            name="shadow",
            mirror=100 * float(self.percent),
            duration=self.duration,
            shadow=self.compare,
            promote=self.promote,
            **{
                **self.common(),
                "analysis": self.analysis or AnalysisOptions(),
            },  # how often answers are judged
        )


class Shadow(StrategyStage[ShadowStageOptions]):
    """Compare the answers of a new version with those of the one that serves, on copies of real requests."""

    api_version: ClassVar[int] = 1
    options_model = ShadowStageOptions
    needs = frozenset({Capability.MIRROR})
