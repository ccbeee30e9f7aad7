"""A word from one process to another: that the release which it drives is to be aborted.

It stands in the records, which both of them see wherever they are kept, beside the number of the release that is
meant; whoever drives that one hears it between two steps and while it waits, and it is gone when the release ends.
"""

from __future__ import annotations

import time

from shipctl.errors import StoreError
from shipctl.release.records import AbortWish, RecordStore

ABORTED = "aborted: "
"""Begins the message of a release that a person, or something newer, has aborted."""
SUPERSEDED = f"{ABORTED}superseded"
"""Begins the message of one that something newer has aborted."""
_SECONDS = 5.0
"""How long a write is tried again that another process was quicker than."""
_DELAY = 0.05
"""Seconds between two tries."""


def ask(store: RecordStore, wish: AbortWish) -> None:
    """Ask whoever drives a release to abort it; nothing is done once that has ended.

    :raises StoreError: if the records cannot be read or written
    """
    deadline = time.monotonic() + _SECONDS
    while True:
        records, etag = store.load()
        latest = records.latest
        if latest is None or latest.number != wish.number or latest.phase.is_final:
            return
        try:
            store.save(records.model_copy(update={"abort": wish}), etag)
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_DELAY)  # the driver writes after each step
        else:
            return
