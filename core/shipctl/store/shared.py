"""The working store of a project that shares what it makes: what one runner has built, no other builds again.

The engine works on the local store as ever. What is not there is looked for in the spec's `store`, and what a stage
makes is sent there while the next one runs: first the files, then the result that names them. The shared store is a
help and no condition: if it cannot be reached, that is said once and the run goes on without it. Whatever publishes
to it, or deploys from it, says by itself that it cannot.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from shipctl.errors import CorruptArtifactError, ShipctlError
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import Artifact, FileEntry
from shipctl.store.depot import Depot, blob_key, open_depot
from shipctl.store.local import LocalStore, Result

ArtifactT = TypeVar("ArtifactT", bound=Artifact)
_SENDERS = 2
"""Results that are sent at a time; the files of one are themselves sent side by side."""


class SharedStore(LocalStore):
    """A local store that takes from a shared one what it lacks, and gives it what is new."""

    def __init__(self, root: Path, spec: StoreSpec, base: Path) -> None:
        """``base`` is the folder that relative paths in ``spec`` are relative to."""
        super().__init__(root)
        self._spec = spec
        self._base = base
        self._depot: Depot | None = None
        self._guard = threading.RLock()
        self._problem: str | None = None
        self._there: set[str] = set()
        self._replaced: set[str] = set()
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="share")
        self._sending: list[Future[None]] = []

    @property
    def depot(self) -> Depot:
        """The shared store, opened when it is first asked for.

        :raises SpecError: if there is no plugin for it
        """
        with self._guard:
            if self._depot is None:
                self._depot = open_depot(self._spec, self._base, LocalStore(self.root))
            return self._depot

    def _shared(self) -> Depot | None:
        if self._problem is not None or not self._spec.cache:
            return None
        try:
            return self.depot
        except ShipctlError as exc:
            self._give_up(exc)
            return None

    def _give_up(self, exc: Exception) -> None:
        with self._guard:
            self._problem = self._problem or f"results are not shared, the run goes on alone: {exc}"

    # -- taking ----------------------------------------------------------------------------------------------

    def load_result(self, fingerprint: str) -> Result | None:
        """Return the result of that fingerprint from here, or else from the shared store."""
        result = super().load_result(fingerprint)
        depot = self._shared() if result is None and fingerprint not in self._replaced else None
        if depot is None:
            return result
        try:
            result = depot.load_result(fingerprint)
        except ShipctlError as exc:
            self._give_up(exc)
            return None
        return super().save_result(result) if result is not None else None

    def expect(self, files: Sequence[FileEntry]) -> None:
        """Take it that the shared store has these files: they are fetched when they are used."""
        self._there.update(entry.sha256 for entry in files)

    def has_files(self, files: Sequence[FileEntry]) -> bool:
        """Whether all files are here with the right size, or can be fetched."""
        return all(
            entry.sha256 in self._there or super(SharedStore, self).has_files([entry]) or self._offered(entry)
            for entry in files
        )

    def _offered(self, entry: FileEntry) -> bool:
        """Whether the shared store has a file that is not here: its result was taken over, and it was never used."""
        depot = self._shared()
        if depot is None:
            return False
        try:
            found = depot.objects.stat(blob_key(entry.sha256))
        except ShipctlError as exc:
            self._give_up(exc)
            return False
        if found is None or found.size != entry.size:
            return False
        self._there.add(entry.sha256)
        return True

    def verify(self, entry: FileEntry) -> Path:
        """Read a file, after fetching it if it is not here, and return its path.

        :raises CorruptArtifactError: if it is nowhere, or one bit of it is wrong
        """
        self._fetch([entry])
        return super().verify(entry)

    def view(self, artifact: ArtifactT, folder: Path) -> ArtifactT:
        """Lay out the artifact's files below ``folder`` after fetching those that are not here, all at once.

        :raises CorruptArtifactError: if a file is not what its digest says
        """
        self._fetch(artifact.files)
        return super().view(artifact, folder)

    def _fetch(self, files: Sequence[FileEntry]) -> None:
        missing = [
            entry for entry in files if entry.sha256 in self._there and not self.blob(entry.sha256).exists()
        ]
        if not missing:
            return
        try:
            self.depot.fetch(missing)
        except CorruptArtifactError as exc:
            self._there.discard(exc.digest)
            raise
        except ShipctlError as exc:  # not the file is at fault, but what made it can be run again
            self._give_up(exc)
            self._there.clear()
            message = f"{missing[0].path} ({missing[0].sha256[:12]}) cannot be fetched: {exc}"
            raise CorruptArtifactError(message, missing[0].sha256) from exc

    # -- giving ----------------------------------------------------------------------------------------------

    def save_result(self, result: Result) -> Result:
        """Keep the result here and send it on while the run goes on; return the one that counts."""
        kept = super().save_result(result)
        depot = self._shared()
        if depot is not None:
            self._sending.append(self._senders.submit(self._send, depot, kept))
        return kept

    def drop_result(self, fingerprint: str) -> None:
        """Forget a result: the next one replaces it in the shared store, too."""
        super().drop_result(fingerprint)
        self._replaced.add(fingerprint)

    def _send(self, depot: Depot, result: Result) -> None:
        try:
            if result.fingerprint in self._replaced:
                depot.drop_result(result.fingerprint)
            depot.share(result)
        except ShipctlError as exc:
            self._give_up(exc)

    def settle(self) -> str | None:
        """Wait until everything is sent, and return what went wrong with sharing, if anything did."""
        sending, self._sending = self._sending, []
        for future in sending:
            try:
                future.result()
            except KeyboardInterrupt:
                for other in sending:
                    other.cancel()
                raise
        return self._problem
