"""Strategies as data: how traffic moves, and what has to hold while it does. The terms are Argo Rollouts'."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from shipctl.records import Record
from shipctl.release.references import Named, Reference
from shipctl.release.surge import Surge
from shipctl.release.traffic import WHOLE, Mirror, Segment, Sticky
from shipctl.spec.units import Duration, Percentage

__all__ = [
    "AbOptions",
    "AnalysisOptions",
    "Metric",
    "Mirror",
    "Pause",
    "PauseStep",
    "Segment",
    "SetWeight",
    "ShadowOptions",
    "Sticky",
    "Strategy",
    "canary_steps",
    "checked_steps",
]


class SetWeight(Record):
    """Give the candidate this share of the traffic."""

    setWeight: int = Field(ge=0, le=100, description="Percent of the requests.")  # noqa: N815


class Pause(Record):
    """How long to stay."""

    duration: Duration | None = Field(
        default=None, description="How long; left out, until somebody approves: `shipctl approve`."
    )


class PauseStep(Record):
    """Stay where the traffic is."""

    pause: Pause = Field(default_factory=Pause, description="How long.")


def _kind_of_step(step: Any) -> str:
    """Say which kind of step is meant, so that what is wrong with it is said once and not for both kinds."""
    if isinstance(step, dict):
        return "PauseStep" if "pause" in step else "SetWeight"
    return type(step).__name__ if isinstance(step, PauseStep) else "SetWeight"


RolloutStep = Annotated[
    Annotated[SetWeight, Tag("SetWeight")] | Annotated[PauseStep, Tag("PauseStep")],
    Discriminator(_kind_of_step),
]

CANARY_WEIGHTS = (5, 10, 25, 50)
"""What a canary gets in turn, in percent of the requests, before it gets everything."""


def canary_steps(
    pause: Duration | str = "1m", weights: tuple[int, ...] = CANARY_WEIGHTS
) -> tuple[RolloutStep, ...]:
    """Return the steps of a canary that stays for ``pause`` at each of its weights; 100 is implied at the end."""
    steps: list[RolloutStep] = []
    for weight in weights:
        steps += [SetWeight(setWeight=weight), PauseStep(pause=Pause(duration=Duration(pause)))]
    return tuple(steps)


def checked_steps(steps: tuple[RolloutStep, ...]) -> tuple[RolloutStep, ...]:
    """Return the steps as they are.

    A pause before the first weight waits before there is any traffic.

    :raises ValueError: if a weight is smaller than one before it, or none is between 0 and 100
    """
    before = 0
    for index, step in enumerate(steps):
        if not isinstance(step, SetWeight):
            continue
        if step.setWeight < before:
            message = f"step {index} goes back from {before} % to {step.setWeight} %; weights can only grow"
            raise ValueError(message)
        before = step.setWeight
    if not any(isinstance(step, SetWeight) and 0 < step.setWeight < WHOLE for step in steps):
        message = "no step has a weight between 0 and 100, so there is no canary; add {setWeight: 5}, or use bluegreen"
        raise ValueError(message)
    return steps


class Metric(Record):
    """One more number that decides, beside those of the `slo`."""

    name: str = Field(min_length=1, description="What it is called in reports.")
    provider: Named = Field(description="A metric provider: its name, or `{uses: NAME, with: OPTIONS}`.")
    min: float | None = Field(
        default=None, allow_inf_nan=False, description="The smallest value that passes, in base units."
    )
    max: float | None = Field(
        default=None, allow_inf_nan=False, description="The largest value that passes, in base units."
    )
    guardrail: bool = Field(
        default=False, description="For A/B: must not get worse, but is not what the test is about."
    )

    @model_validator(mode="after")
    def _bounded(self) -> Metric:
        if self.min is None and self.max is None:
            message = f"metric {self.name} has no bound, so it decides nothing; give it min or max"
            raise ValueError(message)
        if self.min is not None and self.max is not None and self.min > self.max:
            message = f"metric {self.name}: min {self.min:g} is above max {self.max:g}, so nothing passes"
            raise ValueError(message)
        return self


def checked_confidence(value: Percentage) -> Percentage:
    """Return how sure a comparison shall be.

    :raises ValueError: if that decides nothing, or nothing ever reaches it
    """
    if not 0.5 <= value < 1:  # noqa: PLR2004
        message = f"a confidence of {value} cannot be had; write one from 50% to less than 100%, such as 95%"
        raise ValueError(message)
    return value


class AnalysisOptions(Record):
    """What is measured while both revisions serve, how often, and how much of a bad sign is enough."""

    provider: Named = Field(
        default=Reference(uses="access-log"),
        description="Where requests, errors and latencies come from: a provider's name, or `{uses: NAME, with: …}`.",
    )
    interval: Duration = Field(default=Duration("15s"), description="Time between two measurements.")
    initialDelay: Duration = Field(  # noqa: N815
        default=Duration(0), description="Time after each shift before the first measurement begins."
    )
    failureLimit: int = Field(default=0, ge=0, description="Measurements that may fail without an abort.")  # noqa: N815
    inconclusiveLimit: int = Field(  # noqa: N815
        default=8, ge=0, description="Measurements that may be inconclusive before the release pauses."
    )
    consecutiveErrorLimit: int = Field(  # noqa: N815
        default=4, ge=0, description="Measurements in a row that may end in an error without an abort."
    )
    minSamples: int = Field(  # noqa: N815
        default=50, ge=1, description="Requests to the candidate below which nothing is concluded."
    )
    compare: bool = Field(
        default=True, description="Whether the candidate is compared with the stable one at the same time."
    )
    confidence: Percentage = Field(
        default=Percentage("95%"),
        description="How sure the comparison is over the whole rollout: an equal candidate is aborted by chance in "
        "the rest of all cases at most.",
    )
    errorTolerance: Percentage = Field(  # noqa: N815
        default=Percentage("0.2%"),
        description="By how much the candidate's share of errors may be larger and never counts as a failure.",
    )
    errorLimit: Percentage = Field(  # noqa: N815
        default=Percentage("1%"),
        description="How much larger a share of errors has to be ruled out before the comparison passes.",
    )
    slowTolerance: Percentage = Field(  # noqa: N815
        default=Percentage("5%"),
        description="By how much the candidate may be slower, around the stable one's p95, without ever failing.",
    )
    slowLimit: Percentage = Field(  # noqa: N815
        default=Percentage("20%"),
        description="How much slower, around the stable one's p95, has to be ruled out before the comparison passes.",
    )
    metrics: tuple[Metric, ...] = Field(default=(), description="Further metrics with absolute bounds.")

    @field_validator("interval")
    @classmethod
    def _some_time(cls, interval: Duration) -> Duration:
        if not interval:
            message = "analysis.interval is 0s, in which there is nothing to measure; write one such as 15s"
            raise ValueError(message)
        return interval

    @field_validator("confidence")
    @classmethod
    def _can_be_had(cls, confidence: Percentage) -> Percentage:
        return checked_confidence(confidence)

    @field_validator("metrics")
    @classmethod
    def _told_apart(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        names = [metric.name for metric in metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            message = f"two metrics have the same name: {', '.join(twice)}"
            raise ValueError(message)
        return metrics

    @model_validator(mode="after")
    def _in_order(self) -> AnalysisOptions:
        for what in ("error", "slow"):
            tolerance, limit = getattr(self, f"{what}Tolerance"), getattr(self, f"{what}Limit")
            if tolerance > limit:
                message = (
                    f"{what}Tolerance ({tolerance}) is above {what}Limit ({limit}): what would fail could also pass; "
                    f"raise {what}Limit"
                )
                raise ValueError(message)
        return self


class AbOptions(Record):
    """What an A/B test compares, and what counts as better."""

    goal: str = Field(
        default="latency",
        min_length=1,
        description="What the test is about: latency (share of slow requests), error_rate, or the name of one of "
        "`analysis.metrics`.",
    )
    minimumEffect: Percentage = Field(  # noqa: N815
        default=Percentage("2%"),
        description="The smallest difference that matters; a test that excludes it either way is over.",
    )
    confidence: Percentage = Field(default=Percentage("95%"), description="How sure the verdict is.")

    @field_validator("minimumEffect")
    @classmethod
    def _some(cls, effect: Percentage) -> Percentage:
        if not effect:
            message = (
                "a minimumEffect of 0% is never excluded, so the test would not end; write one such as 2%"
            )
            raise ValueError(message)
        return effect

    @field_validator("confidence")
    @classmethod
    def _can_be_had(cls, confidence: Percentage) -> Percentage:
        return checked_confidence(confidence)


class ShadowOptions(Record):
    """How far the candidate's answers may be from those of the stable revision."""

    comparisons: int = Field(
        default=400, ge=1, description="Answers that are compared before there is a verdict."
    )
    maxAbsError: float | None = Field(  # noqa: N815
        default=None, ge=0, description="Largest absolute difference of a value; None for no bound."
    )
    maxRelError: float | None = Field(  # noqa: N815
        default=0.05, ge=0, description="Largest difference as a share of the tensor's largest magnitude."
    )
    top1Agreement: Percentage | None = Field(  # noqa: N815
        default=Percentage("99%"),
        description="Smallest share of samples with the same class; None for no bound.",
    )
    differing: Percentage = Field(
        default=Percentage("1%"), description="Largest share of answers that may be out of these bounds."
    )


class Strategy(Record):
    """How one release goes."""

    name: Literal["rolling", "bluegreen", "canary", "ab-test", "shadow"]
    steps: tuple[RolloutStep, ...] = Field(default=(), description="Weights and pauses on the way to 100.")
    analysis: AnalysisOptions | None = Field(
        default=None, description="What is measured on the way; None for nothing."
    )
    preflight: bool = Field(
        default=True, description="Whether golden samples are asked before anything else."
    )
    preview: bool = Field(
        default=False, description="Whether the candidate stands behind a preview door first."
    )
    autoPromotion: bool = Field(default=True, description="Whether it is promoted without an approval.")  # noqa: N815
    scaleDownDelay: Duration = Field(  # noqa: N815
        default=Duration("30s"),
        description="How long the old revision is kept warm, and watched, after a promotion.",
    )
    abortScaleDownDelay: Duration = Field(  # noqa: N815
        default=Duration(0), description="How long the candidate is kept after an abort, to look at."
    )
    progressDeadline: Duration = Field(  # noqa: N815
        default=Duration("10m"), description="How long replicas may take to be ready, and a pause may last."
    )
    mirror: float | None = Field(default=None, description="Shadow: percent of the requests that are copied.")
    duration: Duration | None = Field(default=None, description="Shadow and A/B: how long at most.")
    sticky: Sticky | None = Field(default=None, description="A/B: by what requests stay with one revision.")
    segments: tuple[Segment, ...] = Field(default=(), description="A/B: who always gets which one.")
    ab: AbOptions | None = Field(default=None, description="A/B: what is compared.")
    shadow: ShadowOptions | None = Field(default=None, description="Shadow: how far answers may differ.")
    promote: bool = Field(default=True, description="Shadow and A/B: whether a good result is promoted.")
    surge: Surge | None = Field(
        default=None,
        description="Rolling: replicas are replaced within these bounds; None keeps all of both.",
    )

    def summary(self) -> str:
        """Return one line for a plan: what comes after what."""
        parts = ["preflight"] if self.preflight else []
        if self.surge is not None:
            parts.append(f"maxSurge {self.surge.maxSurge}, maxUnavailable {self.surge.maxUnavailable}")
        parts += ["preview door"] if self.preview else []
        parts += [f"copies of {self.mirror:g} %"] if self.mirror is not None else []
        for index, step in enumerate(self.steps):
            if isinstance(step, SetWeight):
                parts.append(f"{step.setWeight} %")
            elif step.pause.duration is None:
                parts.append(f"approval of step {index}")
            else:
                parts.append(f"wait {step.pause.duration}")
        parts += [f"verdict within {self.duration}"] if self.duration is not None else []
        if not self.promote:
            return f"{self.name}: {', '.join([*parts, 'what serves stays'])}"
        parts += [] if self.autoPromotion else ["approval of promote"]
        return f"{self.name}: {', '.join([*parts, f'{WHOLE} %, watched for {self.scaleDownDelay}'])}"
