"""Options that release strategies have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from shipctl.records import Record
from shipctl.release.references import Named, Reference
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.release.surge import Amount, Surge
from shipctl.spec.units import Duration, Percentage, Rate
from shipctl.stages.artifacts import Dataset, ModelPackage, TritonRepository
from shipctl.stages.base import Bound, StageInputs, StageOptions


class Replay(Record):
    """Golden samples as load, for a door that nobody else knocks at."""

    rate: Rate = Field(description="Requests per second, such as 20/s.")

    @field_validator("rate")
    @classmethod
    def _some(cls, rate: Rate) -> Rate:
        if not rate:
            message = f"a replay of {rate} sends nothing; leave `replay` out, or write a rate such as 20/s"
            raise ValueError(message)
        return rate


class StrategyOptions(StageOptions, ABC):
    """Where to, how careful, and how long the old revision stays."""

    target: Named = Field(
        default=Reference(uses="local"),
        description="Where it is served: a target's name, or `{uses: NAME, with: OPTIONS}`.",
    )
    analysis: AnalysisOptions | None = Bound(
        AnalysisOptions(),
        description="What is measured while requests reach the candidate; null for nothing.",
    )
    replay: Replay | None = Bound(
        None,
        description="Sends golden samples through the door while it is measured, where there is too little traffic.",
    )
    traffic: Rate | None = Bound(
        None,
        description="Requests per second that are expected; the plan says with them what can be noticed.",
    )
    scaleDownDelay: Duration = Bound(  # noqa: N815
        Duration("30s"), description="How long the old revision is kept warm, and watched, after a promotion."
    )
    abortScaleDownDelay: Duration = Bound(  # noqa: N815
        Duration(0), description="How long the candidate is kept after an abort, to look at."
    )
    progressDeadline: Duration = Bound(  # noqa: N815
        Duration("10m"), description="How long replicas may take to be ready, and a pause may last."
    )

    @field_validator("progressDeadline")
    @classmethod
    def _some_time(cls, deadline: Duration) -> Duration:
        if not deadline:
            message = "progressDeadline is 0s, in which no replica can be ready; write one such as 10m"
            raise ValueError(message)
        return deadline

    def common(self) -> dict[str, Any]:
        """Return what goes into a :class:`Strategy` as it is."""
        names = ("analysis", "scaleDownDelay", "abortScaleDownDelay", "progressDeadline")
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""


class BluegreenOptions(StrategyOptions):
    """When it takes over."""

    autoPromotion: bool = Bound(  # noqa: N815
        True, description="Whether it takes over by itself; else it waits for `shipctl approve`."
    )
    previewService: bool = Bound(  # noqa: N815
        True, description="Whether requests with the header x-shipctl-preview reach it before it takes over."
    )

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(
            name="bluegreen", preview=self.previewService, autoPromotion=self.autoPromotion, **self.common()
        )


class RollingOptions(StrategyOptions):
    """How many replicas are replaced at a time."""

    maxSurge: Amount = Bound(  # noqa: N815
        Percentage("25%"),
        description="Replicas above the wanted number while they are replaced: a number or a percentage, rounded up.",
    )
    maxUnavailable: Amount = Bound(  # noqa: N815
        0,
        description="Ready replicas that may be missing from the wanted number meanwhile: a number or a percentage, "
        "rounded down.",
    )

    @model_validator(mode="after")
    def _moves(self) -> Self:
        self.surge()
        return self

    def surge(self) -> Surge:
        """Return the bounds.

        :raises ValueError: if no replica could be replaced
        """
        return Surge(maxSurge=self.maxSurge, maxUnavailable=self.maxUnavailable)

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(name="rolling", surge=self.surge(), **self.common())


class StrategyInputs(StageInputs):
    """What a release takes."""

    repository: TritonRepository
    golden: Dataset
    package: ModelPackage | None = None
    """The signed package that both are from, for a policy that asks for one."""
