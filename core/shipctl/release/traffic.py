"""What a door lets through: which revision answers how many of the requests, and what becomes of their copies."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from shipctl.records import Record

WHOLE = 100
"""Weights are percent and add up to this."""
PREVIEW_HEADER = "x-shipctl-preview"
"""A request with this header reaches the revision behind the preview door, whatever the weights are."""


def checked_name(name: str) -> str:
    """Return the name of a header or a cookie.

    :raises ValueError: if it is none (RFC 9110, section 5.6.2, and RFC 6265 allow the same characters)
    """
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is None:
        message = f"{name!r} is not the name of a header or a cookie; write one such as x-user-id"
        raise ValueError(message)
    return name


class Sticky(Record):
    """By what a request is told from others, so that whoever sent it is answered by one revision from then on."""

    kind: Literal["header", "cookie"] = Field(description="Where its value stands.")
    name: str = Field(min_length=1, description="The header's or the cookie's name, such as x-user-id.")

    @field_validator("name")
    @classmethod
    def _can_be_sent(cls, name: str) -> str:
        return checked_name(name)


class Segment(Record):
    """Requests that always reach one revision, whatever the weights are."""

    name: str = Field(min_length=1, description="What the segment is called in reports.")
    header: str = Field(min_length=1, description="The header that tells them.")
    values: tuple[str, ...] = Field(min_length=1, description="Its values, exactly.")
    revision: str | None = Field(
        default=None, description="Who answers them; None for the weights, counted by themselves."
    )

    @field_validator("header")
    @classmethod
    def _can_be_sent(cls, header: str) -> str:
        return checked_name(header)


class Mirror(Record):
    """Copies of requests for a comparator; whoever sent them hears nothing of it."""

    percent: float = Field(gt=0, le=WHOLE, description="Share of the requests that are copied.")
    candidate: str = Field(
        description="The revision whose answers are compared with those of the stable one."
    )


class Traffic(Record):
    """How a door distributes requests. Weights name revisions, never colours, so a promotion relabels nothing."""

    weights: dict[str, int] = Field(
        default_factory=dict,
        description="Revision to percent of the requests; they add up to 100. Empty: the door is closed.",
    )
    fallback: str | None = Field(
        default=None,
        description="The stable revision: it answers where another one cannot be reached, and never the other way.",
    )
    preview: str | None = Field(default=None, description="The revision behind the preview door.")
    mirror: Mirror | None = Field(default=None, description="Who gets copies of requests.")
    sticky: Sticky | None = Field(default=None, description="By what requests stay with one revision.")
    segments: tuple[Segment, ...] = Field(
        default=(), description="Requests that are told apart, first match first."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.weights and sum(self.weights.values()) != WHOLE:
            message = f"weights add up to {sum(self.weights.values())}, not to {WHOLE}"
            raise ValueError(message)
        if any(weight < 0 for weight in self.weights.values()):
            message = f"a weight is below 0: {self.weights}"
            raise ValueError(message)
        return self

    @property
    def revisions(self) -> frozenset[str]:
        """All revisions that a request can reach, by weight, segment, preview, copy or as the fallback."""
        named = {name for name, weight in self.weights.items() if weight}
        named |= {segment.revision for segment in self.segments if segment.revision is not None}
        named |= {name for name in (self.fallback, self.preview) if name is not None}
        return frozenset(named | ({self.mirror.candidate} if self.mirror is not None else set()))

    def weight(self, revision: str) -> int:
        """Return the percentage that a revision gets."""
        return self.weights.get(revision, 0)

    @classmethod
    def only(cls, revision: str | None) -> Traffic:
        """Return the traffic of one revision that answers everything, or of a closed door."""
        return cls() if revision is None else cls(weights={revision: WHOLE}, fallback=revision)
