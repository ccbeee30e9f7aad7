"""Release records: what was released where, when and how it went. They live with the target.

One JSON file per pipeline and stage, replaced atomically; every write says which version of the file it
was made from, so that of two writers one is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError

from shipctl.errors import StoreError
from shipctl.evidence.admission import Admission
from shipctl.records import Record
from shipctl.stages.base import Phase
from shipctl.store.files import flocked, write_atomic

LOCK_SECONDS = 5.0
"""How long a file's lock is waited for."""
KEEP = 200
"""Finished records that a file keeps, beside what serves and what it can go back to; older ones are in the journal."""


class ReleaseRecord(Record):
    """One release of one revision, or one rollback to it."""

    number: int = Field(ge=1, description="Counts the releases of this pipeline's stage on this target.")
    revision: str = Field(description="Digest of inputs and options.")
    version: str = Field(description="Semantic version of the spec that it was made from.")
    intent: Literal["apply", "rollback"] = Field(description="Whether it was applied or gone back to.")
    run: str = Field(description="The run that began it.")
    user: str = Field(description="Who began it.")
    phase: Phase = Field(description="Where it stands.")
    message: str = Field(default="", description="What the last step said.")
    state: dict[str, Any] = Field(default_factory=dict, description="What the stage remembers.")
    inputs: dict[str, list[dict[str, Any]]] = Field(
        default_factory=dict, description="Manifests of the inputs, by name."
    )
    started: float = Field(description="Seconds since the epoch.")
    updated: float = Field(description="Seconds since the epoch.")
    admission: Admission | None = Field(
        default=None,
        description="The signed package that the policy let through; None where it asks for none.",
    )
    error: bool = Field(default=False, description="Whether it was given up for an error, not by a gate.")
    rolled_back: bool = Field(
        default=False, description="Whether it was left by a rollback after it was done."
    )
    driver: str = Field(
        default="",
        description="The process that takes its steps (:func:`shipctl.processes.own_name`); empty while none does.",
    )

    @property
    def serves(self) -> bool:
        """Whether it was done and made to serve: a test that passed may not have been meant to be promoted."""
        only_tested = self.state.get("committed") is False and self.state.get("previous") not in {
            None,
            self.revision,
        }
        return self.phase is Phase.DONE and not only_tested

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of all inputs."""
        return [manifest for bound in self.inputs.values() for manifest in bound]


class AbortWish(Record):
    """That somebody wants a release aborted by the process that drives it, on whatever machine that is."""

    number: int = Field(
        ge=1, description="The release that is meant, so that one left behind aborts no other."
    )
    reason: str = Field(description="Who wants that, and why.")
    newer: str | None = Field(
        default=None,
        description="The version that is to be released instead. What is promoted already, and only being watched, is "
        "not taken back for that; its watch ends.",
    )


class Records(Record):
    """All records of one pipeline's stage on one target, oldest first."""

    records: tuple[ReleaseRecord, ...] = Field(default=(), description="Oldest first.")
    abort: AbortWish | None = Field(
        default=None, description="What is wanted of whoever drives the last one."
    )

    @property
    def latest(self) -> ReleaseRecord | None:
        """The last one begun."""
        return self.records[-1] if self.records else None

    @property
    def stable(self) -> ReleaseRecord | None:
        """What serves: the last one that was done and not rolled back."""
        return next((item for item in reversed(self.records) if item.serves and not item.rolled_back), None)

    def was_rolled_back(self, revision: str) -> ReleaseRecord | None:
        """Return the last record of a revision if that ended in a rollback."""
        last = next((item for item in reversed(self.records) if item.revision == revision), None)
        return last if last is not None and (last.rolled_back or last.phase is Phase.ROLLED_BACK) else None

    def way_back(self) -> list[ReleaseRecord]:
        """Return what a rollback may go to, the nearest first: done once, never rolled back, not serving."""
        stable = self.stable
        bad = {item.revision for item in self.records if item.rolled_back or item.phase is Phase.ROLLED_BACK}
        bad |= {stable.revision} if stable is not None else set()
        found: dict[str, ReleaseRecord] = {}
        for item in reversed(self.records):
            if item.serves and item.revision not in bad:
                found.setdefault(item.revision, item)
        return list(found.values())

    def was_only_tested(self, revision: str) -> ReleaseRecord | None:
        """Return the last record of a revision if that passed a test, which was all that was wanted of it."""
        last = next((item for item in reversed(self.records) if item.revision == revision), None)
        return last if last is not None and last.phase is Phase.DONE and not last.serves else None

    def put(self, record: ReleaseRecord) -> Records:
        """Return the records with one added or replaced by its number."""
        others = [item for item in self.records if item.number != record.number]
        records = Records(records=tuple(sorted([*others, record], key=lambda item: item.number)))
        stable = records.stable
        needed = {item.number for item in (stable, *records.way_back()[:1]) if item is not None}
        dropped = {item.number for item in records.records[:-KEEP]} - needed
        kept = tuple(item for item in records.records if item.number not in dropped)
        over = record.phase.is_final or (self.abort is not None and self.abort.number < record.number)
        return Records(records=kept, abort=None if over else self.abort)


class RecordStore(Protocol):
    """Where the records of one stage on one target are kept."""

    def load(self) -> tuple[Records, str]:
        """Return the records and an etag for :meth:`save`.

        :raises StoreError: if they cannot be read
        """

    def save(self, records: Records, etag: str) -> str:
        """Replace the records that were loaded with ``etag`` and return the new etag.

        :raises StoreError: if somebody else has written meanwhile, or they cannot be written
        """


class FileRecords:
    """Records in a file below the target's folder."""

    def __init__(self, folder: Path, pipeline: str, stage: str) -> None:
        self._path = folder / "releases" / pipeline / f"{stage}.json"

    def load(self) -> tuple[Records, str]:
        """Return the records and an etag for :meth:`save`.

        :raises StoreError: if the file is damaged
        """
        try:
            body = self._path.read_bytes()
        except FileNotFoundError:
            return Records(), ""
        try:
            return Records.model_validate_json(body), hashlib.sha256(body).hexdigest()
        except ValidationError as exc:
            message = f"{self._path} is damaged ({exc.error_count()} errors); restore it, or move it away"
            raise StoreError(message) from exc

    def save(self, records: Records, etag: str) -> str:
        """Replace the records that were loaded with ``etag`` and return the new etag.

        :raises StoreError: if somebody else has written meanwhile
        """
        body = records.model_dump_json(indent=1).encode()
        with self._lock():
            if self.load()[1] != etag:
                advice = "see `shipctl status`, then run the same command again"
                raise StoreError(f"{self._path} was changed by another run; {advice}")
            write_atomic(self._path, body)
        return hashlib.sha256(body).hexdigest()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep others from writing between a look and a write."""
        with ExitStack() as stack:
            try:
                stack.enter_context(flocked(self._path.with_suffix(".lock"), LOCK_SECONDS))
            except TimeoutError:
                message = f"another process writes {self._path} and does not finish; look for it, and end it"
                raise StoreError(message) from None
            yield
