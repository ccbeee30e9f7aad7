"""What the targets of this machine need of a store, by their release records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shipctl.records import digest_of
from shipctl.release.records import FileRecords, Records


def local_needs(targets: Path) -> set[str]:
    """Return the digests of artifacts and files that targets serve, are about to serve, or can go back to.

    ``targets`` is the project's folder of targets.

    :raises StoreError: if a record cannot be read
    """
    needed: set[str] = set()
    for path in sorted(targets.glob("*/releases/*/*.json")):
        records = FileRecords(path.parents[2], path.parent.name, path.stem).load()[0]
        for manifest in _manifests(records):
            needed.add(digest_of(manifest))
            needed.update(entry["sha256"] for entry in manifest.get("files", ()))
    return needed


def _manifests(records: Records) -> list[dict[str, Any]]:
    latest = records.latest
    coming = latest if latest is not None and not latest.phase.is_final else None
    kept = (records.stable, coming, *records.way_back())
    return [manifest for item in kept if item is not None for manifest in item.manifests]
