"""Who may act on a target, kept in a file: the lease that every act on this machine is made under.

The file is replaced atomically, and all that read, decide and write do so under one flock(2) beside it, which the
kernel lets go of when its holder dies. Each taking has a number, the epoch, which only grows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import Field, ValidationError

from shipctl.errors import LockedError
from shipctl.processes import has_ended
from shipctl.records import Record
from shipctl.release.target import StaleEpochError
from shipctl.store.files import flocked

WATCHDOG = "watchdog"
"""Who holds a lease that a watchdog has taken."""
LOCK_SECONDS = 5.0
"""How long the file's lock is waited for. A process that was stopped while it held it keeps everybody out."""


class Lease(Record):
    """Who acts, and until when."""

    epoch: int = Field(ge=0, description="The number of this taking; greater than all before.")
    holder: str = Field(description="Who took it; empty once it was given back.")
    expires: float = Field(description="Until when it holds, seconds since the epoch.")

    def valid(self, now: float) -> bool:
        """Whether somebody holds it at ``now``."""
        return bool(self.holder) and now < self.expires


class FileLease:
    """The lease in ``path``. Several processes may use it at once; the clock is this machine's."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self.now = now

    def read(self) -> Lease | None:
        """Return the lease as it stands; None if nobody has ever taken it (or the file is damaged)."""
        with suppress(FileNotFoundError, ValidationError):
            return Lease.model_validate_json(self.path.read_bytes())
        return None

    def acquire(self, holder: str, seconds: float) -> int:
        """Take or renew the lease for ``seconds`` and return its epoch.

        A holder that is a process of this machine which has ended (:func:`shipctl.processes.own_name`) is not waited
        for. The epoch is the same while ``holder`` takes it again and nobody else has in between, also after it
        has run out; else the next one.

        :raises LockedError: while it is another holder's, naming him and how long it still holds
        """
        with self._lock():
            lease, now = self._current(), self.now()
            if lease.holder == holder:
                epoch = lease.epoch
            elif lease.valid(now) and not has_ended(lease.holder):
                message = (
                    f"{lease.holder} holds the target, for another {lease.expires - now:.0f} s unless it renews that; "
                    "wait for it, or run `shipctl abort` to end its release"
                )
                raise LockedError(message)
            else:
                epoch = lease.epoch + 1
            self._write(Lease(epoch=epoch, holder=holder, expires=now + seconds))
            return epoch

    def check(self, epoch: int) -> None:
        """Do nothing if ``epoch`` is the newest one; it is 0 where nobody has ever taken the lease.

        :raises StaleEpochError: if somebody has taken the target over since
        """
        lease = self._current()
        if lease.epoch != epoch:
            message = (
                f"{lease.holder or 'somebody else'} has taken the target over (epoch {lease.epoch}, this is {epoch}): "
                "nothing was done; look with `shipctl status` and apply again"
            )
            raise StaleEpochError(message)

    @contextmanager
    def guard(self, epoch: int) -> Iterator[None]:
        """Keep everybody else from taking the lease while the caller acts.

        :raises StaleEpochError: as :meth:`check`, before and after: a watchdog does not wait for one that was
            stopped in here, so what was done in the meantime may have been too late
        :raises LockedError: if the lock is not free within :data:`LOCK_SECONDS`
        """
        with self._lock():
            self.check(epoch)
            yield
            self.check(epoch)

    def release(self, epoch: int) -> None:
        """Give the lease back, if ``epoch`` still is the newest."""
        with self._lock():
            lease = self._current()
            if lease.epoch == epoch and lease.holder:
                self._write(Lease(epoch=epoch, holder="", expires=0.0))

    def take(self, holder: str = WATCHDOG) -> int:
        """Take the lease from whoever let it run out, for no time at all, and return the new epoch.

        :raises LockedError: if it has not run out
        """
        with self._lock():
            lease, now = self._current(), self.now()
            if lease.valid(now):
                message = f"{lease.holder} holds the target, for another {lease.expires - now:.0f} s"
                raise LockedError(message)
            self._write(Lease(epoch=lease.epoch + 1, holder=holder, expires=0.0))
            return lease.epoch + 1

    def _current(self) -> Lease:
        return self.read() or Lease(epoch=0, holder="", expires=0.0)

    def _write(self, lease: Lease) -> None:
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with new.open("w") as file:
            file.write(lease.model_dump_json())
            file.flush()
            os.fsync(file.fileno())  # else a power cut could bring an old epoch back
        new.replace(self.path)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(flocked(self.path.with_suffix(".lock"), LOCK_SECONDS))
            except TimeoutError:
                message = f"another process is acting on the target and does not finish ({self.path})"
                raise LockedError(message) from None
            yield
