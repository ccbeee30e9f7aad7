"""What is asked of an API server, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same call may succeed a little later."""
ERROR = 400
"""Statuses from here on are errors."""


@dataclass(frozen=True)
class Request:
    """One call."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    """Whether it may be made again when it is not known whether it was done."""
    passing: frozenset[int] = PASSING
    """Statuses after which it is made again."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    doubtful: bool = False
    """Whether an attempt before it may have been done, without an answer of its own."""

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self.status >= ERROR

    def json(self) -> dict[str, Any]:
        """Return the object in it; {} where there is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class RefusedError(Exception):
    """An error answer to what should have been a stream."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer
