"""Metric provider `comparison`: how the candidate's answers to copies of requests differ from the stable one's.

The comparator (:mod:`shipctl_plugins._triton.comparator`) writes down raw differences; what counts as a difference is
said by this provider's options, which are those of a shadow release. Requests are the copies to which the candidate
had to give an answer, errors those of them that it alone failed; durations are those of its answers. In `raw` stands
what :func:`shipctl.release.analysis.shadow.judge_shadow` judges, as JSON. Asked for the stable revision, it says how
that one answered the copies.

The log is read as it grows, and only what lies in the window of the last query is remembered.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field, ValidationError

from shipctl.errors import StageError
from shipctl.release.analysis.shadow import Comparisons
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl.release.strategy import ShadowOptions
from shipctl.spec.units import Percentage
from shipctl_plugins._metrics.tail import Tail
from shipctl_plugins._triton.comparator_log import FILE, KEPT, Line

LAG = 0.5
"""Seconds after which the log has what happened: it is written at once, on a machine that is busy."""
_UNORDERED = 5.0
_REASON_SHOWN = 100
_REASONS_KEPT = 5
_DEFAULTS = ShadowOptions()


class ComparisonOptions(MetricOptions):
    """What counts as a difference; as `compare` of a shadow release."""

    maxAbsError: float | None = Field(  # noqa: N815
        default=_DEFAULTS.maxAbsError, ge=0, description="Largest absolute difference of a value."
    )
    maxRelError: float | None = Field(  # noqa: N815
        default=_DEFAULTS.maxRelError,
        ge=0,
        description="Largest difference as a share of the tensor's largest magnitude.",
    )
    top1Agreement: Percentage | None = Field(  # noqa: N815
        default=_DEFAULTS.top1Agreement,
        description="Smallest share of samples with the same class; None makes every integer, boolean or string "
        "that is not equal a difference.",
    )
    path: Path | None = Field(default=None, description="The log's file, if it is not where the target says.")


class Comparison(MetricProvider):
    """Count the comparisons in the comparator's log."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = ComparisonOptions
    options: ComparisonOptions

    def __init__(
        self, options: ComparisonOptions, ctx: MetricContext, now: Callable[[], float] = time.time
    ) -> None:
        """``now`` replaces the clock, for tests."""
        super().__init__(options, ctx)
        self._now = now
        self._tail: Tail | None = None
        self._lines: list[Line] = []
        self._from = 0.0

    def query(self, revision: str, since: float, until: float) -> Samples:
        """Return what the log says of one window. It should have ended :data:`LAG` seconds ago.

        :raises StageError: if there is no log, or it cannot be read
        """
        tail = self._read(since)
        window = [line for line in self._lines if since <= line.time < until]
        asked = [line for line in window if line.candidate == revision]
        coverage = self._coverage(tail, since, until)
        query = f"comparisons of {revision[:12]} from {since:.3f} to {until:.3f} in {tail.log}"
        if not asked:
            stood = [line for line in window if line.stable == revision and line.protocol is not None]
            if stood:
                return _of_stable(revision, since, until, stood, coverage, query)
        counted = comparisons(self.options, asked, since, until, coverage)
        answered = [line for line in asked if line.ok]
        return Samples(
            revision=revision,
            since=since,
            until=until,
            requests=counted.compared,
            errors=counted.failed,
            durations=tuple(line.seconds_candidate or 0.0 for line in answered),
            times=tuple(line.time for line in answered),
            failed=tuple(line.time for line in asked if line.error_candidate is not None),
            coverage=coverage,
            query=query,
            raw=counted.model_dump_json(exclude_defaults=True),
        )

    def _read(self, since: float) -> Tail:
        """Read on, and forget what lies before the window; a window before that makes it read anew."""
        tail = self._tail
        if tail is not None and since < self._from:
            tail.close()
            tail = None
        if tail is None:
            log = self._log()
            tail, self._lines = Tail(log, KEPT, _end_of, self._now), []
            self._tail = tail
        read = broken = 0
        for text in tail.lines(since - _UNORDERED):
            line = _parsed(text)
            read += 1
            if line is None:
                broken += 1
            else:
                self._lines.append(line)
        if 2 * broken > read:
            self._tail = None
            tail.close()
            message = f"{broken} of {read} lines of {tail.log} are not those of a comparator"
            raise StageError(message)
        self._from = since
        self._lines = [line for line in self._lines if line.time >= since]
        return tail

    def _log(self) -> Path:
        if self.options.path is not None:
            log = self.ctx.project / self.options.path.expanduser()
        elif self.ctx.logs is None:
            raise StageError("the target compares no answers on this machine; use another metric provider")
        else:
            log = self.ctx.logs / FILE if self.ctx.logs.is_dir() else self.ctx.logs
        if not log.exists():
            raise StageError(f"{log} is not there: no comparator has run; see whether the traffic is copied")
        return log

    def _coverage(self, tail: Tail, since: float, until: float) -> float:
        if until <= since:
            return 0.0
        begin = max(tail.first() or since, tail.lost or since, since)
        end = min(self._now() - LAG, until)
        return min(1.0, max(0.0, end - begin) / (until - since))


def comparisons(
    options: ComparisonOptions, lines: Sequence[Line], since: float, until: float, coverage: float = 1.0
) -> Comparisons:
    """Return what lines of one candidate come to."""
    compared = [line for line in lines if line.ok or line.error_candidate is not None]
    answered = [line for line in compared if line.ok]
    reasons = Counter(reason for line in compared if (reason := differs(options, line)) is not None)
    classed = [line for line in answered if line.samples]
    return Comparisons(
        since=since,
        until=until,
        compared=len(compared),
        differing=sum(reasons.values()),
        failed=len(compared) - len(answered),
        classed=len(classed),
        samples=sum(line.samples for line in classed),
        agreeing=sum(line.agree for line in classed),
        disagreement=sum(1 - line.agree / line.samples for line in classed),
        unusable=sum(line.error_stable is not None for line in lines),
        dropped=sum(line.dropped for line in lines),
        skipped=sum(line.skipped for line in lines),
        reasons=dict(reasons.most_common(_REASONS_KEPT)),
        max_abs=max((line.max_abs for line in answered if line.max_abs is not None), default=None),
        max_rel=max((line.max_rel for line in answered if line.max_rel is not None), default=None),
        coverage=coverage,
    )


def differs(options: ComparisonOptions, line: Line) -> str | None:
    """Return in a few words why an answer counts as another one; None if it does not."""
    if line.error_candidate is not None:
        return f"the candidate failed: {line.error_candidate}"[:_REASON_SHOWN]
    if line.problem is not None:
        return line.problem[:_REASON_SHOWN]
    if options.maxAbsError is not None and line.max_abs is not None and line.max_abs > options.maxAbsError:
        return f"absolute error above {options.maxAbsError:g}"
    if options.maxRelError is not None and line.max_rel is not None and line.max_rel > options.maxRelError:
        return f"relative error above {options.maxRelError:g}"
    if options.top1Agreement is None and line.unequal:
        return "values that are not equal"
    return None


def _of_stable(
    revision: str, since: float, until: float, lines: Sequence[Line], coverage: float, query: str
) -> Samples:
    answered = [line for line in lines if line.seconds_stable is not None]
    return Samples(
        revision=revision,
        since=since,
        until=until,
        requests=len(lines),
        errors=len(lines) - len(answered),
        durations=tuple(line.seconds_stable or 0.0 for line in answered),
        times=tuple(line.time for line in answered),
        failed=tuple(line.time for line in lines if line.seconds_stable is None),
        coverage=coverage,
        query=query,
        raw=f"{len(lines)} copies, {len(lines) - len(answered)} failed",
    )


def _parsed(text: bytes) -> Line | None:
    try:
        return Line.model_validate_json(text)
    except ValidationError:
        return None


def _end_of(text: bytes) -> float | None:
    line = _parsed(text)
    return None if line is None else line.time
