"""The record of a release, as the one process keeps it that drives the release.

Others may write beside it that they want it aborted. Whoever finds anything else changed has been overtaken, and stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipctl.errors import LockedError, StoreError
from shipctl.release.records import AbortWish, Records, ReleaseRecord
from shipctl.stages.base import Phase

if TYPE_CHECKING:
    from shipctl.engine.place import Place

_ATTEMPTS = 20
"""Times that a write is tried before which somebody else has written."""


class Keeper:
    """The records of one release stage on one target, while this process drives the last one."""

    def __init__(self, place: Place, records: Records, etag: str) -> None:
        """``records`` were loaded with ``etag``."""
        self._place = place
        self._records = records
        self._etag = etag

    @property
    def records(self) -> Records:
        """The records, as this process knows them."""
        return self._records

    def wish(self, number: int) -> AbortWish | None:
        """Return that somebody wants release ``number`` aborted, as the last look found; None if nobody does."""
        wish = self._records.abort
        return wish if wish is not None and wish.number == number else None

    def look(self, version: str) -> None:
        """Look whether the records are still as this process has left them, but for what is wished.

        :raises LockedError: if another one has taken over ``version``
        """
        records, etag = self._place.records.load()
        if etag == self._etag:
            return
        if _last(records) == _last(self._records):
            self._records, self._etag = records, etag
            return
        latest = records.latest
        now = f"it is {latest.phase} by run {latest.run} now" if latest is not None else "its record is gone"
        message = (
            f"another process has taken over what {self._place.node.id} releases on {self._place.label} while this "
            f"one drove {version}: {now}. This one stops here and touches nothing more; see `shipctl status`"
        )
        raise LockedError(message)

    def save(self, record: ReleaseRecord) -> None:
        """Write the record.

        :raises LockedError: if another process has written since
        :raises StoreError: if it cannot be written
        """
        for attempt in range(1, _ATTEMPTS + 1):
            self.look(record.version)
            records = _left(self._records.put(record), record)
            try:
                self._etag = self._place.records.save(records, self._etag)
            except StoreError:
                if attempt == _ATTEMPTS or self._place.records.load()[1] == self._etag:
                    raise
            else:
                self._records = records
                return


def _last(records: Records) -> str:
    """Return what only its driver writes; as JSON, since a list that was read is no tuple that was written."""
    latest = records.latest
    return latest.model_dump_json() if latest is not None else ""


def _left(records: Records, record: ReleaseRecord) -> Records:
    """Mark what a rollback has left: in the same write that completes it, or a kill between the two loses it."""
    if record.intent != "rollback" or record.phase is not Phase.DONE:
        return records
    left = [
        item
        for item in records.records
        if item.phase is Phase.DONE
        and item.number < record.number
        and not item.rolled_back
        and item.revision != record.revision
    ]
    gone = [item.model_copy(update={"rolled_back": True, "updated": record.updated}) for item in left[-1:]]
    return records.put(gone[0]) if gone else records
