"""Where numbers about a release come from: a proxy's access log, Prometheus, Triton itself, a webhook, a function.

A provider answers with what it counted, not with a judgement; :mod:`shipctl.release.analysis` judges. Providers are
found through the entry-point group ``shipctl.metrics``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from shipctl.records import Record
from shipctl.stages.context import CheckContext

METRIC_GROUP = "shipctl.metrics"


class MetricOptions(Record):
    """Base of a provider's options."""


class Samples(Record):
    """What one revision did in one window of time. Raw counts, as the provider gave them."""

    revision: str = Field(description="The revision that the requests were meant for.")
    since: float = Field(description="Begin of the window, seconds since the epoch.")
    until: float = Field(description="End of the window.")
    requests: int = Field(default=0, ge=0, description="Requests that were meant for it.")
    errors: int = Field(
        default=0,
        ge=0,
        description="Of these, how many failed or had to be answered by another revision.",
    )
    durations: tuple[float, ...] | None = Field(
        default=None,
        description="Seconds that each answered request took, in the order they came; None if not known one by one.",
    )
    times: tuple[float, ...] | None = Field(
        default=None,
        description="When each of `durations` ended, seconds since the epoch, in the same order.",
    )
    failed: tuple[float, ...] | None = Field(
        default=None,
        description="When each of `errors` ended, seconds since the epoch; None if not known one by one.",
    )
    replicas: dict[str, int] | None = Field(
        default=None, description="Requests by replica of this revision; None if not known."
    )
    value: float | None = Field(
        default=None, description="The answer of a query that gives one number, in base units."
    )
    coverage: float = Field(
        default=1.0, ge=0, le=1, description="Share of the window that the provider can vouch for."
    )
    query: str = Field(default="", description="What was asked.")
    raw: str = Field(default="", description="What was answered, shortened.")


@dataclass(frozen=True)
class MetricContext:
    """What a provider may know of the release."""

    pipeline: str
    model: str
    """The model's name in Triton."""
    versions: Mapping[str, str]
    """Revision to Triton's version number."""
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Revision to the labels by which its series are told from another's, beside model and version."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """As :meth:`shipctl.release.target.Target.endpoints` gives them."""
    logs: Path | None = None
    """Where the door's access log lies, if it is on this machine."""
    project: Path = Path()
    """The folder that relative paths of the options are relative to."""


class MetricProvider(ABC):
    """One source of numbers."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = MetricOptions

    def __init__(self, options: Any, ctx: MetricContext) -> None:
        self.options = options
        self.ctx = ctx

    @classmethod  # noqa: B027  (not every one has anything to look at)
    def check(cls, options: Any, ctx: CheckContext) -> None:
        """Prove, before anything has run, that the numbers can be had.

        :raises ShipctlError: if not
        """

    @abstractmethod
    def query(self, revision: str, since: float, until: float) -> Samples:
        """Return what ``revision`` did from ``since`` to before ``until`` (seconds since the epoch).

        Nothing is made up: what cannot be told has a smaller ``coverage``, no requests, or no value.

        :raises StageError: if the source cannot be asked; the analysis counts that as an error
        """
