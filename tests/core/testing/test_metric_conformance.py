"""The kit for metric providers passes a good one and catches each kind of bad one."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import pytest
from pydantic import ConfigDict, Field

from shipctl.errors import StageError
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl.testing.metrics import MetricProviderConformance

ONE, TWO = "a" * 64, "b" * 64


class CountingOptions(MetricOptions):
    """What it is told."""

    token: str = Field(default="sesame", description="Opens it.")


class Counting(MetricProvider):
    """Remember what happened."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = CountingOptions

    def __init__(self, options: Any, ctx: MetricContext) -> None:
        super().__init__(options, ctx)
        self.happened: list[tuple[float, bool]] = []
        self.gone = False

    def query(self, revision: str, since: float, until: float) -> Samples:
        if self.gone:
            message = "the source is gone; start it"
            raise StageError(message)
        found = [failed for at, failed in self.happened if revision == ONE and since <= at < until]
        return self.samples(
            {
                "revision": revision,
                "since": since,
                "until": until,
                "requests": len(found),
                "errors": sum(found),
                "coverage": 1.0 if until <= time.time() else 0.0,
                "query": "what happened",
                "raw": str(len(found)),
            },
            found,
        )

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        return Samples(**fields)


class OnCounting(MetricProviderConformance):
    name, plugin, revision, other = "counting", Counting, ONE, TWO
    clock = 1000.0
    secret: ClassVar[str | None] = None

    def test_entry_point_names_this_class(self) -> None:
        """Installed nowhere."""

    @pytest.fixture
    def provider(self) -> MetricProvider:
        options = self.plugin.options_model()
        return self.plugin(options, MetricContext("p", "m", {ONE: "1", TWO: "2"}))

    def happen(self, provider: Any, requests: int, errors: int) -> tuple[float, float]:
        since = self.clock
        provider.happened += [(since + 1, number < errors) for number in range(requests)]
        self.clock += 10
        return since, self.clock

    def take_away(self, provider: Any) -> None:
        provider.gone = True


class TestGood(OnCounting):
    """All of it."""


class Stale(Counting):
    """Say again what it said before."""

    last: Samples | None = None

    def query(self, revision: str, since: float, until: float) -> Samples:
        if self.gone and self.last is not None:
            return self.last
        self.last = super().query(revision, since, until)
        return self.last


class Everyones(Counting):
    """Ask nobody whose requests they were."""

    def query(self, revision: str, since: float, until: float) -> Samples:
        return super().query(ONE, since, until).model_copy(update={"revision": revision})


class Altogether(Counting):
    """Take all windows for one."""

    def query(self, revision: str, since: float, until: float) -> Samples:
        found = super().query(revision, 0, until)
        return found.model_copy(update={"since": since, "until": until})


class Confident(Counting):
    """Vouch for the future."""

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        return Samples(**{**fields, "coverage": 1.0})


class Making(Counting):
    """Make a number up where there is none."""

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        return Samples(**fields, value=sum(found) / max(1, len(found)))


class NotANumber(Counting):
    """Give what is no number."""

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        return Samples(**fields, value=math.nan)


class Unordered(Counting):
    """Give durations and times in another order."""

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        since = fields["since"]
        given = {"durations": (0.1, 0.1), "times": (since + 0.2, since + 0.1)} if len(found) > 1 else {}
        return Samples(**fields, **given)


class Silent(Counting):
    """Keep to itself what it asked."""

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        return Samples(**{**fields, "query": ""})


class Careless(Counting):
    """Tell its token."""

    def samples(self, fields: dict[str, Any], found: list[bool]) -> Samples:
        return Samples(**{**fields, "raw": self.options.token})


class Futuristic(Counting):
    """Be for a later shipctl."""

    api_version: ClassVar[int] = 99


class LooseOptions(CountingOptions):
    """What it is told, and more."""

    model_config = ConfigDict(extra="ignore")


class Loose(Counting):
    """Overlook typing errors in options."""

    options_model = LooseOptions


@pytest.mark.parametrize(
    ("plugin", "caught_by"),
    [
        (Stale, "test_a_source_that_went_away_is_an_error_each_time"),
        (Everyones, "test_another_revision_is_not_counted"),
        (Altogether, "test_windows_do_not_mix"),
        (Confident, "test_a_window_that_is_not_over_is_not_covered"),
        (Making, "test_no_requests_are_no_numbers"),
        (NotANumber, "test_an_answer_is_about_what_was_asked"),
        (Unordered, "test_an_answer_is_about_what_was_asked"),
        (Silent, "test_an_answer_is_about_what_was_asked"),
        (Careless, "test_nothing_secret_is_recorded"),
        (Futuristic, "test_it_is_for_this_api_version"),
        (Loose, "test_declaration_is_complete"),
    ],
)
def test_a_bad_provider_is_caught(plugin: type[Counting], caught_by: str) -> None:
    suite = type(
        "Suite", (OnCounting,), {"plugin": plugin, "secret": "sesame" if plugin is Careless else None}
    )()
    test = getattr(suite, caught_by)
    context = MetricContext("p", "m", {ONE: "1", TWO: "2"})
    arguments = [plugin(plugin.options_model(), context)] if test.__code__.co_argcount > 1 else []
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(*arguments)
