"""Who did what: entries of the audit log, and what targets refer to, both in the store that a spec publishes to.

An act that ships something is written down before it begins: a store that cannot be written to lets nothing begin.
What has begun, and a way back (a rollback, a stop), is never held up by that: it is written down in the project's own
store then, and said.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shipctl.errors import LockedError, StoreError
from shipctl.records import canonical_json, digest_of
from shipctl.stages.artifacts import FileEntry
from shipctl.store.depot import Depot, open_depot
from shipctl.store.local import LocalStore
from shipctl.store.log import audit

if TYPE_CHECKING:
    from shipctl.engine.pipeline import Pipeline


class Auditor:
    """Writes what one run does to releases into the store."""

    def __init__(self, pipeline: Pipeline, *, way_back: bool = False) -> None:
        """``way_back`` says that what is done must not be held up by a store that cannot be reached."""
        self._pipeline = pipeline
        self._way_back = way_back
        self.problems: list[str] = []
        """What could not be written where it belongs."""

    def begin(self, action: str, subject: str, details: Mapping[str, Any]) -> None:
        """Append the entry of something that is about to begin.

        :raises StoreError: if it cannot be written, unless this is a way back
        """
        self._append(action, subject, details, strict=not self._way_back)

    def record(self, action: str, subject: str, details: Mapping[str, Any]) -> None:
        """Append the entry of something that has happened."""
        self._append(action, subject, details, strict=False)

    def _append(self, action: str, subject: str, details: Mapping[str, Any], *, strict: bool) -> None:
        try:
            with self._pipeline.depot() as depot:
                self._write(depot, action, subject, details)
        except StoreError as exc:
            if strict:
                raise
            self.problems.append(
                f"the audit log cannot be written, this project's own store has the entry: {exc}"
            )
            project = self._pipeline.project
            with open_depot(None, project.root, LocalStore(project.store)) as depot:
                self._write(depot, action, subject, details)

    def _write(self, depot: Depot, action: str, subject: str, details: Mapping[str, Any]) -> None:
        """Append an entry and remember it; a log that was cut is told, and still gets its entry."""
        heads = self._pipeline.project.heads()
        try:
            audit(depot.objects, heads=heads).head()
        except StoreError as exc:
            if str(exc) not in self.problems:
                self.problems.append(str(exc))
            audit(depot.objects).append(action, subject, details)  # what was seen before stays on record
            return
        audit(depot.objects, heads=heads).append(action, subject, details)

    def refer(
        self,
        stage: str,
        target: str,
        *,
        serving: Sequence[str],
        manifests: Sequence[str],
        files: Sequence[str],
        strict: bool,
    ) -> None:
        """Tell the store what a target needs of it, so that nothing of that is ever collected as garbage.

        :raises StoreError: if it cannot be written, unless this is a way back or not ``strict``
        """
        body = {
            "pipeline": self._pipeline.name,
            "stage": stage,
            "target": target,
            "host": platform.node(),
            "serving": list(serving),
            "manifests": list(manifests),
            "files": list(files),
            "updated": time.time(),
        }
        try:
            with self._pipeline.depot() as depot, depot.leased(self._entries(files), manifests=manifests):
                depot.objects.write(self._key(stage, target), canonical_json(body))
        except (StoreError, LockedError) as exc:
            if strict and not self._way_back:
                raise
            self.problems.append(f"the store does not know what {target} serves now: {exc}")

    @staticmethod
    def _entries(files: Sequence[str]) -> list[FileEntry]:
        """Return files as a lease names them: by digest."""
        return [FileEntry(path=digest, sha256=digest, size=0) for digest in files]

    def forget(self, stage: str, target: str) -> None:
        """Tell the store that a target serves nothing any more."""
        try:
            with self._pipeline.depot() as depot:
                depot.objects.delete([self._key(stage, target)])
        except StoreError as exc:
            self.problems.append(f"the store does not know that {target} was stopped: {exc}")

    def _key(self, stage: str, target: str) -> str:
        place = [self._pipeline.project.identity(), self._pipeline.name, stage, target]
        return f"deployments/{digest_of(place)[:32]}.json"
