"""How many pods a revision has while it gets a share of the traffic, and how many it is to have for all of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shipctl.errors import StageError
from shipctl_plugins._kubernetes.api.errors import ConflictError
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH, Place
from shipctl_plugins._kubernetes.pods import is_ready, wanted_of
from shipctl_plugins._kubernetes.traffic.ways import Json, epoch_of, fence, notes_of, pauses

if TYPE_CHECKING:
    from shipctl_plugins._kubernetes.api.connection import Ref

ANNOTATION_REDUCED = "shipctl.dev/reduced"
"""`1 of 4` on a Deployment that has one pod for a share of the traffic, and is to have four for all of it."""
_ATTEMPTS = 20
"""How often a Deployment is looked at again, to whose status its controller writes all the time."""


class Reducer:
    """Changes numbers of pods of an app's revisions."""

    def __init__(self, place: Place, guard: Callable[[int], None]) -> None:
        self.place = place
        self.guard = guard

    def whole(self, revision: str) -> int | None:
        """Return how many pods a revision has when it has all of them; None if it has no Deployment."""
        found = self.place.cluster.get(self._ref(revision))
        return whole_of(found) if found is not None else None

    def has(self, scale: dict[str, int]) -> bool:
        """Whether the Deployments ask for so many pods."""
        return all(
            found is not None and wanted_of(found) == pods
            for name, pods in scale.items()
            for found in [self.place.cluster.get(self._ref(name))]
        )

    def ready(self, revision: str) -> set[str]:
        """Return the names of a revision's pods that are ready."""
        pods = self.place.cluster.list("v1", "Pod", self.place.app.pods_of(revision))
        return {str(pod["metadata"]["name"]) for pod in pods if is_ready(pod)}

    def await_ready(self, scale: dict[str, int], seconds: float) -> bool:
        """Whether exactly so many pods are ready within that time."""
        until, pause = time.monotonic() + seconds, pauses()
        while any(len(self.ready(name)) != pods for name, pods in scale.items()):
            if time.monotonic() >= until:
                return False
            time.sleep(next(pause))
        return True

    def rescale(self, scale: dict[str, int], epoch: int) -> None:
        """Have the Deployments ask for so many pods, and carry the epoch.

        :raises StaleEpochError: if somebody else has taken over since
        :raises StageError: if one is gone
        """
        for revision, pods in scale.items():
            self._rescale(self._ref(revision), pods, epoch)

    def _rescale(self, ref: Ref, pods: int, epoch: int) -> None:
        for _ in range(_ATTEMPTS):
            self.guard(epoch)
            found = self.place.cluster.get(ref)
            if found is None:
                raise StageError(
                    f"the Deployment {ref.name} is gone from {self.place.app.namespace}; run again"
                )
            fence(found, f"{ref.kind} {ref.name}", epoch)
            notes: dict[str, str | None] = {ANNOTATION_EPOCH: str(epoch)}
            body: Json = {"metadata": {"annotations": notes}}
            if wanted_of(found) != pods:
                whole = whole_of(found)
                notes[ANNOTATION_REDUCED] = f"{pods} of {whole}" if pods < whole else None
                body["spec"] = {"replicas": pods}
            elif epoch_of(found) == epoch:
                return
            try:
                self.place.cluster.patch(ref, body, resource_version=found["metadata"]["resourceVersion"])
            except ConflictError:
                continue
            return
        raise StageError(f"the Deployment {ref.name} is changed again and again by others; run again")

    def _ref(self, revision: str) -> Ref:
        from shipctl_plugins._kubernetes.api.connection import Ref

        return Ref("apps/v1", "Deployment", self.place.app.of(revision))


def whole_of(deployment: Json) -> int:
    """Return the number of pods before they were reduced; the note counts only while nobody has changed the number."""
    pods = wanted_of(deployment)
    noted = re.fullmatch(r"(\d+) of (\d+)", notes_of(deployment).get(ANNOTATION_REDUCED, ""))
    return max(1, int(noted[2]) if noted and int(noted[1]) == pods else pods)
