"""Release records in a ConfigMap beside what was released, so that any machine can go on with a release.

A ConfigMap holds 1 MiB (kubernetes.io/docs/concepts/configuration/configmap). Records that come near to that are kept
compressed, and fewer of the finished ones: all of them are in the journal of the run that made them.
"""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from shipctl.errors import StoreError
from shipctl.release.records import Records
from shipctl_plugins._kubernetes.api.connection import ConflictError, Ref
from shipctl_plugins._kubernetes.app import Place, dns_label

PLAIN, PACKED = "records.json", "records.json.gz"
PLAIN_BYTES = 128 << 10
"""Up to so many bytes are kept as text, which `kubectl` shows."""
MOST_BYTES = 900 << 10
"""Bytes that a ConfigMap is given at most; the rest of the 1 MiB is for its names and labels."""


class ConfigMapRecords:
    """Records of one stage in a ConfigMap; nothing is connected before they are asked for."""

    def __init__(self, place: Callable[[], Place], stage: str) -> None:
        self._make_place = place
        self._stage = stage

    @cached_property
    def _place(self) -> Place:
        return self._make_place()

    @property
    def name(self) -> str:
        """What the ConfigMap is called."""
        return f"{self._place.app.records}-{dns_label(self._stage)}"

    def load(self) -> tuple[Records, str]:
        """Return the records and an etag for :meth:`save`.

        :raises StoreError: if they are damaged
        """
        found = self._place.cluster.get(self._ref)
        if found is None:
            return Records(), ""
        try:
            return Records.model_validate_json(_unpacked(found)), found["metadata"]["resourceVersion"]
        except (ValidationError, ValueError, OSError, EOFError, zlib.error) as exc:
            count = f"{exc.error_count()} errors" if isinstance(exc, ValidationError) else type(exc).__name__
            message = (
                f"ConfigMap {self.name} in {self._place.app.namespace} is damaged ({count}); restore it, or remove it "
                "to begin a new history"
            )
            raise StoreError(message) from exc

    def save(self, records: Records, etag: str) -> str:
        """Replace the records that were loaded with ``etag`` and return the new etag.

        :raises StoreError: if somebody else has written meanwhile
        """
        cluster, data = self._place.cluster, _packed(records)
        try:
            if etag:
                written = cluster.patch(self._ref, data, resource_version=etag)
            else:
                mine = {
                    kind: {key: value for key, value in part.items() if value} for kind, part in data.items()
                }
                written = cluster.create(self._place.labelled("ConfigMap", "v1", self.name, **mine))
        except ConflictError as exc:
            message = (
                f"ConfigMap {self.name} in {self._place.app.namespace} was changed by another run; see "
                "`shipctl status`, then run the same command again"
            )
            raise StoreError(message) from exc
        return str(written["metadata"]["resourceVersion"])

    @property
    def _ref(self) -> Ref:
        return Ref("v1", "ConfigMap", self.name)


def _unpacked(found: dict[str, Any]) -> bytes:
    packed = (found.get("binaryData") or {}).get(PACKED)
    if packed is not None:
        return gzip.decompress(base64.b64decode(packed))
    return str((found.get("data") or {}).get(PLAIN, "{}")).encode()


def _packed(records: Records) -> dict[str, dict[str, str | None]]:
    """Return the ConfigMap's content, with the form that it has not set to None."""
    body = records.model_dump_json(indent=1).encode()
    if len(body) <= PLAIN_BYTES:
        return {"data": {PLAIN: body.decode()}, "binaryData": {PACKED: None}}
    packed = gzip.compress(records.model_dump_json().encode(), mtime=0)
    while len(packed) > MOST_BYTES and (fewer := _fewer(records)) != records:
        records = fewer
        packed = gzip.compress(records.model_dump_json().encode(), mtime=0)
    return {"data": {PLAIN: None}, "binaryData": {PACKED: base64.b64encode(packed).decode()}}


def _fewer(records: Records) -> Records:
    """Return the records without the older half of those that are finished and no longer needed."""
    stable, latest = records.stable, records.latest
    needed = {item.number for item in (stable, latest, *records.way_back()[:1]) if item is not None}
    old = [item for item in records.records if item.phase.is_final and item.number not in needed]
    dropped = {item.number for item in old[: (len(old) + 1) // 2]}
    kept = tuple(item for item in records.records if item.number not in dropped)
    return records.model_copy(update={"records": kept})
