"""Waits for a release that another process drives, after asking that process to abort it where it is in the way.

The other process may be one of this project, which holds the project's lock, or run on another machine, where only
the target's records are shared. Its name stands in the record, so that one that has died is not waited for.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from shipctl.engine.aborting import ask
from shipctl.engine.locks import project_lock
from shipctl.errors import LockedError
from shipctl.processes import has_ended, own_name
from shipctl.release.records import AbortWish, ReleaseRecord
from shipctl.release.target import LEASE_SECONDS

if TYPE_CHECKING:
    from shipctl.engine.project import Project
    from shipctl.engine.release_view import ReleaseView

IfRunning = Literal["supersede", "queue", "refuse"]
"""What to do about a release that another process drives: have it aborted, wait for its end, or do nothing."""
Wants = Callable[[ReleaseRecord], AbortWish | None]
"""Says why a release is in the way; None if it is to be waited for."""
POLL = 0.5
"""Seconds between two looks."""
SILENCE = LEASE_SECONDS + 5.0
"""Seconds without a word after which a process of another machine counts as gone: its lease has run out by then."""
LINGER = 60.0
"""Seconds that a process may take to end after the release that it drove."""


def is_driven(record: ReleaseRecord) -> bool:
    """Whether another process takes the steps of a release, as far as its name tells."""
    return bool(record.driver) and record.driver != own_name() and not has_ended(record.driver)


def driver_of(record: ReleaseRecord) -> str:
    """Return who drives a release, for a person."""
    node, _, rest = record.driver.partition(":")
    return f"driven by {record.user}@{node} (process {rest.partition(':')[0]})"


def _is_here(record: ReleaseRecord) -> bool:
    """Whether the process that drives a release is one of this machine, where it shows whether it lives."""
    return record.driver.partition(":")[0] == platform.node()


class StandBy:
    """What a process does about a release that another one drives on its target: it asks, tells, and waits."""

    def __init__(
        self,
        release: ReleaseView,
        wants: Wants,
        say: Callable[[str], None],
        *,
        if_running: IfRunning = "supersede",
    ) -> None:
        self.release = release
        self.asked: ReleaseRecord | None = None
        """The release that the other process was asked to abort, as it stood then."""
        self._wants = wants
        self._say = say
        self._if_running = if_running
        self._began = time.time()
        self.followed: ReleaseRecord | None = None
        """The release that was waited for, as it stood when it was looked at last."""
        self._changed = 0.0
        self._deadline: float | None = None
        self._told = ""

    def look(self, who: str = "") -> bool:
        """Ask and tell what there is; return whether another process still drives a release.

        ``who`` says which process that is, where it is known from elsewhere.

        :raises LockedError: if it is not to be waited for, or does not do what it is asked
        """
        record = self.release.under_way()
        if record is None or not self._lives(record):
            self.tell_end()
            return False
        if self.followed is None or self.followed.number != record.number:
            self._meet(record, who or driver_of(record))
        elif record != self.followed:
            self._changed = time.monotonic()
            if self._if_running == "refuse":
                raise self._refusal(record, who or driver_of(record))
        self.followed = record
        self._tell(record)
        if self._deadline is not None and time.monotonic() > self._deadline:
            message = (
                f"{who or driver_of(record)}; it was asked to abort release {record.number} of {record.version}, "
                f"which is {record.phase} still: look for that process, and end it"
            )
            raise LockedError(message)
        return True

    def _lives(self, record: ReleaseRecord) -> bool:
        """Whether somebody drives it; one on another machine who says nothing has lost his lease, at the latest."""
        if not is_driven(record):
            return False
        known = self.followed is not None and self.followed == record
        return _is_here(record) or not known or time.monotonic() - self._changed < SILENCE

    def _meet(self, record: ReleaseRecord, who: str) -> None:
        """Decide about a release, and say so."""
        self._changed = time.monotonic()
        self._deadline = None
        if self._if_running == "refuse":
            if _is_here(record):
                raise self._refusal(record, who)
            self._say(f"{who}; looking for {SILENCE:g} s whether that goes on")
            return
        wish = self._wants(record) if self._if_running == "supersede" else None
        if wish is None:
            self._say(
                f"{who}; waiting for release {record.number} of {record.version}, which is {record.phase}"
            )
            return
        if self.followed is not None and record.started > self._began:
            message = (
                f"{who}; release {record.number} of {record.version} was begun after this command, which does not "
                "supersede what is newer; run it again for that"
            )
            raise LockedError(message)
        what = f" for {wish.newer}" if wish.newer is not None else ""
        ask(self.release.store, wish)
        self._say(f"{who}; asking that process to abort release {record.number}{what}")
        self.asked = record
        self._deadline = time.monotonic() + self.release.patience(record.phase)

    def _refusal(self, record: ReleaseRecord, who: str) -> LockedError:
        what = f"it releases {record.version} to {self.release.label}, which is {record.phase}"
        advice = "wait for it with `--if-running queue`, or end it with `shipctl abort`"
        return LockedError(f"{who}; {what}; {advice}")

    def tell_end(self) -> None:
        """Tell how the release ended that was waited for."""
        followed = self.followed
        if followed is None:
            return
        numbered = (item for item in self.release.records().records if item.number == followed.number)
        self._tell(next(numbered, followed))

    def _tell(self, record: ReleaseRecord) -> None:
        where = self.release.label
        line = f"{record.version} ({record.revision[:12]}) {record.phase} on {where}: {record.message}"
        known = re.sub(r"[0-9.]+", "#", line)  # seconds that pass are no news
        if known != self._told and record.message:
            self._say(line)
            self._told = known


@contextmanager
def behind_lock(
    project: Project, command: str, timeout: float, standing: Sequence[StandBy]
) -> Iterator[None]:
    """Hold the project's lock; what another process releases meanwhile is waited for as ``standing`` say.

    ``timeout`` is how many seconds another run may be waited for. With 0, that is none, but for a release in the way:
    that is waited for as long as it takes.

    :raises LockedError: if the lock is not free by then
    """
    path = project.state / "lock"
    began = time.monotonic()
    deadline = began + timeout
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(project_lock(path, command, 0.0))
                break
            except LockedError as exc:
                who = str(exc).partition(";")[0]
                found = [item.look(who) for item in standing]
                if any(found) and not timeout:
                    deadline = time.monotonic() + LINGER
                if time.monotonic() >= deadline:
                    raise
            time.sleep(POLL if standing else 0.1)
        for item in standing:
            item.tell_end()
        yield
