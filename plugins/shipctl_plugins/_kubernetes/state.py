"""What an app remembers in its namespace: which revision is stable, and what each of its revisions is.

One ConfigMap. It is only ever changed from the version that was read, which makes a promotion one compare-and-swap;
whoever takes the lease writes his epoch into it, so that a write from before fails (see :func:`fence`).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from shipctl.errors import StageError, StoreError
from shipctl.records import Record
from shipctl.release.references import Reference
from shipctl_plugins._kubernetes.api.connection import ConflictError, Ref
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH, Place

KEY = "state.json"
RECALLED = "recalled"
"""Stands for the digest of manifests that nobody remembers: they are left as they are."""


class Entry(Record):
    """One revision."""

    revision: str = Field(description="Digest of what was released, and how.")
    version: str = Field(description="Semantic version of the release.")
    model: str = Field(description="The model's name in Triton.")
    digest: str = Field(description="Digest of the repository artifact.")
    repository: str = Field(description="The URI from which its servers read it.")
    image: str = Field(description="The image that its servers run.")
    number: int = Field(default=1, ge=1, description="Triton's version number in the repository.")
    replicas: int = Field(ge=1, description="How many servers it is to have; an autoscaler begins with them.")
    autoscaled: bool = Field(default=False, description="Whether an autoscaler changes that number.")
    rendered: str = Field(
        default="",
        description="Digest of its manifests. Where a spec would make others by now, what is there is left as it is: "
        "a promotion, or a way back, never changes pods.",
    )
    since: float = Field(description="When it was prepared first, seconds since the epoch.")


class ModelState(Record):
    """Everything that is remembered of an app."""

    stable: str | None = Field(default=None, description="The committed revision; None before the first.")
    previous: str | None = Field(default=None, description="The one before it, while it is kept warm.")
    committed: float | None = Field(default=None, description="When it was, seconds since the epoch.")
    entries: dict[str, Entry] = Field(default_factory=dict, description="Per revision.")
    router: Reference | None = Field(
        default=None, description="What divides the requests, as the newest spec says; for the watchdog."
    )
    ports: tuple[int, int] = Field(default=(8000, 8001), description="Of HTTP and of gRPC, for the same.")

    @property
    def serving(self) -> Entry | None:
        """The stable revision."""
        return self.entries.get(self.stable) if self.stable is not None else None

    def by_short(self, digits: str) -> Entry | None:
        """Return the revision whose digest begins so, as labels have it."""
        return next((entry for name, entry in self.entries.items() if name.startswith(digits)), None)


def load(place: Place) -> tuple[ModelState, str]:
    """Return the state and its version for :func:`save`; an empty one and "" where there is none.

    :raises StoreError: if it is damaged
    """
    return read(place, place.cluster.get(reference(place)))


def read(place: Place, found: dict[str, Any] | None) -> tuple[ModelState, str]:
    """Return what :func:`load` does, of a ConfigMap that was fetched already."""
    if found is None:
        return ModelState(), ""
    text = (found.get("data") or {}).get(KEY, "{}")
    try:
        return ModelState.model_validate_json(text), found["metadata"]["resourceVersion"]
    except ValidationError as exc:
        message = (
            f"ConfigMap {place.app.kept} in {place.app.namespace} is damaged ({exc.error_count()} errors in {KEY}); "
            "restore it, or `shipctl down` and begin anew"
        )
        raise StoreError(message) from exc


def save(place: Place, state: ModelState, resource_version: str, epoch: int) -> str:
    """Replace the state that was loaded with that version, and return the new version.

    :raises StageError: if somebody else has changed it meanwhile
    """
    text = state.model_dump_json(indent=1, by_alias=True)
    annotations = {ANNOTATION_EPOCH: str(epoch)}
    try:
        if not resource_version:
            new = place.labelled("ConfigMap", "v1", place.app.kept, data={KEY: text})
            new["metadata"]["annotations"] = annotations
            written = place.cluster.create(new)
        else:
            change = {"metadata": {"annotations": annotations}, "data": {KEY: text}}
            written = place.cluster.patch(reference(place), change, resource_version=resource_version)
    except ConflictError as exc:
        message = (
            f"{place.app.name} in {place.app.namespace} was changed by somebody else meanwhile; look with "
            "`shipctl status`, then run the same command again"
        )
        raise StageError(message) from exc
    return str(written["metadata"]["resourceVersion"])


def fence(place: Place, epoch: int) -> None:
    """Write the epoch into the state, so that whoever read it before cannot write it any more."""
    found = place.cluster.get(reference(place))
    if found is not None and (found["metadata"].get("annotations") or {}).get(ANNOTATION_EPOCH) != str(epoch):
        change = {"metadata": {"annotations": {ANNOTATION_EPOCH: str(epoch)}}}
        place.cluster.patch(reference(place), change)


def reference(place: Place) -> Ref:
    """Return the ConfigMap's name."""
    return Ref("v1", "ConfigMap", place.app.kept)
