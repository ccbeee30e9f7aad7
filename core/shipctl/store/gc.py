"""Garbage collection: removes from a store what nothing refers to any more, and nothing else.

What stays: every version in the registry (a retired one for a while, one that an alias names for ever), everything
that a target serves or can go back to, what publications under way have a lease on, results of the last weeks, and
whatever is young. Their manifests are read and the files that these name stay as well. Registry, audit log and
deployments are never touched.

A publication writes its lease and then looks for the lock; a collection writes the lock and then reads the leases: at
least one of the two sees the other (:mod:`shipctl.store.leases` says it in full). All roots are read before anything
is deleted, and one that cannot be read stops the collection. Results go first, then manifests, then files: killed
anywhere, nothing is left that names what is gone.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, get_args

from pydantic import Field

from shipctl.errors import CorruptArtifactError
from shipctl.records import Record
from shipctl.store.depot import BLOBS, MANIFESTS, REPOSITORIES, RESULTS, checked_manifest, manifest_key
from shipctl.store.leases import CollectorLock
from shipctl.store.log import Heads
from shipctl.store.objects import ObjectInfo, ObjectStore
from shipctl.store.roots import Roots, files_in, files_of_manifest, read_roots, refuse

DAY = 86400.0
MONTH = 30 * DAY

_BATCH = 1000
"""Objects that are deleted after one look at the lock: what S3 takes in one request."""
_READERS = 16
_NAME = re.compile(r"[a-z]+/([0-9a-f]{2})/(\1[0-9a-f]{62})")

Kind = Literal["files", "manifests", "results", "repositories"]


class Counted(Record):
    """Objects of one kind."""

    kept: int = Field(default=0, description="How many stay.")
    kept_bytes: int = Field(default=0, description="How large those are.")
    deleted: int = Field(default=0, description="How many were deleted, or would be.")
    deleted_bytes: int = Field(default=0, description="How large those were.")


class Collected(Record):
    """What a collection came to."""

    uri: str = Field(description="The store.")
    dry_run: bool = Field(description="Whether nothing was deleted.")
    versions: int = Field(description="Versions in the registry that were kept.")
    deployments: int = Field(description="Targets whose needs were kept.")
    leases: int = Field(description="Publications that were going on.")
    files: Counted = Field(description="Files of artifacts.")
    manifests: Counted = Field(description="Published artifacts.")
    results: Counted = Field(description="Results of stages.")
    repositories: Counted = Field(description="Files of Triton repositories, laid out by name.")
    unfinished: int = Field(description="Unfinished uploads that were given up, or would be.")

    @property
    def kept(self) -> int:
        """Objects that stay."""
        return self.files.kept + self.manifests.kept + self.results.kept + self.repositories.kept

    @property
    def deleted(self) -> int:
        """Objects that were deleted, or would be."""
        return self.files.deleted + self.manifests.deleted + self.results.deleted + self.repositories.deleted

    @property
    def freed_bytes(self) -> int:
        """How large those were."""
        kinds = (self.files, self.manifests, self.results, self.repositories)
        return sum(kind.deleted_bytes for kind in kinds)


def collect(
    objects: ObjectStore,
    *,
    extra_roots: Iterable[str] = (),
    min_age: float = DAY,
    keep_results: float = MONTH,
    keep_retired: float = MONTH,
    dry_run: bool = False,
    now: float | None = None,
    heads: Heads | None = None,
) -> Collected:
    """Delete what nothing refers to, and return what was deleted and what stays. Times are in seconds.

    :param extra_roots: digests of files and of artifacts that the caller knows to be needed
    :param min_age: what was written later than that stays, whatever refers to it
    :param keep_results: results of stages stay that long after they were written
    :param keep_retired: a version's artifacts stay that long after it was retired
    :param dry_run: only say what would be deleted; nothing is written, and no publication has to wait
    :param now: the time by the store's clock, in seconds since the epoch; the store is asked by default
    :param heads: ends of logs that were seen on this machine: a registry that was cut is refused
    :raises LockedError: if another collection goes on, or took over
    :raises StoreError: if a root cannot be read (nothing was deleted then), or the store fails
    """
    lock = None if dry_run else CollectorLock(objects)
    taken = time.time() if lock is None else lock.acquire()
    try:
        at = taken if now is None else now
        roots = read_roots(objects, extra=extra_roots, now=at, keep_retired=keep_retired, heads=heads)
        return _Collection(objects, lock).run(roots, at - min_age, at - keep_results)
    finally:
        if lock is not None:
            lock.release()


@dataclass
class _Tally:
    kept: int = 0
    kept_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0


class _Collection:
    """One collection, while its lock is held; without a lock it deletes nothing."""

    def __init__(self, objects: ObjectStore, lock: CollectorLock | None) -> None:
        self.objects = objects
        self.lock = lock
        self.tallies: dict[Kind, _Tally] = {kind: _Tally() for kind in get_args(Kind)}

    def run(self, roots: Roots, young: float, recent: float) -> Collected:
        """Keep what was written after ``young``, and results that were written after ``recent``."""
        old_results, results_files = self._results(min(young, recent), young)
        old_manifests, kept_manifests, manifests_files = self._manifests(roots, young)
        needed = roots.files | results_files | manifests_files
        self._remove("results", old_results)
        self._remove("manifests", old_manifests)
        self._remove("repositories", self._repositories(kept_manifests, young))
        self._remove("files", self._blobs(needed, young))
        unfinished = 0
        for name in self.objects.unfinished(older_than=young):
            unfinished += 1
            if self.lock is not None:
                self.lock.check()
                self.objects.discard(name)
        if self.lock is not None and roots.expired:
            self.lock.check()
            self.objects.delete([info.key for info in roots.expired])
        return Collected(
            uri=self.objects.uri,
            dry_run=self.lock is None,
            versions=roots.versions,
            deployments=roots.deployments,
            leases=roots.leases,
            unfinished=unfinished,
            **{kind: Counted(**vars(tally)) for kind, tally in self.tallies.items()},
        )

    def _renew(self) -> None:
        """Keep the lock during long work that deletes nothing."""
        if self.lock is not None:
            self.lock.check_if_due()

    # -- what goes, and what that which stays needs --------------------------------------------------------

    def _results(self, before: float, young: float) -> tuple[list[ObjectInfo], set[str]]:
        """Return the results to delete, and the files of those that stay."""
        old: list[ObjectInfo] = []
        kept: list[ObjectInfo] = []
        for info, _ in self._listed(RESULTS):
            (old if info.modified < before else kept).append(info)
        files: set[str] = set()
        for info, body in zip(kept, self._read([info.key for info in kept]), strict=True):
            checksum, _, text = body.partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() == checksum:
                try:
                    files |= files_in(json.loads(text))
                except (ValueError, RecursionError) as exc:
                    refuse(self.objects, info.key, f"{type(exc).__name__}; remove that object")
                self._keep("results", info)
            elif info.modified < young:  # damaged, so it is no result any more
                old.append(info)
        return old, files

    def _manifests(self, roots: Roots, young: float) -> tuple[list[ObjectInfo], set[str], set[str]]:
        """Return the manifests to delete, the digests of those that stay, and the files of these."""
        old: list[ObjectInfo] = []
        kept: dict[str, ObjectInfo] = {}
        for info, digest in self._listed(MANIFESTS):
            if digest in roots.manifests or digest in roots.wanted or info.modified >= young:
                kept[digest] = info
            else:
                old.append(info)
        for digest, what in roots.manifests.items():
            if digest not in kept:
                refuse(
                    self.objects,
                    what,
                    f"{manifest_key(digest)} is missing; publish that version again, or retire it",
                )
        files: set[str] = set()
        for (digest, info), body in zip(
            kept.items(), self._read([info.key for info in kept.values()]), strict=True
        ):
            what = roots.manifests.get(digest, info.key)
            try:
                files |= files_of_manifest(checked_manifest(body, digest, self.objects.uri))
            except (CorruptArtifactError, ValueError) as exc:
                refuse(self.objects, what, exc)
            self._keep("manifests", info)
        return old, set(kept), files

    def _repositories(self, kept: set[str], young: float) -> Iterator[ObjectInfo]:
        """Yield the files of Triton repositories whose packages are gone."""
        for info in self.objects.list(REPOSITORIES):
            self._renew()
            digest = info.key.removeprefix(REPOSITORIES).partition("/")[0]
            if digest in kept or info.modified >= young:
                self._keep("repositories", info)
            else:
                yield info

    def _blobs(self, needed: set[str], young: float) -> Iterator[ObjectInfo]:
        """Yield the files to delete, while they are listed."""
        for info, digest in self._listed(BLOBS):
            if digest in needed or info.modified >= young:
                self._keep("files", info)
            else:
                yield info

    def _listed(self, prefix: str) -> Iterator[tuple[ObjectInfo, str]]:
        """Yield objects with the digest in their name; what has another name is not ours to delete."""
        for info in self.objects.list(prefix):
            self._renew()
            match = _NAME.fullmatch(info.key)
            if match is not None:
                yield info, match[2]

    def _read(self, keys: Sequence[str]) -> Iterator[bytes]:
        """Yield the bytes of objects, some being read ahead; empty for what is gone."""
        with ThreadPoolExecutor(_READERS) as threads:
            for start in range(0, len(keys), _BATCH):
                self._renew()
                for body in threads.map(self.objects.read, keys[start : start + _BATCH]):
                    yield body or b""

    # -- deleting ------------------------------------------------------------------------------------------

    def _remove(self, kind: Kind, infos: Iterable[ObjectInfo]) -> None:
        rest = iter(infos)
        for first in rest:
            batch = list(chain([first], islice(rest, _BATCH - 1)))
            if self.lock is not None:
                self.lock.check()
                self.objects.delete([info.key for info in batch])
            self.tallies[kind].deleted += len(batch)
            self.tallies[kind].deleted_bytes += sum(info.size for info in batch)

    def _keep(self, kind: Kind, info: ObjectInfo) -> None:
        self.tallies[kind].kept += 1
        self.tallies[kind].kept_bytes += info.size
