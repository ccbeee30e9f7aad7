"""Artifacts in a store that others see too: sent from the local store and fetched into it, by digest.

    blobs/ab/<sha256>          files, sent once whatever names them
    results/ab/<fingerprint>   what a stage made, the bytes of the local store's file
    manifests/ab/<digest>      a published artifact; written after the blobs that it names
    repositories/<digest>/…    the Triton repository of a published package, under its own names
    registry/…  audit/…  deployments/<id>.json      what refers to manifests (see the modules of those names)
    leases/<id>.json  gc/lock                       see :mod:`shipctl.store.leases`

A file is hashed as it is sent, by the store, and here after it was fetched. Files go side by side; how a large one goes
in parts is the store's business.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from shipctl.errors import CorruptArtifactError, StoreError
from shipctl.records import canonical_json, digest_of
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import Artifact, FileEntry
from shipctl.store import leases
from shipctl.store.files import hash_file, temporary_in
from shipctl.store.leases import Lease
from shipctl.store.local import LocalStore, Result, read_result, result_body
from shipctl.store.objects import Moved, ObjectStore, open_store, unheard

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

BLOBS = "blobs/"
RESULTS = "results/"
MANIFESTS = "manifests/"
REPOSITORIES = "repositories/"

_FEW = 64
"""Files that are asked for one by one, whatever else the store holds."""
_LISTED_PER_FILE = 16
"""Objects that a listing names in the time that asking for one takes; 1,000 of them are one request."""
_ATTEMPTS = 3
_POLL = 0.01
_GRACE = 5.0
"""Seconds that transfers get to notice that they are to stop."""


class Transferred(NamedTuple):
    """What a transfer came to: files (and bytes) that went over the wire, and those that were there already."""

    sent: int
    sent_bytes: int
    reused: int
    reused_bytes: int


def blob_key(sha256: str) -> str:
    """Return the key of a file."""
    return f"{BLOBS}{sha256[:2]}/{sha256}"


def result_key(fingerprint: str) -> str:
    """Return the key of a result."""
    return f"{RESULTS}{fingerprint[:2]}/{fingerprint}"


def manifest_key(digest: str) -> str:
    """Return the key of a published artifact's manifest."""
    return f"{MANIFESTS}{digest[:2]}/{digest}"


def repository_prefix(digest: str) -> str:
    """Return the prefix of the Triton repository of a published package: never another package's."""
    return f"{REPOSITORIES}{digest}/"


class Depot:
    """Artifacts in an object store, with a local store as the working copy. May be used by several threads."""

    def __init__(
        self,
        objects: ObjectStore,
        local: LocalStore,
        *,
        jobs: int = 16,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """``jobs`` is how many files move at a time; ``log`` gets a line when something has to be waited for."""
        self.objects = objects
        self.local = local
        self.jobs = jobs
        self.log = log

    def close(self) -> None:
        """Let go of the object store's connections."""
        self.objects.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- files ---------------------------------------------------------------------------------------------

    def push(
        self, files: Sequence[FileEntry], *, moved: Moved = unheard, known: Collection[str] = ()
    ) -> Transferred:
        """Send files of the local store that the object store lacks, each digest once, every byte verified.

        What will refer to them has to be written inside of the same :meth:`leased`. ``known`` holds digests that a
        manifest, read there, vouches for: they are not asked for. ``moved`` hears of sent bytes only.

        :raises CorruptArtifactError: if a file to be sent is missing from the local store, or damaged
        :raises StoreError: if the store cannot be reached, or refuses
        """
        wanted = {entry.sha256: entry for entry in files}
        there = self._there([entry for entry in wanted.values() if entry.sha256 not in known])
        missing = [entry for key, entry in wanted.items() if key not in known and key not in there]

        def send(entry: FileEntry, moved: Moved) -> None:
            self._send(blob_key(entry.sha256), entry, moved)

        self._side_by_side(send, missing, moved)
        return _counted(wanted, missing)

    def _send(self, key: str, entry: FileEntry, moved: Moved) -> None:
        """Let the store read the file, and only if that fails for its sake read it here: to say which file it is."""
        source = self.local.blob(entry.sha256)
        if not LocalStore.has_files(self.local, [entry]):  # here, whatever could be fetched
            self.local.verify(entry)
        try:
            self.objects.upload(key, source, sha256=entry.sha256, size=entry.size, moved=moved)
        except CorruptArtifactError:
            self.local.verify(entry)
            raise

    def fetch(self, files: Sequence[FileEntry], *, moved: Moved = unheard) -> Transferred:
        """Bring files into the local store that it lacks; none counts before its bytes have the right digest.

        :raises CorruptArtifactError: if the store's file is missing, or differs from its digest
        :raises StoreError: if the store cannot be reached, or refuses
        """
        wanted = {entry.sha256: entry for entry in files}
        missing = [entry for entry in wanted.values() if not self.local.has_files([entry])]
        self._side_by_side(self._receive, missing, moved)
        return _counted(wanted, missing)

    def _receive(self, entry: FileEntry, moved: Moved) -> None:
        key = blob_key(entry.sha256)
        unfinished = self.local.root / "tmp"
        digest = ""
        for _ in range(2):  # once more, because bytes can also be damaged on their way
            unfinished.mkdir(parents=True, exist_ok=True)
            with temporary_in(unfinished) as twin:
                try:
                    self.objects.download(key, twin, size=entry.size, moved=moved)
                except StoreError as exc:
                    found = self.objects.stat(key)
                    if found is not None and found.size == entry.size:
                        raise
                    raise CorruptArtifactError(str(exc), entry.sha256) from exc
                digest = hash_file(twin)[0]
                if digest == entry.sha256:
                    self.local.put(twin, sha256=digest, move=True)
                    return
        message = (
            f"{entry.path} in {self.objects.uri} is damaged: the digest of {key} is {digest[:12]}…; "
            "remove that object and publish it again"
        )
        raise CorruptArtifactError(message, entry.sha256)

    def _there(self, files: Sequence[FileEntry]) -> set[str]:
        """Return the digests of those files that the store has with the right size, by as few requests as it takes.

        For many files, all blobs are listed as far as that is cheaper than asking. Names come in order, so a listing
        that was broken off has answered for all digests up to its end.
        """
        there: set[str] = set()
        asked = sorted(files, key=lambda entry: entry.sha256)
        if len(asked) > _FEW:
            sizes = {entry.sha256: entry.size for entry in asked}
            limit = _LISTED_PER_FILE * len(asked)
            last, count = "", 0
            for info in islice(self.objects.list(BLOBS), limit):
                last, count = info.key.rpartition("/")[2], count + 1
                if sizes.get(last) == info.size:
                    there.add(last)
            asked = [entry for entry in asked if entry.sha256 > last] if count == limit else []

        def look(entry: FileEntry, _: Moved) -> str | None:
            found = self.objects.stat(blob_key(entry.sha256))
            return entry.sha256 if found is not None and found.size == entry.size else None

        return there.union(filter(None, self._side_by_side(look, asked, unheard)))

    def _side_by_side(
        self, work: Callable[[ItemT, Moved], ResultT], items: Sequence[ItemT], moved: Moved
    ) -> list[ResultT]:
        """Call ``work`` for all items in threads, and return what it returned; after a failure the others stop.

        A thread cannot be broken off, so one that runs on is stopped where it next reports progress.
        """
        if len(items) < 2 or self.jobs < 2:  # noqa: PLR2004  (one thing needs no threads)
            return [work(item, moved) for item in items]
        stop = threading.Event()

        def still_moved(count: int) -> None:
            if stop.is_set():
                raise _Stopped
            moved(count)

        # An interruption may fall between a submission and the list of them, so who is at work is counted here.
        at_work: set[int] = set()

        def begin(item: ItemT) -> ResultT:
            at_work.add(threading.get_ident())
            try:
                if stop.is_set():
                    raise _Stopped
                return work(item, still_moved)
            finally:
                at_work.discard(threading.get_ident())

        pool = ThreadPoolExecutor(min(self.jobs, len(items)), thread_name_prefix="shipctl-depot")
        futures: list[Future[ResultT]] = []
        try:
            futures.extend(pool.submit(begin, item) for item in items)
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in [future for future in futures if future.done()]:
                future.result()  # raises what one of them did
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            until = time.monotonic() + _GRACE
            while at_work and time.monotonic() < until:
                time.sleep(_POLL)
            raise
        finally:
            pool.shutdown(wait=False)

    # -- artifacts -----------------------------------------------------------------------------------------

    def publish(
        self, artifact: Artifact, *, moved: Moved = unheard, known: Collection[str] = ()
    ) -> Transferred:
        """Send an artifact's files and then its manifest: who finds that can rely on all of it.

        Nothing refers to the manifest yet. A collection keeps it, and what it names, for a day; hold a lease on it
        (:meth:`leased`) to be sure until whatever refers to it is written.

        :raises CorruptArtifactError: if a file is missing from the local store, or damaged
        :raises StoreError: if the store cannot be reached, or refuses
        """
        body = canonical_json(artifact.manifest())
        # Written also where it is, which makes it young again: collections go by age.
        return self._refer(
            artifact.files,
            lambda: self.objects.write(manifest_key(artifact.digest), body),
            manifests=(artifact.digest,),
            moved=moved,
            known=known,
        )

    def lay_out(self, digest: str, files: Mapping[str, FileEntry], *, moved: Moved = unheard) -> Transferred:
        """Write files under their own names below the prefix of the published package ``digest``.

        For servers that read a store by path, such as Triton: a store has no links, so the bytes are there twice.
        What is there with the right size is left, because the prefix belongs to one package only.

        :raises CorruptArtifactError: if a file is missing from the local store, or damaged
        :raises StoreError: if the store cannot be reached, or refuses
        """
        prefix = repository_prefix(digest)
        there = {info.key: info.size for info in self.objects.list(prefix)}
        missing = [
            (prefix + path, entry) for path, entry in files.items() if there.get(prefix + path) != entry.size
        ]

        def send(item: tuple[str, FileEntry], moved: Moved) -> None:
            self._send(*item, moved)

        self._side_by_side(send, missing, moved)
        return _counted(dict(files), [entry for _, entry in missing])

    def _refer(
        self,
        files: Sequence[FileEntry],
        write: Callable[[], object],
        *,
        manifests: Sequence[str],
        moved: Moved,
        known: Collection[str] = (),
    ) -> Transferred:
        sent = Transferred(0, 0, 0, 0)
        for _ in range(_ATTEMPTS):
            with self.leased(files, manifests=manifests) as lease:
                found = self.push(files, moved=moved, known=known)
                sent = Transferred(
                    sent.sent + found.sent,
                    sent.sent_bytes + found.sent_bytes,
                    found.reused,
                    found.reused_bytes,
                )
                write()
                if lease.holds:
                    return sent
            known = ()  # whoever vouched for them did so before the lease ran out
        message = (
            f"this machine was held up again and again while it published to {self.objects.uri}, so that what it "
            "had found there may be gone; run the same command again"
        )
        raise StoreError(message)

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """Return a published artifact's manifest, None if there is none.

        :raises CorruptArtifactError: if it is not what its digest says
        """
        body = self.objects.read(manifest_key(digest))
        return None if body is None else checked_manifest(body, digest, self.objects.uri)

    @contextmanager
    def leased(
        self, files: Sequence[FileEntry] = (), *, manifests: Sequence[str] = (), wait: float = leases.WAIT
    ) -> Iterator[Lease]:
        """Keep files, and published artifacts with theirs, from being collected while the block runs.

        :raises LockedError: if a collection goes on for longer than ``wait`` seconds
        """
        with leases.leased(self.objects, files, manifests=manifests, wait=wait, log=self.log) as lease:
            yield lease

    # -- results -------------------------------------------------------------------------------------------

    def share(self, result: Result, *, moved: Moved = unheard) -> Transferred:
        """Send the files of a result, and then the result, which others find by its fingerprint from then on.

        :raises CorruptArtifactError: if a file is missing from the local store, or damaged
        :raises StoreError: if the store cannot be reached, or refuses
        """
        return self._refer(result_files(result), lambda: self.save_result(result), manifests=(), moved=moved)

    def save_result(self, result: Result) -> Result:
        """Write a result whose files were sent, and return the one that counts: the first for its fingerprint."""
        key, body = result_key(result.fingerprint), result_body(result)
        if not self.objects.create(key, body):
            there = self.load_result(result.fingerprint)
            if there is not None:
                return there
            self.objects.write(key, body)  # what stood there was damaged
        return result

    def load_result(self, fingerprint: str) -> Result | None:
        """Return the result of that fingerprint; None if there is none or it is damaged."""
        body = self.objects.read(result_key(fingerprint))
        return None if body is None else read_result(body, fingerprint)

    def drop_result(self, fingerprint: str) -> None:
        """Forget a result, because a file that it names is missing or damaged."""
        self.objects.delete([result_key(fingerprint)])


def open_depot(spec: StoreSpec | None, base: Path, local: LocalStore) -> Depot:
    """Return the depot that a spec's `store` names; without one it is ``local`` itself, and nothing is copied.

    :raises SpecError: if no installed plugin knows the URI's scheme, or it cannot be meant
    :raises PluginError: if the plugin does not work
    """
    return Depot(open_store(spec or StoreSpec(uri=local.root.absolute().as_uri()), base), local)


def result_files(result: Result) -> list[FileEntry]:
    """Return the files that a result's own outputs consist of; what it passed on is not its own."""
    return [
        FileEntry.model_validate(entry)
        for name, manifest in result.outputs.items()
        if name not in result.passed
        for entry in manifest.get("files", ())
    ]


def checked_manifest(body: bytes, digest: str, uri: str) -> dict[str, Any]:
    """Return the manifest that ``body`` is.

    :raises CorruptArtifactError: if its digest is another one
    """
    try:
        found = json.loads(body)
        whole = isinstance(found, dict) and digest_of(found) == digest
    except (ValueError, RecursionError):
        found, whole = {}, False
    if not whole:
        message = (
            f"{manifest_key(digest)} in {uri} is damaged: it is not what its name says; publish it again"
        )
        raise CorruptArtifactError(message, digest)
    return dict(found)


def _counted(wanted: dict[str, FileEntry], moved: Sequence[FileEntry]) -> Transferred:
    moved_bytes = sum(entry.size for entry in moved)
    all_bytes = sum(entry.size for entry in wanted.values())
    return Transferred(len(moved), moved_bytes, len(wanted) - len(moved), all_bytes - moved_bytes)


class _Stopped(BaseException):
    """Ends a transfer whose result nobody waits for any more; no store may take it for a fault of the network."""
