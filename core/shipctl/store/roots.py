"""What in a store is referred to: by versions in the registry, by targets, by publications that are under way.

Whatever cannot be read might refer to anything. So one unreadable root stops a collection, which then names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import ValidationError

from shipctl.errors import ShipctlError, StoreError
from shipctl.store.deployments import DEPLOYMENTS
from shipctl.store.leases import LEASES, LIFETIME, LeaseRecord
from shipctl.store.log import Heads
from shipctl.store.model_reading import ModelReader
from shipctl.store.objects import ObjectInfo, ObjectStore

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass
class Roots:
    """Digests that must stay, and what was counted on the way."""

    manifests: dict[str, str] = field(default_factory=dict)
    """Artifacts that have to be in the store, and what needs them."""
    wanted: set[str] = field(default_factory=set)
    """Artifacts that have to stay where they are in the store."""
    files: set[str] = field(default_factory=set)
    versions: int = 0
    deployments: int = 0
    leases: int = 0
    expired: list[ObjectInfo] = field(default_factory=list)
    """Leases whose owners are gone."""


def refuse(objects: ObjectStore, what: str, reason: object) -> NoReturn:
    """Give up before anything is deleted.

    :raises StoreError: always
    """
    message = f"nothing was deleted from {objects.uri}: it cannot be told what {what} needs: {reason}"
    raise StoreError(message)


def read_roots(
    objects: ObjectStore, *, extra: Iterable[str], now: float, keep_retired: float, heads: Heads | None = None
) -> Roots:
    """Return everything that is referred to.

    :raises StoreError: if one of those who refer cannot be read
    """
    roots = Roots()
    # Leases first: a publication that is over when they are read has written what it was for.
    _add_leases(roots, objects, now)
    _add_versions(roots, objects, now - keep_retired, heads)
    _add_deployments(roots, objects)
    for digest in extra:
        roots.files.add(digest)
        roots.wanted.add(digest)
    return roots


def _add_leases(roots: Roots, objects: ObjectStore, now: float) -> None:
    for info in objects.list(LEASES):
        body = objects.read(info.key)
        if body is None:  # over since they were listed
            continue
        try:
            lease = LeaseRecord.model_validate_json(body)
        except ValidationError as exc:
            if info.modified + LIFETIME < now:
                roots.expired.append(info)
                continue
            refuse(objects, info.key, f"{exc.error_count()} errors; wait a quarter of an hour, it runs out")
        if info.modified + lease.lifetime < now:
            roots.expired.append(info)
            continue
        roots.leases += 1
        roots.files.update(lease.files)
        roots.wanted.update(lease.manifests)


def _add_versions(roots: Roots, objects: ObjectStore, retired_before: float, heads: Heads | None) -> None:
    try:
        states = ModelReader(objects, heads=heads).states()
    except ShipctlError as exc:
        refuse(objects, "the registry", exc)
    for name, state in states.items():
        named = {*state.aliases.values(), *(arm.version for arm in (state.ab.arms if state.ab else ()))}
        for version, known in state.versions.items():
            if known.retired is None or version in named:
                roots.versions += 1
                roots.manifests[known.digest] = f"{name}@{version}"
            elif known.retired >= retired_before:
                roots.wanted.add(known.digest)


def _add_deployments(roots: Roots, objects: ObjectStore) -> None:
    for info in objects.list(f"{DEPLOYMENTS}/"):
        body = objects.read(info.key)
        if body is None:  # stopped since they were listed
            continue
        try:
            found = json.loads(body)
            found = found if isinstance(found, dict) else {}
            files = _digests("files", found.get("files"))
            manifests = _digests("manifests", found.get("manifests"))
            serving = _digests("serving", found.get("serving", []))
        except ValueError as exc:
            refuse(objects, info.key, f"{exc}; if that target is gone, remove the object")
        roots.deployments += 1
        roots.files |= files
        # A target may have got an artifact that nobody published; then its files are all that there is.
        roots.wanted |= manifests | serving


def _digests(name: str, value: Any) -> set[str]:
    if not isinstance(value, list) or not all(
        isinstance(item, str) and _DIGEST.fullmatch(item) for item in value
    ):
        message = f"its {name} are no list of digests"
        raise ValueError(message)
    return set(value)


def files_of_manifest(manifest: dict[str, Any]) -> set[str]:
    """Return the digests of the files that a manifest lists.

    :raises ValueError: if it does not list them as shipctl does
    """
    files = manifest.get("files")
    entries = files if isinstance(files, list) else [None]
    return _digests("files", [entry.get("sha256") if isinstance(entry, dict) else None for entry in entries])


def files_in(value: Any) -> set[str]:
    """Return every digest below the key `sha256` in JSON of any form, such as that of another version of shipctl."""
    if isinstance(value, dict):
        own = value.get("sha256")
        found = {own} if isinstance(own, str) else set()
        return found.union(*map(files_in, value.values()))
    return set().union(*map(files_in, value)) if isinstance(value, list) else set()
