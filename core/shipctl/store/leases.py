"""How publications and the garbage collection of a store keep out of each other's way, by two kinds of objects.

    leases/<id>.json   a publication: the digests that it is about to refer to
    gc/lock            the collection that deletes; there is one at a time

A publication may find a file in the store that nothing refers to any more, rely on it, and lose it to a collection
that looked before the new reference was written. So both sides first say what they do and then look at the other:

- a publication writes its lease, and then waits while the lock is there; only then does it ask what the store has;
- a collection writes the lock, and then reads the leases; only then does it list what may be deleted.

The store is strongly consistent, so at least one of the two sees the other: either the collection reads the lease and
keeps the files, or the publication sees the lock and waits until the collection is over.

Both marks run out, so that a killed process blocks nobody for long, and are renewed while their owner lives. Whether
one has run out is told by the store's clock alone: machines may disagree about the time. An owner that was frozen
notices by its own clock, some time before others may count its mark as gone: the collection stops, the publication
begins again. (What remains: a collection that is frozen *between* asking for its lock and sending one request, for
longer than the margin, and thaws. No store can refuse that request.)
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from shipctl.errors import LockedError, StoreError
from shipctl.records import Record, canonical_json
from shipctl.stages.artifacts import FileEntry
from shipctl.store.log import Actor
from shipctl.store.objects import ObjectStore

LEASES = "leases/"
LOCK = "gc/lock"
CLOCK = "gc/clock"
LIFETIME = 900.0
"""Seconds that a lease or a lock holds after it was last written."""
MARGIN = 300.0
"""Seconds before that at which its owner counts on it no longer."""
RENEWAL = 150.0
"""Seconds after which it is written again."""
WAIT = 1200.0
"""Seconds that a publication waits for a collection: longer than a dead one's lock holds."""

_POLL = 2.0
_JOIN = 5.0


class LeaseRecord(Record):
    """`leases/<id>.json`: what a publication is about to refer to."""

    format: Literal["shipctl.dev/lease-v1"] = Field(
        default="shipctl.dev/lease-v1", description="Format and version."
    )
    owner: str = Field(description="Who publishes: user, host and process.")
    lifetime: float = Field(description="Seconds that it holds after it was last written.")
    files: tuple[str, ...] = Field(description="SHA-256 (hex) of files.")
    manifests: tuple[str, ...] = Field(default=(), description="Digests of artifacts.")


class LockRecord(Record):
    """`gc/lock`: the collection that is going on."""

    format: Literal["shipctl.dev/gc-lock-v1"] = Field(
        default="shipctl.dev/gc-lock-v1", description="Format and version."
    )
    id: str = Field(description="Random; tells one collection from another.")
    owner: str = Field(description="Who collects: user, host and process.")
    lifetime: float = Field(description="Seconds that it holds after it was last written.")


def elapsed() -> float:
    """Return seconds that also go on while the machine sleeps, from an arbitrary beginning."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def pause(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def store_clock(objects: ObjectStore) -> float:
    """Return the store's own time, in seconds since the epoch: when it says that an object of now was written."""
    objects.write(CLOCK, b"")
    found = objects.stat(CLOCK)
    if found is None:
        message = f"{objects.uri} does not have what was just written to it ({CLOCK}); use a store that is consistent"
        raise StoreError(message)
    return found.modified


def _owner() -> str:
    return f"{Actor.current()} (process {os.getpid()})"


class _Mark:
    """An object that holds for a while after it was last written, and how long its owner may count on it."""

    def __init__(self, objects: ObjectStore, key: str, record: Record) -> None:
        self.objects = objects
        self.key = key
        self.body = canonical_json(record.model_dump(mode="json"))
        self._written = elapsed()
        self._lapsed = False

    @property
    def holds(self) -> bool:
        """Whether nobody can have counted it as gone since it was first written."""
        if elapsed() - self._written > LIFETIME - MARGIN:
            self._lapsed = True
        return not self._lapsed

    @property
    def due(self) -> bool:
        """Whether it should be written again."""
        return elapsed() - self._written > RENEWAL

    def begin(self) -> None:
        """Take it that the object was written by a request that is sent after this call."""
        self._written = elapsed()

    def renew(self) -> None:
        """Write it again; it has lapsed if that was too late, or came through too late."""
        before = elapsed()
        self.objects.write(self.key, self.body)
        if self.holds:
            self._written = before


class Lease:
    """A publication's claim on files that it may find in the store."""

    def __init__(self, mark: _Mark) -> None:
        self._mark = mark

    @property
    def holds(self) -> bool:
        """Whether the files were protected all the time until now. If not, look again at what is there."""
        return self._mark.holds


@contextmanager
def leased(
    objects: ObjectStore,
    files: Sequence[FileEntry] = (),
    *,
    manifests: Sequence[str] = (),
    wait: float = WAIT,
    log: Callable[[str], None] | None = None,
) -> Iterator[Lease]:
    """Keep files, and the artifacts of these manifests, from being collected while the block runs.

    Whatever is looked up in the store, because a new reference will rely on it, is looked up inside. ``log`` gets a
    line if a collection has to be waited for.

    :raises LockedError: if a collection goes on for longer than ``wait`` seconds
    """
    record = LeaseRecord(
        owner=_owner(),
        lifetime=LIFETIME,
        files=tuple(sorted({entry.sha256 for entry in files})),
        manifests=tuple(sorted(set(manifests))),
    )
    mark = _Mark(objects, f"{LEASES}{secrets.token_hex(16)}.json", record)
    mark.renew()
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(mark, over), name="shipctl-lease", daemon=True)
    renewing.start()
    try:
        _wait_for_collection(objects, wait, log)
        yield Lease(mark)
    finally:
        over.set()
        renewing.join(_JOIN)
        with suppress(StoreError):  # it runs out by itself
            objects.delete([mark.key])


def _renew(mark: _Mark, over: threading.Event) -> None:
    while not over.wait(RENEWAL):
        with suppress(StoreError):  # tried again; whether it came too late is told by `holds`
            mark.renew()


def _wait_for_collection(objects: ObjectStore, wait: float, log: Callable[[str], None] | None) -> None:
    deadline = elapsed() + wait
    told = False
    while (lock := read_lock(objects)) is not None and not lock.ran_out(store_clock(objects)):
        if elapsed() >= deadline:
            message = (
                f"{objects.uri} is being collected by {lock.owner}; when `shipctl gc` is over, run this again"
            )
            raise LockedError(message)
        if log is not None and not told:
            log(f"waiting until {lock.owner} has collected {objects.uri}")
            told = True
        pause(_POLL)


class HeldLock(NamedTuple):
    """The lock as it lies in the store."""

    owner: str
    expires: float
    """By the store's clock."""

    def ran_out(self, now: float) -> bool:
        """Whether its owner is gone, or has stopped, at ``now`` by the store's clock."""
        return now > self.expires


def read_lock(objects: ObjectStore) -> HeldLock | None:
    """Return the collection that is going on, if one is."""
    body = objects.read(LOCK)
    found = objects.stat(LOCK) if body is not None else None
    if body is None or found is None:
        return None
    try:
        record = LockRecord.model_validate_json(body)
    except ValidationError:  # of another version of shipctl
        return HeldLock("another version of shipctl", found.modified + LIFETIME)
    return HeldLock(record.owner, found.modified + record.lifetime)


class CollectorLock:
    """The lock while this process holds it."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        record = LockRecord(id=secrets.token_hex(16), owner=_owner(), lifetime=LIFETIME)
        self._mark = _Mark(objects, LOCK, record)

    def acquire(self) -> float:
        """Take the lock, also one that ran out, and return the store's time at which it was taken.

        :raises LockedError: if another collection holds it
        """
        self._mark.begin()
        if not self._objects.create(LOCK, self._mark.body):
            there = read_lock(self._objects)
            if there is not None and not there.ran_out(store_clock(self._objects)):
                raise self._held(there.owner)
            # Replaced and never removed, so that publications see one lock or the other all the time. Of two that
            # replace it, the second has it.
            self._mark.begin()
            self._objects.write(LOCK, self._mark.body)
        self.check()
        found = self._objects.stat(LOCK)
        if found is None:
            raise self._held("another process")
        return found.modified

    def check(self) -> None:
        """Make sure, before every request that deletes, that the lock is still this one, and renew it.

        :raises LockedError: if another collection has taken it over
        :raises StoreError: if this one was held up for so long that others count it as gone
        """
        if not self._is_ours():
            there = read_lock(self._objects)
            raise self._held("another process" if there is None else there.owner)
        if self._mark.holds and self._mark.due:
            self._mark.renew()
        if not self._mark.holds:
            message = (
                f"this collection of {self._objects.uri} was held up for so long that its lock ran out; "
                "nothing was deleted since then; run it again"
            )
            raise StoreError(message)

    def check_if_due(self) -> None:
        """Do so only when the lock has to be renewed: for long work that deletes nothing."""
        if self._mark.due:
            self.check()

    def release(self) -> None:
        """Give the lock back, if it is still this one."""
        with suppress(StoreError):  # it runs out by itself
            if self._mark.holds and self._is_ours():
                self._objects.delete([LOCK])

    def _is_ours(self) -> bool:
        return self._objects.read(LOCK) == self._mark.body

    def _held(self, owner: str) -> LockedError:
        return LockedError(
            f"{self._objects.uri} is being collected by {owner}; run this again when that is over"
        )
