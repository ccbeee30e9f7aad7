"""What targets need of a store: one object per release stage and target, written by those who release."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field

from shipctl.errors import StoreError
from shipctl.records import Record
from shipctl.store.log import READERS
from shipctl.store.model_changes import Use
from shipctl.store.objects import ObjectStore

DEPLOYMENTS = "deployments"
"""Prefix of the objects' keys."""


class Deployment(Record):
    """What one release stage's target needs of a store."""

    pipeline: str = Field(description="metadata.name.")
    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    host: str = Field(description="The machine that it was released from.")
    serving: tuple[str, ...] = Field(description="Digests of what serves now.")
    manifests: tuple[str, ...] = Field(description="Digests of all artifacts that it may go back to.")

    @property
    def digests(self) -> frozenset[str]:
        """Digests of all that it refers to."""
        return frozenset((*self.serving, *self.manifests))


def read_deployments(objects: ObjectStore) -> list[Deployment]:
    """Return what all targets need.

    :raises StoreError: if that cannot be told, because one is damaged
    """
    keys = [info.key for info in objects.list(f"{DEPLOYMENTS}/") if info.key.endswith(".json")]
    with ThreadPoolExecutor(READERS) as threads:
        found = [
            _deployment(key, data) for key, data in zip(keys, threads.map(objects.read, keys), strict=True)
        ]
    return [deployment for deployment in found if deployment is not None]


def use_of(deployment: Deployment, *, serves: bool) -> Use:
    """Return in words that a deployment needs a version: because it serves it, or may go back to it."""
    who = f"stage {deployment.stage} of {deployment.pipeline} on {deployment.target} (from {deployment.host})"
    if serves:
        return Use(f"{who} serves it", "release another version there, or `shipctl down`")
    return Use(
        f"{who} may go back to it", "release newer versions there until it does not, or `shipctl down`"
    )


def _deployment(key: str, data: bytes | None) -> Deployment | None:
    if data is None:  # stopped since the keys were listed
        return None
    try:
        found = json.loads(data)
        return Deployment(**{name: found[name] for name in Deployment.model_fields})
    except (ValueError, TypeError, KeyError) as exc:
        message = (
            f"cannot read {key} in the store, so nobody knows what that deployment needs; apply its spec again, or "
            "remove it if there is no such deployment"
        )
        raise StoreError(message) from exc
