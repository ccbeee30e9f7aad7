"""What shipctl remembers of an engine's object, on the object itself: which revision is which of its pod templates.

An engine knows hashes and revisions of its own. The note is written with the same call as what it is about, so it is
never about anything else; it is read by whoever follows, on any machine.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl.release.target import Replicas
from shipctl_plugins._kubernetes.api.same import covers
from shipctl_plugins._kubernetes.objects import named
from shipctl_plugins._kubernetes.state import Entry

Object = dict[str, Any]

ANNOTATION = "shipctl.dev/engine"
EDITED = "an edit of its pod template"
"""Stands for a revision that nobody of ours has made."""


class Kept(Record):
    """One revision, and what the engine is told to run for it."""

    entry: Entry = Field(description="What it is.")
    runs: dict[str, Any] = Field(description="Its pod template, or its predictor.")


class Stride(Record):
    """One stretch of a way that shipctl goes for an engine without steps."""

    weight: int = Field(ge=0, le=100, description="Percent of the requests.")
    pause: float = Field(default=0.0, ge=0, description="Seconds that it lasts at least.")
    asks: str = Field(default="", description="What people have to approve before it ends.")


class Notes(Record):
    """Everything that is remembered on one object."""

    current: str | None = Field(default=None, description="What the engine was told of last.")
    stable: str | None = Field(
        default=None, description="What it held for stable then; None before the first."
    )
    mark: str = Field(default="", description="What the engine calls that one.")
    newest: str = Field(
        default="", description="The newest thing that the engine had made then, as it calls it."
    )
    fields: tuple[str, ...] = Field(default=(), description="What of the object's spec was applied.")
    asks: dict[str, str] = Field(
        default_factory=dict, description="The engine's step to what people approve there."
    )
    strides: tuple[Stride, ...] = Field(default=(), description="The way, for an engine without steps.")
    index: int = Field(default=0, ge=0, description="Which of them.")
    since: float = Field(default=0.0, description="When that was begun, seconds since the epoch.")
    revisions: dict[str, Kept] = Field(default_factory=dict, description="Those that are current or stable.")

    def kept(self, revision: str | None) -> Kept | None:
        """Return what is remembered of a revision."""
        return self.revisions.get(revision) if revision is not None else None

    def live(self, runs: Object) -> str:
        """Return which revision ``runs``, the live pod template or predictor, is; :data:`EDITED` for none of ours."""
        known = [name for name in (self.current, *self.revisions) if name is not None]
        live = {"metadata": {}, "runs": runs}
        found = (
            name
            for name in known
            if name in self.revisions and covers(live, {"runs": self.revisions[name].runs})
        )
        return next(found, EDITED)

    def told(self, kept: Kept, stable: str | None, **changes: Any) -> Notes:
        """Return the notes once the engine is told of a revision while it holds ``stable`` for stable."""
        known = {**self.revisions, kept.entry.revision: kept}
        needed = {kept.entry.revision, stable}
        revisions = {name: item for name, item in known.items() if name in needed}
        fresh: dict[str, Any] = {
            "current": kept.entry.revision,
            "stable": stable,
            "strides": (),
            "index": 0,
            "asks": {},
        }
        return self.model_copy(update={**fresh, **changes, "revisions": revisions})

    def text(self) -> str:
        """Return it as an annotation has it."""
        return self.model_dump_json(exclude_defaults=True)


def notes_of(found: Object | None) -> Notes:
    """Return what is remembered on an object; nothing where it is not there.

    :raises StageError: if somebody else has made it, or the note is damaged
    """
    if found is None:
        return Notes()
    text = (found["metadata"].get("annotations") or {}).get(ANNOTATION)
    if text is None:
        message = f"{named(found)} is not shipctl's; remove it, or set another `name` for the target"
        raise StageError(message)
    try:
        return Notes.model_validate_json(text)
    except ValidationError as exc:
        message = (
            f"the annotation {ANNOTATION} of {named(found)} is damaged ({exc.error_count()} errors); restore it, or "
            "`shipctl down` and release anew"
        )
        raise StageError(message) from exc


def replicas_of(kept: Kept | None, wanted: int, ready: int, problem: str = "") -> Replicas | None:
    """Return the replicas of a revision, as :class:`Followed` has them."""
    if kept is None:
        return None
    return Replicas(
        version=kept.entry.version, wanted=wanted, ready=max(0, min(ready, wanted)), problem=problem or None
    )


def instant(text: str) -> float:
    """Return a time as Kubernetes writes it (RFC 3339), in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()
