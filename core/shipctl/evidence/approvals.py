"""Approvals of releases: what is asked, what people said to it, and what of that counts.

What is approved is one change of one target: the digest of a :class:`ReleasePlan`, in which the revision that is to be
released and the one that serves now stand. Everything said about it is a log of its own in the store
(``approvals/<digest>``, see :mod:`shipctl.store.log`): requests, approvals, rejections, and that it is over. What is
said after that begins anew, so that an approval is used once.

An approval is a :class:`Statement`. An approver whose keys the policy knows signs it (DSSE); of one without keys, the
name of the account counts that the log's entry was written by.

``requests/<pipeline>/<place>.json`` holds the newest request per release stage, target and environment, so that it can
be found by whoever has not made the plan. It is a sign and no proof: what counts stands in the log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from shipctl.errors import SpecError, StoreError
from shipctl.evidence.dsse import Envelope, fault_of
from shipctl.records import Record, canonical_json, digest_of
from shipctl.store.log import Actor, Heads, Log, LogEntry
from shipctl.store.objects import ObjectStore

if TYPE_CHECKING:
    from shipctl.evidence.keys import SigningKey

PREFIX = "approvals"
REQUESTS = "requests"
PAYLOAD_TYPE = "application/vnd.shipctl.approval+json"
RELEASE = "release"
"""What is asked before a release begins."""
SHORT = 12
"""Digits of a digest that are shown, and the fewest that name a release."""

REQUESTED, ENDED = "request", "ended"
_PAST = {"approve": "approved", "reject": "rejected"}
_WHAT = r"release|promote|step [0-9]{1,4}"


class ReleasePlan(Record):
    """One change of one target. Its digest is what is approved."""

    pipeline: str = Field(description="metadata.name.")
    version: str = Field(description="The semantic version that is to be released.")
    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(description="The environment that is released to; None for none.")
    revision: str = Field(description="Digest of what is to be released.")
    stable: str | None = Field(description="The revision that serves now; None for nothing.")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def place(self) -> str:
        """Where it is to happen, as one word for a key."""
        return digest_of([self.stage, self.target, self.environment])[:32]

    def __str__(self) -> str:
        where = f"{self.target} in {self.environment}" if self.environment else self.target
        return f"{self.pipeline} {self.version} on {where}"


class Request(Record):
    """That a release waits for people."""

    plan: ReleasePlan
    asks: tuple[str, ...] = Field(min_length=1, description="What is to be approved.")
    roles: tuple[str, ...] = Field(description="Roles that may approve it; none named means any.")
    authors: tuple[str, ...] = Field(
        description="Names of the accounts that began or went on with the release."
    )
    by: Actor = Field(description="Who waits.")
    run: str = Field(description="The run that waits.")
    at: float = Field(description="Seconds since the epoch.")
    preview: tuple[str, ...] = Field(default=(), description="What would change, a line each.")


class Statement(Record):
    """What one approver says."""

    release: str = Field(pattern=r"^[0-9a-f]{64}$", description="Digest of the release plan.")
    what: str = Field(
        pattern=f"^({_WHAT})$", description="`release`, `promote`, or `step N` for a pause of that index."
    )
    decision: Literal["approve", "reject"]
    approver: str = Field(min_length=1, description="Name in the policy.")
    role: str = Field(min_length=1, description="The role in which it is said.")
    reason: str = Field(default="", description="Why.")
    at: float = Field(allow_inf_nan=False, description="When it was said, seconds since the epoch.")
    expires: float | None = Field(
        default=None, allow_inf_nan=False, description="Until when it holds; None for no end of its own."
    )

    def ends(self, lasts: float | None) -> float | None:
        """Return when it ceases to hold where approvals last ``lasts`` seconds; None for never."""
        ends = [
            item for item in (self.expires, None if lasts is None else self.at + lasts) if item is not None
        ]
        return min(ends, default=None)

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{_PAST[self.decision]} by {self.approver} ({self.role}){why}"


class ApprovalLog:
    """All that was said about one release plan."""

    def __init__(self, objects: ObjectStore, digest: str, *, heads: Heads | None = None) -> None:
        """``heads`` notices a log that was cut (see :class:`Log`)."""
        self.digest = digest
        self._objects = objects
        self._log = Log(objects, f"{PREFIX}/{digest}", heads=heads)

    def head(self) -> str:
        """Return what tells one state of the log from another, for little.

        :raises StoreError: if it cannot be read
        """
        entry = self._log.head()
        return entry.digest if entry is not None else ""

    def entries(self) -> list[LogEntry]:
        """Return what was said since the last release of this plan was over, verified.

        :raises StoreError: if the log cannot be read, or was tampered with
        """
        entries = self._log.entries()
        last = max((index for index, entry in enumerate(entries) if entry.action == ENDED), default=-1)
        return entries[last + 1 :]

    def ask(self, request: Request) -> bool:
        """Write down a request, unless the same one is there; return whether it is new.

        :raises StoreError: if it cannot be written
        """
        mine = (request.asks, request.roles, set(request.authors))
        before = [item for entry in self.entries() if (item := request_of(entry)) is not None]
        new = all((item.asks, item.roles, set(item.authors)) != mine for item in before)
        if new:
            details = {"request": request.model_dump(mode="json")}
            self._log.append(REQUESTED, _subject(request.plan), details)
        key = f"{REQUESTS}/{request.plan.pipeline}/{request.plan.place}.json"
        self._objects.write(key, canonical_json(request.model_dump(mode="json")))
        return new

    def say(self, statement: Statement, plan: ReleasePlan, key: SigningKey | None) -> LogEntry:
        """Write down what somebody says, signed if there is a key.

        :raises StoreError: if it cannot be written
        :raises SpecError: if the key cannot be used
        """
        body = statement.model_dump(mode="json")
        details: dict[str, Any] = {"statement": body}
        if key is not None:
            envelope = Envelope.signed(canonical_json(body), key, PAYLOAD_TYPE)
            details = {"envelope": envelope.model_dump(mode="json")}
        return self._log.append(statement.decision, _subject(plan), details)

    def end(self, plan: ReleasePlan, phase: str) -> None:
        """Write down that the release is over; what was said before does not count for another one.

        :raises StoreError: if it cannot be written
        """
        if self.entries():
            self._log.append(ENDED, _subject(plan), {"phase": phase})

    def request(self) -> Request | None:
        """Return the newest request.

        :raises StoreError: as :meth:`entries`
        """
        found = [item for entry in self.entries() if (item := request_of(entry)) is not None]
        return found[-1] if found else None


def pending(objects: ObjectStore, pipeline: str) -> list[Request]:
    """Return the newest request of every stage, target and environment of a pipeline, oldest first.

    :raises StoreError: if the store cannot be read, or what stands there is no request
    """
    found = []
    for info in objects.list(f"{REQUESTS}/{pipeline}/"):
        body = objects.read(info.key)
        if body is None:  # ended meanwhile
            continue
        try:
            request = Request.model_validate_json(body)
        except ValidationError as exc:
            message = f"{info.key} in {objects.uri} is no request ({fault_of(exc)}); apply again, which writes it anew"
            raise StoreError(message) from None
        found.append(request)
    return sorted(found, key=lambda item: item.at)


def forget(objects: ObjectStore, plan: ReleasePlan) -> None:
    """Take away the request that waits at the place of ``plan``, if there is one.

    :raises StoreError: if the store cannot be written to
    """
    key = f"{REQUESTS}/{plan.pipeline}/{plan.place}.json"
    if objects.stat(key) is not None:
        objects.delete([key])


def chosen(requests: Sequence[Request], release: str | None, environment: str | None) -> Request:
    """Return the one request that is meant, by the beginning of the release's digest where there are several.

    :raises SpecError: if there is none, or more than one
    """
    if release is not None and not re.fullmatch(f"[0-9a-f]{{{SHORT},64}}", release):
        message = f"{release!r} is no digest of a release; give {SHORT} digits of it at least: `shipctl approve --list`"
        raise SpecError(message)
    fitting = [item for item in requests if release is None or item.plan.digest.startswith(release)]
    if len(fitting) == 1:
        return fitting[0]
    where = f" in {environment}" if environment else ""
    if not fitting:
        what = f"no release {release} waits" if release else "no release waits"
        others = ", ".join(f"{item.plan.digest[:SHORT]} ({item.plan})" for item in requests)
        hint = f"these do: {others}" if others else "`shipctl apply` asks for one"
        message = f"{what} for an approval{where}; {hint}"
        raise SpecError(message)
    lines = "".join(
        f"\n  {item.plan.digest[:SHORT]}  {item.plan}: {', '.join(item.asks)}" for item in fitting
    )
    message = f"several releases wait{where}; say which with `--release`:{lines}"
    raise SpecError(message)


def request_of(entry: LogEntry) -> Request | None:
    """Return the request that an entry is; None for another one.

    :raises StoreError: if it cannot be read
    """
    if entry.action != REQUESTED:
        return None
    try:
        return Request.model_validate(entry.details.get("request"))
    except ValidationError as exc:
        why = fault_of(exc)
        message = (
            f"entry {entry.number} of an approval's log is no request ({why}); somebody changed the store"
        )
        raise StoreError(message) from None


def authors_of(entries: Sequence[LogEntry]) -> frozenset[str]:
    """Return the names of all who asked."""
    found = (item for entry in entries if (item := request_of(entry)) is not None)
    return frozenset(name for request in found for name in request.authors)


def moment(when: float) -> str:
    """Return a time as a person reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _subject(plan: ReleasePlan) -> str:
    return f"{plan.pipeline}@{plan.version}"
