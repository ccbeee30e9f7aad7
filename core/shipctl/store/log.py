"""Append-only logs in a store: numbered objects, each of which names the digest of the one before it.

    <prefix>/00000001.json, <prefix>/00000002.json, …

An entry is written with :meth:`ObjectStore.create`, so of two writers of one number exactly one wins and the other
takes the next; no store has to be able to compare and swap. An entry may carry the whole state after it, so that the
newest one answers what is true now and all of them together how it came about.

The chain shows an entry that was altered, exchanged or taken away between others. It cannot show that entries are
missing at its end, because what is left is a chain as well. For that the digest of a head has to be kept elsewhere:
:class:`Heads` remembers the ones seen on this machine, and :meth:`Log.verify` takes one that was noted anywhere.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pydantic import Field, PrivateAttr, ValidationError

from shipctl.errors import SpecError, StoreError
from shipctl.records import Record, canonical_json
from shipctl.store.files import write_atomic
from shipctl.store.objects import ObjectStore

AUDIT = "audit"
"""Prefix of the log of everything that anybody did to what the store holds."""
READERS = 16
"""Small objects that are read at a time."""
MIN_DIGITS = 12
"""Digits of a digest that are enough to name a head."""

State: TypeAlias = dict[str, Any]
Fold: TypeAlias = Callable[[State], State]

_BLOCK = 1000
"""Entries whose names share all digits but the last three: a store lists them in one page."""
_NAME = re.compile(r"([0-9]{8})\.json")


class Actor(Record):
    """Who did something, as far as the machine can say. Not proof: that is what signatures are for."""

    user: str = Field(description="Name of the account.")
    host: str = Field(description="Name of the machine.")
    ci: str | None = Field(default=None, description="In CI, who started which job: `ada@https://…/runs/7`.")

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> Actor:
        """Return who runs this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container whose user id has no name
            user = "unknown"
        return cls(user=user, host=socket.gethostname(), ci=_ci(environ))

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.ci is None else self.ci


def _ci(environ: Mapping[str, str]) -> str | None:
    if environ.get("GITHUB_ACTIONS"):
        who = environ.get("GITHUB_ACTOR", "")
        server, repository = environ.get("GITHUB_SERVER_URL", ""), environ.get("GITHUB_REPOSITORY", "")
        where = f"{server}/{repository}/actions/runs/{environ.get('GITHUB_RUN_ID', '')}"
    elif environ.get("GITLAB_CI"):
        who, where = environ.get("GITLAB_USER_LOGIN", ""), environ.get("CI_JOB_URL", "")
    elif environ.get("BUILD_URL"):  # Jenkins
        who, where = environ.get("BUILD_USER_ID", ""), environ["BUILD_URL"]
    else:
        return None
    return f"{who or 'unknown'}@{where}"


class LogEntry(Record):
    """One entry of a log."""

    number: int = Field(ge=1, description="Counts the entries of the log from 1.")
    previous: str = Field(description="SHA-256 (hex) of the previous entry's bytes, empty for the first.")
    time: float = Field(description="When it was written by the writer's clock, in seconds since the epoch.")
    actor: Actor = Field(description="Who wrote it.")
    action: str = Field(description="What was done, such as `register` or `alias`.")
    subject: str = Field(description="What it was done to, such as `digits@1.0.0`.")
    details: dict[str, Any] = Field(default_factory=dict, description="What was done in particular.")
    state: dict[str, Any] = Field(default_factory=dict, description="What is true after it.")
    nonce: str = Field(description="Random, so that no two writers make the same bytes.")

    _digest: str = PrivateAttr(default="")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the entry's bytes in the store, empty before it is there."""
        return self._digest

    def encoded(self) -> bytes:
        """Return the bytes to store."""
        # by way of text, where NaN and infinity become words, which JSON has no numbers for
        return canonical_json(json.loads(self.model_dump_json()))

    @classmethod
    def decoded(cls, data: bytes) -> LogEntry:
        """Read an entry from the bytes that were stored.

        :raises ValidationError: if they are none
        """
        entry = cls.model_validate_json(data)
        entry._digest = hashlib.sha256(data).hexdigest()  # noqa: SLF001  (our own private attribute)
        return entry


class Head(NamedTuple):
    """The end of a log: number and digest (SHA-256, hex) of its newest entry."""

    number: int
    digest: str


class Heads:
    """The heads of logs that were seen on this machine, in one JSON file: store's URI, prefix, head.

    Logs only grow. One that ends before a head that was seen, or has another entry there, was cut or rewritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, uri: str, prefix: str) -> Head | None:
        """Return the newest head that was seen of a log."""
        found = self._read().get(uri, {}).get(prefix)
        return None if found is None else Head(*found)

    def remember(self, uri: str, prefix: str, head: Head) -> None:
        """Keep a head, unless a newer one of the same log is kept. Two processes at once: one of them is kept."""
        known = self._read()
        kept = known.get(uri, {}).get(prefix)
        if kept is not None and kept[0] >= head.number:
            return
        known.setdefault(uri, {})[prefix] = [*head]
        with suppress(OSError):  # a folder that cannot be written to does not keep anybody from reading a log
            write_atomic(self.path, json.dumps(known, indent=1, sort_keys=True).encode(), durable=False)

    def _read(self) -> dict[str, dict[str, list[Any]]]:
        try:
            found = json.loads(self.path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as exc:
            message = f"cannot read {self.path}, which remembers the ends of logs: {exc}; remove it"
            raise StoreError(message) from exc
        return found if isinstance(found, dict) else {}


class Log:
    """One log of a store. Safe for any number of writers in any number of processes."""

    def __init__(self, objects: ObjectStore, prefix: str, *, heads: Heads | None = None) -> None:
        """``heads`` remembers the ends of logs on this machine and notices that one was cut."""
        self.objects = objects
        self.prefix = prefix
        self._heads = heads

    def __str__(self) -> str:
        return f"log {self.prefix} of {self.objects.uri}"

    def key(self, number: int) -> str:
        """Return the key of an entry."""
        return f"{self.prefix}/{number:08d}.json"

    # -- writing -------------------------------------------------------------------------------------------

    def append(
        self,
        action: str,
        subject: str,
        details: Mapping[str, Any],
        *,
        fold: Fold | None = None,
        now: Callable[[], float] = time.time,
    ) -> LogEntry:
        """Add an entry and return it.

        ``fold`` makes the state after it from the newest one (``{}`` before the first entry), and is called again
        when another writer was first; what it raises goes through, and nothing is written. Without it the state
        stays as it is. ``details`` and states are JSON; details are read after ``fold``, which may fill them in.

        :raises StoreError: if the log is broken at its end
        """
        head = self.head()
        while True:
            state = dict(head.state) if head is not None else {}
            after = state if fold is None else fold(state)
            entry = LogEntry(
                number=1 if head is None else head.number + 1,
                previous="" if head is None else head.digest,
                time=now(),
                actor=Actor.current(),
                action=action,
                subject=subject,
                details=dict(details),
                state=after,
                nonce=secrets.token_hex(8),
            )
            data = entry.encoded()
            if self.objects.create(self.key(entry.number), data):
                written = LogEntry.decoded(data)  # as everybody else reads it
                self._remember(written)
                return written
            head = self._follower(head, entry.number)

    def _follower(self, head: LogEntry | None, number: int) -> LogEntry:
        """Return the entry that another writer put after ``head``."""
        entry = self.entry(number)
        if entry.previous != ("" if head is None else head.digest):
            raise self._unlinked(number, entry.previous, "" if head is None else head.digest)
        return entry

    # -- reading -------------------------------------------------------------------------------------------

    def head(self) -> LogEntry | None:
        """Return the newest entry, None for an empty log.

        :raises StoreError: if it cannot be read, or the log does not hold a head any more that was seen before
        """
        number = self._last()
        return self.head_at(number)

    def head_at(self, number: int) -> LogEntry | None:
        """Return the newest entry for who knows from a listing that its number is ``number`` (0: there is none).

        :raises StoreError: as :meth:`head`
        """
        entry = self.entry(number) if number else None
        self._compare(entry)
        if entry is not None:
            self._remember(entry)
        return entry

    def entry(self, number: int) -> LogEntry:
        """Return one entry by itself; whether it belongs to the chain is for :meth:`entries` to say.

        :raises StoreError: if there is none, or it is no entry of that number
        """
        data = self.objects.read(self.key(number))
        if data is None:
            message = f"entry {number} of {self} is missing; {_TAMPERED}"
            raise StoreError(message)
        try:
            entry = LogEntry.decoded(data)
        except ValidationError:
            message = (
                f"entry {number} of {self} cannot be read: it is damaged, or was written by a newer version of "
                f"shipctl; {_TAMPERED}"
            )
            raise StoreError(message) from None
        if entry.number != number:
            message = (
                f"entry {number} of {self} says that it is number {entry.number}: it was moved; {_TAMPERED}"
            )
            raise StoreError(message)
        return entry

    def entries(self) -> list[LogEntry]:
        """Return all entries, oldest first, after verifying the chain.

        :raises StoreError: that names the entry where it is broken
        """
        return self.verify()

    def verify(self, *, expect_head: str | None = None) -> list[LogEntry]:
        """Return all entries, oldest first, after verifying that none was altered, exchanged or taken away.

        :param expect_head: digest of an entry that was once the head, or its first digits (12 at least), as it was
            noted outside of the store: without one the end of the log cannot be vouched for
        :raises StoreError: that says what is wrong, and at which entry
        """
        numbers = self._numbers(self.objects.list(f"{self.prefix}/"))
        numbers = self._check_gaps(numbers)
        with ThreadPoolExecutor(READERS) as threads:
            entries = list(threads.map(self.entry, numbers))
        self._check_chain(entries)
        self._compare(entries[-1] if entries else None, entries)
        if expect_head is not None:
            self._check_anchor(entries, expect_head)
        if entries:
            self._remember(entries[-1])
        return entries

    def _last(self) -> int:
        """Return the number of the newest entry, 0 if there is none.

        Numbers have no gaps, so the block of the newest is found by doubling and halving, and only that is listed.
        """
        low, high = 0, 1
        while self._has(high * _BLOCK):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if self._has(middle * _BLOCK):
                low = middle
            else:
                high = middle
        numbers = self._numbers(self.objects.list(f"{self.prefix}/{low:05d}"))
        numbers = self._check_gaps(numbers, first=max(1, low * _BLOCK))
        return numbers[-1] if numbers else 0

    def _has(self, number: int) -> bool:
        return self.objects.stat(self.key(number)) is not None

    def _numbers(self, found: Iterable[Any]) -> list[int]:
        matches = (_NAME.fullmatch(info.key.removeprefix(f"{self.prefix}/")) for info in found)
        return sorted(int(match[1]) for match in matches if match)

    # -- what may be wrong ---------------------------------------------------------------------------------

    def _check_gaps(self, numbers: list[int], first: int = 1) -> list[int]:
        """Return the numbers without gaps; a listing may leave out an entry that was written while it was made."""
        whole: list[int] = []
        for number in numbers:
            for expected in range(first + len(whole), number):
                if not self._has(expected):
                    message = f"entry {expected} of {self} is missing, although entry {number} is there; {_TAMPERED}"
                    raise StoreError(message)
                whole.append(expected)
            whole.append(number)
        return whole

    def _check_chain(self, entries: list[LogEntry]) -> None:
        if entries and entries[0].previous:
            message = (
                f"entry 1 of {self} follows another entry, so those before it were taken away; {_TAMPERED}"
            )
            raise StoreError(message)
        for index in range(1, len(entries)):
            before, entry = entries[index - 1], entries[index]
            if entry.previous == before.digest:
                continue
            if index + 1 < len(entries) and entries[index + 1].previous == entry.digest:
                # the next one vouches for this one, so the one before is not what this one followed
                message = (
                    f"entry {before.number} of {self} was altered or exchanged after it was written: entry "
                    f"{entry.number} followed {entry.previous[:12]}…, and it is {before.digest[:12]}… now; {_TAMPERED}"
                )
                raise StoreError(message)
            raise self._unlinked(entry.number, entry.previous, before.digest)

    def _unlinked(self, number: int, previous: str, digest: str) -> StoreError:
        return StoreError(
            f"entry {number} of {self} does not follow entry {number - 1}: it names {previous[:12] or 'none'}… before "
            f"it, and that is {digest[:12] or 'none'}…; one of the two was altered or exchanged; {_TAMPERED}"
        )

    def _check_anchor(self, entries: list[LogEntry], expected: str) -> None:
        wanted = expected.lower().removeprefix("sha256:")
        if len(wanted) < MIN_DIGITS or not re.fullmatch(r"[0-9a-f]{1,64}", wanted):
            message = (
                f"{expected!r} is no digest of a head; give the {MIN_DIGITS} to 64 digits that were noted"
            )
            raise SpecError(message)
        if not any(entry.digest.startswith(wanted) for entry in entries):
            message = (
                f"{self} has no entry {wanted[:12]}…, which was its newest when that was noted: entries were taken "
                f"away at its end, or it was rewritten; {_TAMPERED}"
            )
            raise StoreError(message)

    def _compare(self, head: LogEntry | None, entries: list[LogEntry] | None = None) -> None:
        """Refuse a log that does not hold the newest entry that was seen of it on this machine."""
        seen = self._heads.get(self.objects.uri, self.prefix) if self._heads is not None else None
        if seen is None or self._heads is None:
            return
        shorter = head is None or head.number < seen.number
        # others of this machine may have written more, and remembered it, since the end of the log was read
        if shorter and not self._has(seen.number):
            message = (
                f"{self} ends at entry {0 if head is None else head.number}, and entry {seen.number} was seen here "
                f"before: entries were taken away at its end; {_TAMPERED}. If it was put back on purpose, remove "
                f"{self._heads.path}"
            )
            raise StoreError(message)
        if head is not None and head.number == seen.number:
            there = head
        elif entries is not None and not shorter:
            there = entries[seen.number - 1]
        else:
            there = self.entry(seen.number)
        if there.digest != seen.digest:
            message = (
                f"entry {seen.number} of {self} is {there.digest[:12]}…, and was {seen.digest[:12]}… when it was seen "
                f"here before: the log was rewritten; {_TAMPERED}. If that was on purpose, remove {self._heads.path}"
            )
            raise StoreError(message)

    def _remember(self, head: LogEntry) -> None:
        if self._heads is not None:
            self._heads.remember(self.objects.uri, self.prefix, Head(head.number, head.digest))


_TAMPERED = "somebody changed the store by hand: compare it with a backup"


def audit(objects: ObjectStore, *, heads: Heads | None = None) -> Log:
    """Return the log of who did what to anything that the store holds."""
    return Log(objects, AUDIT, heads=heads)
