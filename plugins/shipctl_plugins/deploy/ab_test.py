"""Release stage `ab-test`: two versions serve their own users until one is shown to be better, or none."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from shipctl.release.options import StrategyOptions
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import AbOptions, AnalysisOptions, Segment, SetWeight, Sticky, Strategy
from shipctl.release.target import Capability
from shipctl.spec.units import Duration
from shipctl.stages.base import Bound


class AbTestOptions(StrategyOptions):
    """Who gets which version, what is compared, and when that is over."""

    weight: int = Bound(50, ge=1, le=99, description="Percent of the users that get the new version.")
    sticky: Sticky | None = Bound(
        Sticky(kind="header", name="x-user-id"),
        description="By what a user is told from others: `{kind: header|cookie, name: …}`; null: by `segments` alone, "
        "and who is in none of them gets either version with each request.",
    )
    segments: tuple[Segment, ...] = Bound(
        (), description="Users that always get one version, or that are counted by themselves."
    )
    duration: Duration = Bound(Duration("1h"), description="How long the test lasts at most.")
    test: AbOptions = Bound(AbOptions(), description="What is compared, and what counts as better.")
    promote: bool = Bound(True, description="Whether the new version takes over if it is better.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [segment.name for segment in self.segments]
        if len(names) != len(set(names)):
            message = f"two segments have the same name: {', '.join(names)}"
            raise ValueError(message)
        for segment in self.segments:
            if segment.revision not in {None, "stable", "candidate"}:
                message = f"segment {segment.name}: revision is stable, candidate, or left out, not {segment.revision}"
                raise ValueError(message)
        if not self.duration:
            message = f"duration is {self.duration}, so the test would be over at once; write one such as 1h"
            raise ValueError(message)
        goals = [
            "latency",
            "error_rate",
            *(metric.name for metric in (self.analysis or AnalysisOptions()).metrics),
        ]
        if self.test.goal not in goals:
            message = f"test.goal {self.test.goal!r} is not measured; there are {', '.join(goals)}"
            raise ValueError(message)
        return self

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(
            name="ab-test",
            steps=(SetWeight(setWeight=self.weight),),
            sticky=self.sticky,
            segments=self.segments,
            duration=self.duration,
            ab=self.test,
            promote=self.promote,
            **{**self.common(), "analysis": self.analysis or AnalysisOptions()},
        )


class AbTest(StrategyStage[AbTestOptions]):
    """Let two versions serve their own users, and promote the new one if it is shown to be better."""

    api_version: ClassVar[int] = 1
    options_model = AbTestOptions
    needs = frozenset({Capability.WEIGHTS, Capability.HEADERS})
