"""The lease of a target, as whoever drives a release takes and renews it before each of its steps."""

from __future__ import annotations

from typing import Protocol

from shipctl.errors import LockedError
from shipctl.processes import own_name
from shipctl.release.target import LEASE_SECONDS, StaleEpochError


class Leased(Protocol):
    """What has a lease; see :class:`shipctl.release.target.Target`."""

    def acquire(self, holder: str) -> int:
        """Take or renew it."""

    def release(self, epoch: int) -> None:
        """Give it back."""


def held(target: Leased, before: int) -> int:
    """Take the lease, or renew it, and return its epoch; ``before`` is that of the last time, 0 for none.

    :raises LockedError: if another one holds it, and we have not had it
    :raises StaleEpochError: if we had it, and it has been somebody else's since
    """
    try:
        epoch = target.acquire(own_name())
    except LockedError as exc:
        if before:  # we had it, slept, and somebody else has it now
            raise StaleEpochError(str(exc)) from exc
        raise
    if before and epoch != before:
        target.release(epoch)
        message = (
            "this process does not hold the target any more: its lease was removed, or was somebody else's "
            f"meanwhile, who may take it once it is not renewed for {LEASE_SECONDS:g} s. It does nothing more; "
            "look with `shipctl status`, and apply again to go on"
        )
        raise StaleEpochError(message)
    return epoch
