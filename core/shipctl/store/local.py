"""The local store: files by SHA-256, and results (fingerprint to outputs) that point at them.

    blobs/ab/<sha256>        the bytes of one file, read-only
    results/ab/<fingerprint> what a stage made, behind a checksum of its own
    tmp/                     files that are being written

A result is linked into place after the blobs that it names, and the first one for a fingerprint wins: killed
anywhere, what is there is whole. Against a power cut everything is synced in groups (:meth:`LocalStore.sync`).
Bytes that are about to be used are always hashed; size alone serves planning.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from shipctl.errors import CorruptArtifactError, StageError, StoreError
from shipctl.records import Record, canonical_json
from shipctl.stages.artifacts import Artifact, FileEntry
from shipctl.store.files import hash_file, place_file, sync_file, temporary_in

ArtifactT = TypeVar("ArtifactT", bound=Artifact)
Stamp = tuple[int, int, int, int]
"""Device, inode, size and modification time of a file."""
_LARGE = 1 << 20
_SETTLED = 2_000_000_000
"""Nanoseconds after which one more change moves the modification time, however coarse the file system's clock."""
_FEW = 16
_SYNCS = 8
"""Files that are synced at a time, where there are more than a few."""


def _gives_away(output: str, secret: str) -> StageError:
    return StageError(f"output {output} contains the value of secret {secret!r}; nothing was stored")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _entry_of(path: Path, name: str, forbidden: Mapping[bytes, str]) -> FileEntry:
    """Read a file that a stage wrote, and refuse what ``forbidden`` names."""
    sha256, size, found = hash_file(path, tuple(forbidden))
    if found is not None:
        raise _gives_away(name, forbidden[found])
    return FileEntry(path=name, sha256=sha256, size=size)


def _sync(path: Path) -> None:
    with suppress(FileNotFoundError):  # replaced or dropped meanwhile
        sync_file(path)


class Result(Record):
    """What one run of a transform stage made."""

    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="Fingerprint of the stage with its inputs."
    )
    uses: str = Field(description="The stage plugin's name.")
    outputs: dict[str, dict[str, Any]] = Field(description="Output name to artifact manifest.")
    passed: dict[str, str] = Field(
        default_factory=dict, description="Outputs that are an input, unchanged: name to digest."
    )
    created: float = Field(description="Seconds since the epoch.")
    seconds: float = Field(description="Wall time of the run.")
    peak_memory: int | None = Field(default=None, description="Highest resident memory, in bytes.")


def result_body(result: Result) -> bytes:
    """Return a result as it is stored: the SHA-256 of its JSON, a line feed, the JSON."""
    body = result.model_dump_json().encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def read_result(stored: bytes, fingerprint: str) -> Result | None:
    """Return the result of that fingerprint; None for another one's, a damaged one or another version's."""
    checksum, _, body = stored.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        return None
    try:
        result = Result.model_validate_json(body)
    except ValidationError:
        return None
    return result if result.fingerprint == fingerprint else None


class LocalStore:
    """A content-addressed store in one folder. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._results = root / "results"
        self._unsynced: dict[Path, None] = {}
        self._lock = threading.Lock()

    def _unfinished(self) -> Path:
        folder = self.root / "tmp"
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _moved_to(self, path: Path) -> None:
        """Remember that a file, and its entry in the folder, has to survive a power cut before :meth:`sync` returns."""
        with self._lock:
            self._unsynced[path] = None

    def sync(self) -> None:
        """Make everything that was stored survive a power cut: all files, then all folders that name them.

        Whoever goes on to change something outside, or says that a run is over, calls this first. A killed
        process loses nothing either way; after a power cut, what was not synced is missing or has the wrong
        digest, and is made again.
        """
        with self._lock:
            paths, self._unsynced = list(self._unsynced), {}
        folders = {path.parent for path in paths}
        if len(paths) <= _FEW:
            for path in (*paths, *folders):
                _sync(path)
            return
        with ThreadPoolExecutor(_SYNCS) as threads:  # a file system syncs several files at the price of one
            list(threads.map(_sync, paths))
            list(threads.map(_sync, folders))

    def expect(self, files: Sequence[FileEntry]) -> None:
        """Take it that the store that this one shares with has these files; here there is none."""

    def settle(self) -> str | None:
        """Wait for what still goes on, and return what went wrong with it; here there is nothing."""
        return None

    def tidy(self) -> None:
        """Remove what a killed run left half-written. Only for who holds the project's lock."""
        shutil.rmtree(self.root / "tmp", ignore_errors=True)

    # -- bytes ---------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> Path:
        """Return where the bytes of that digest are, or would be."""
        return self._blobs / sha256[:2] / sha256

    def has_files(self, files: Sequence[FileEntry]) -> bool:
        """Whether all files are there with the right size. For planning only: no byte is read."""
        for entry in files:
            try:
                if os.stat(self.blob(entry.sha256)).st_size != entry.size:  # noqa: PTH116  (called once per file of a plan)
                    return False
            except OSError:
                return False
        return True

    def put(self, source: Path, *, sha256: str, move: bool = False) -> None:
        """Store the file ``source``, whose digest the caller has just computed; ``move`` takes the file itself.

        :raises StoreError: if the bytes changed while they were copied
        """
        blob = self.blob(sha256)
        if not blob.parent.is_dir():
            blob.parent.mkdir(parents=True, exist_ok=True)
        if move:
            source.chmod(0o444)
            source.replace(blob)
        else:
            with temporary_in(self._unfinished()) as twin:
                shutil.copyfile(source, twin)
                if hash_file(twin)[0] != sha256:
                    message = f"{source} changed while it was read; run the same command again"
                    raise StoreError(message)
                twin.chmod(0o444)
                twin.replace(blob)
        self._moved_to(blob)

    def verify(self, entry: FileEntry) -> Path:
        """Read a file of the store and return its path.

        :raises CorruptArtifactError: if it is missing or one bit of it is wrong
        """
        blob = self.blob(entry.sha256)
        try:
            digest = hash_file(blob)[0]
        except FileNotFoundError:
            message = f"{entry.path} ({entry.sha256[:12]}) is missing from the store"
            raise CorruptArtifactError(message, entry.sha256) from None
        if digest != entry.sha256:
            message = f"{entry.path} in the store is damaged: its digest is {digest[:12]}… and not {entry.sha256[:12]}…"
            raise CorruptArtifactError(message, entry.sha256)
        return blob

    # -- artifacts -----------------------------------------------------------------------------------------

    def view(self, artifact: ArtifactT, folder: Path) -> ArtifactT:
        """Lay out the artifact's files below ``folder`` (links where possible) after verifying every byte.

        :raises CorruptArtifactError: if a file is not what its digest says
        """
        folder.mkdir(parents=True, exist_ok=True)
        for entry in artifact.files:
            blob = self.verify(entry)
            place = folder / entry.path
            place.unlink(missing_ok=True)
            place_file(blob, place)
        return artifact.located(folder)

    def stamps(self, artifacts: Iterable[Artifact]) -> dict[Stamp, str]:
        """Return the digests of the large files of artifacts that were just viewed, for :meth:`publish`.

        What was written within the last two seconds is left out: another change might not show in its time.
        """
        found: dict[Stamp, str] = {}
        for artifact in artifacts:
            for entry in artifact.files:
                if entry.size >= _LARGE:
                    status = self.blob(entry.sha256).stat()
                    if time.time_ns() - status.st_mtime_ns > _SETTLED:
                        found[_stamp(status)] = entry.sha256
        return found

    def publish(
        self,
        artifact: ArtifactT,
        workdir: Path,
        forbidden: Mapping[bytes, str] | None = None,
        known: Mapping[Stamp, str] | None = None,
    ) -> ArtifactT:
        """Take the files of a new artifact out of ``workdir`` into the store and return it with its ``files``.

        ``forbidden`` maps byte strings that must not be stored (secrets) to their names. ``known`` has the digests of
        files that were just verified (:meth:`stamps`): links to them are not read again, unless for secrets.

        :raises StageError: for no files or files elsewhere, links, or a forbidden content, name or field
        """
        try:
            root = artifact.root
        except RuntimeError:
            message = f"output of kind {artifact.kind} has no files; make it with `{type(artifact).__name__}.at(path)`"
            raise StageError(message) from None
        if not root.exists():
            message = f"output of kind {artifact.kind} names {root.name}, which the stage did not write"
            raise StageError(message)
        if not (root.parent == workdir and not root.is_symlink()) and not root.resolve().is_relative_to(
            workdir.resolve()
        ):
            message = f"output of kind {artifact.kind} lies at {root}, outside the stage's work directory"
            raise StageError(message)
        entries = []
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            status = path.lstat()
            mode = status.st_mode
            if stat.S_ISDIR(mode):
                continue
            name = path.name if path == root else path.relative_to(root).as_posix()
            if not stat.S_ISREG(mode):
                message = f"output {name} is not a plain file; copy what it points to"
                raise StageError(message)
            linked = known.get(_stamp(status)) if known and not forbidden else None
            if linked is not None:
                entry = FileEntry(path=name, sha256=linked, size=status.st_size)
            else:
                entry = _entry_of(path, name, forbidden or {})
            entries.append((path, entry))
        published = artifact.model_copy(update={"files": tuple(entry for _, entry in entries)})
        if forbidden:
            fields = canonical_json(published.manifest())
            for needle, secret in forbidden.items():
                if needle in fields:
                    raise _gives_away(f"of kind {artifact.kind}", secret)
        for path, entry in entries:
            self.put(path, sha256=entry.sha256, move=True)
        return published

    # -- results -------------------------------------------------------------------------------------------

    def result_path(self, fingerprint: str) -> Path:
        """Return where the result of that fingerprint is, or would be."""
        return self._results / fingerprint[:2] / fingerprint

    def save_result(self, result: Result) -> Result:
        """Link the result into place and return the one that counts: the first for its fingerprint."""
        path = self.result_path(result.fingerprint)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_in(self._unfinished()) as twin:
            twin.write_bytes(result_body(result))
            try:
                os.link(twin, path)
            except FileExistsError:
                there = LocalStore.load_result(self, result.fingerprint)
                if there is not None:
                    return there
                twin.replace(path)  # what stood there was damaged
        self._moved_to(path)
        return result

    def load_result(self, fingerprint: str) -> Result | None:
        """Return the result of that fingerprint; None if there is none or it is damaged (the stage then runs again)."""
        try:
            return read_result(self.result_path(fingerprint).read_bytes(), fingerprint)
        except OSError:
            return None

    def drop_result(self, fingerprint: str) -> None:
        """Forget a result, because a file that it names is damaged."""
        self.result_path(fingerprint).unlink(missing_ok=True)

    def artifact(self, model: type[ArtifactT], manifest: Mapping[str, Any]) -> ArtifactT:
        """Read a manifest back as the artifact class ``model``.

        :raises StoreError: if the manifest is of another kind
        """
        if manifest.get("kind") != model.kind:
            message = f"expected a {model.kind} in the store and found a {manifest.get('kind')}"
            raise StoreError(message)
        return model.model_validate({key: value for key, value in manifest.items() if key != "kind"})
