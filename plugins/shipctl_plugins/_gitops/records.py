"""Release records on this machine, together with what the repository says was rolled back by whomever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from shipctl.release.records import FileRecords, Records, ReleaseRecord
from shipctl.stages.base import Phase
from shipctl_plugins._gitops.tree import Pin


class PinnedRecords:
    """A file's records. What is pinned in the repository counts as rolled back here, too, and is refused as such."""

    def __init__(self, kept: FileRecords, pins: Callable[[], Mapping[str, Pin]]) -> None:
        """``pins`` asks the repository; it is called once, when the records are first read."""
        self._kept = kept
        self._ask = pins

    @cached_property
    def _pins(self) -> Mapping[str, Pin]:
        return self._ask()

    def load(self) -> tuple[Records, str]:
        """Return the records and an etag for :meth:`save`.

        :raises StoreError: if the file is damaged
        :raises UnavailableError: if the repository cannot be reached
        """
        records, etag = self._kept.load()
        if records.latest is not None and not records.latest.phase.is_final:
            return records, etag
        for revision, pin in self._pins.items():
            last = next((item for item in reversed(records.records) if item.revision == revision), None)
            if last is not None and (records.was_rolled_back(revision) or last.updated > pin.since):
                continue
            number = records.latest.number + 1 if records.latest is not None else 1
            records = records.put(_rolled_back(revision, pin, number))
        return records, etag

    def save(self, records: Records, etag: str) -> str:
        """Replace the records that were loaded with ``etag`` and return the new etag.

        :raises StoreError: if somebody else has written meanwhile
        """
        return self._kept.save(records, etag)


def _rolled_back(revision: str, pin: Pin, number: int) -> ReleaseRecord:
    return ReleaseRecord(
        number=number,
        revision=revision,
        version=pin.version,
        intent="apply",
        run=pin.run,
        user="somebody",
        phase=Phase.ROLLED_BACK,
        message="rolled back elsewhere, as the repository says",
        started=pin.since,
        updated=pin.since,
    )
