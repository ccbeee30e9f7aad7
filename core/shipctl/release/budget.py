"""How long it can take, at worst, until a release that has gone wrong is off the traffic again."""

from __future__ import annotations

from pydantic import Field

from shipctl.records import Record
from shipctl.release.decision import POLL
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.release.target import LEASE_SECONDS

SHIFT_SECONDS = 1.0
"""How long a shift takes to be in effect, where the target does not say."""
QUERY_SECONDS = 10.0
"""How long one query of a metric provider may take, where nobody says."""
LOOK_SECONDS = 3.0
"""Seconds between two looks of a driver at most."""
WATCHDOG_SECONDS = 2.0
"""Seconds that a watchdog takes to notice that a lease has expired, and to act."""


class WayBack(Record):
    """The time from the moment that a candidate goes bad until the stable revision has all traffic, at worst."""

    terms: tuple[tuple[str, float], ...] = Field(description="What adds up: a name and seconds each.")

    @property
    def seconds(self) -> float:
        """All of it, in seconds."""
        return sum(seconds for _, seconds in self.terms)

    @property
    def arithmetic(self) -> str:
        """The sum in one line."""
        terms = " + ".join(f"{seconds:g} s {name}" for name, seconds in self.terms if seconds)
        return f"{terms} = {self.seconds:g} s"


def worst_case(
    strategy: Strategy,
    target_shift_seconds: float = SHIFT_SECONDS,
    lease_seconds: float | None = LEASE_SECONDS,
    query_timeout: float = QUERY_SECONDS,
) -> WayBack:
    """Return the worst-case time from the moment that a candidate goes bad until stable has all traffic.

    "Bad" is what one window of the analysis shows beyond doubt. It may begin in the middle of a window that still
    looks good enough as a whole, so that the first one to fail is the next; `failureLimit` more may fail. Or the
    source of the numbers goes away with it, and `consecutiveErrorLimit` more measurements may end in an error: the
    longer of the two counts. Just when that is noticed, whoever drives the release may die, so that the watchdog has
    to wait for the lease to expire. What is too small for one window takes as many as the comparison needs, which is
    in the plan beside this. Without an analysis only replicas are looked at.

    ``target_shift_seconds`` is what a shift takes to be in effect, ``lease_seconds`` what a lease holds without being
    renewed (None where no watchdog looks: then all holds for as long as whoever drives the release lives), and
    ``query_timeout`` what one query may take to be answered; a measurement asks for each revision that it compares
    and for each further metric, one after the other.
    """
    noticed: tuple[tuple[str, float], ...] = ()
    if strategy.analysis is not None:
        options = strategy.analysis
        queries = 1 + options.compare + len(options.metrics)
        noticed = _noticed(options, queries * query_timeout)
    takeover = 0.0 if lease_seconds is None else lease_seconds + WATCHDOG_SECONDS
    return WayBack(
        terms=(
            *noticed,
            ("until the next look", LOOK_SECONDS),
            ("for a takeover by the watchdog", takeover),
            ("for the shift", target_shift_seconds),
        )
    )


def _noticed(options: AnalysisOptions, query: float) -> tuple[tuple[str, float], ...]:
    """Return how long it takes until an analysis gives up."""
    interval = float(options.interval)
    # a measurement begins an interval after the last one began, but not before that was answered
    pace = max(interval, query) + POLL
    failing = (
        ("until the window in which it goes bad is over", max(float(options.initialDelay), pace)),
        _times(options.failureLimit + 1, "for the window that fails", "for windows that fail", pace),
        ("for the last answer", query),
    )
    erring = (
        _times(
            options.consecutiveErrorLimit + 1,
            "for the window without an answer",
            "for windows without an answer",
            pace,
        ),
        ("for the last answer", query),
    )
    return max(failing, erring, key=lambda terms: sum(seconds for _, seconds in terms))


def _times(count: int, one: str, many: str, seconds: float) -> tuple[str, float]:
    return (one, seconds) if count == 1 else (f"{many} ({count} × {seconds:g} s)", count * seconds)
