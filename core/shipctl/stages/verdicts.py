"""Verdicts of gates. Anything that is not a clear yes is not a pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Literal

from pydantic import Field

from shipctl.records import Record

Comparison = Literal["<=", "<", ">=", ">", "=="]
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}


class Outcome(StrEnum):
    """The four outcomes in order of badness; combining takes the worst."""

    PASS = "pass"  # noqa: S105  (a verdict)
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    FAIL = "fail"

    @property
    def badness(self) -> int:
        """Return 0 for a pass, and more for what is worse."""
        return list(Outcome).index(self)


class Verdict(Record):
    """The answer of one gate, with everything that it was decided on."""

    gate: str = Field(description="What was asked, such as 'accuracy' or 'parity at batch 3'.")
    outcome: Outcome = Field(description="Pass, or why not.")
    message: str = Field(description="One line for a person.")
    metric: str | None = Field(default=None, description="The metric that was compared.")
    value: float | None = Field(default=None, description="Its raw value, in base units.")
    comparison: Comparison | None = Field(default=None, description="How it was compared.")
    bound: float | None = Field(default=None, description="The bound, in base units.")
    subject: str | None = Field(default=None, description="Digest of the artifact that was judged.")
    source: str | None = Field(default=None, description="Digest of the report that the value is from.")


def compare(
    gate: str,
    value: float | None,
    comparison: Comparison,
    bound: float,
    *,
    metric: str | None = None,
    subject: str | None = None,
    source: str | None = None,
    show: Callable[[float], str] = "{:.6g}".format,
) -> Verdict:
    """Judge one number against one bound: a missing value, NaN or infinity on either side is an ERROR, never a pass."""
    name = metric or gate
    if value is None:
        outcome, message = Outcome.ERROR, f"{name} is missing, {comparison} {show(bound)} was asked for"
    elif not math.isfinite(value) or not math.isfinite(bound):
        outcome, message = Outcome.ERROR, f"{name} is {value}, {comparison} {bound} cannot be decided"
    elif _COMPARE[comparison](value, bound):
        outcome, message = Outcome.PASS, f"{name} {show(value)} {comparison} {show(bound)}"
    else:
        outcome, message = Outcome.FAIL, f"{name} {show(value)} is not {comparison} {show(bound)}"
    return Verdict(
        gate=gate, outcome=outcome, message=message, metric=name, value=value, comparison=comparison,
        bound=bound, subject=subject, source=source,
    )  # fmt: skip


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst outcome; of none at all it is PASS, so ask whether there had to be one."""
    return max(outcomes, key=lambda outcome: outcome.badness, default=Outcome.PASS)
