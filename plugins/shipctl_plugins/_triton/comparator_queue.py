"""Comparing copies of requests: they wait in a queue, both revisions are asked, and what came of it is written down.

The stable revision is asked first: what it fails itself is no evidence of anything, and the candidate is spared it.
The candidate then has a multiple of the time that the stable one took, so that one which hangs is found soon.

Memory is bounded: by bytes for what is read and queued, by size for each answer. What does not fit is counted and
dropped.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from pydantic import Field

from shipctl.records import Record
from shipctl.release.router import Backend
from shipctl_plugins._triton.comparator_arms import Arm, ArmError, Copy, SkippedError
from shipctl_plugins._triton.comparator_log import Line, Log
from shipctl_plugins._triton.tensor_comparison import compare

QUEUED = 256
"""Copies that wait at most."""
BUDGET = 64 * 1024 * 1024
"""Bytes of bodies that are read, wait, or are being asked at most."""
SLOWER = 10.0
"""Times the stable revision's time that the candidate has for its answer."""
LEAST_S = 5.0
"""Seconds that it has in any case."""


class Pair(Record):
    """What is compared."""

    stable: tuple[Backend, ...] = Field(min_length=1, description="Replicas of the stable revision.")
    candidate: tuple[Backend, ...] = Field(min_length=1, description="Replicas of the candidate.")
    stable_revision: str = Field(description="Its digest, for the log.")
    candidate_revision: str = Field(description="The candidate's.")
    timeout: float = Field(gt=0, description="Seconds that an answer may take.")


class Budget:
    """Bytes that may be held at once."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Take some, and say whether there were so many."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        """Give some back."""
        with self._lock:
            self._left += count


class Asking:
    """Asks both of a pair, and compares."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.names = {"stable": pair.stable_revision, "candidate": pair.candidate_revision}
        self._stable, self._candidate = Arm(pair.stable), Arm(pair.candidate)

    def compared(self, copy: Copy) -> Line:
        """Return what came of one copy."""
        found: dict[str, Any] = {"protocol": copy.protocol, **self.names}
        try:
            stable = self._stable.ask(copy, self.pair.timeout, others=True)
        except ArmError as error:
            return Line(time=time.time(), error_stable=str(error), **found)
        found["seconds_stable"] = stable.seconds
        limit = min(self.pair.timeout, max(LEAST_S, SLOWER * stable.seconds))
        try:
            candidate = self._candidate.ask(copy, limit, others=False)
        except ArmError as error:
            return Line(time=time.time(), error_candidate=str(error), **found)
        difference = compare(stable.outputs, candidate.outputs, copy.classified)
        return Line(
            time=time.time(),
            ok=True,
            seconds_candidate=candidate.seconds,
            **found,
            **difference.__dict__,
        )


class Comparator:
    """The queue between those who take copies and those who ask."""

    def __init__(self, pair: Pair | None, log: Log, budget: int = BUDGET) -> None:
        """Without a ``pair`` copies are skipped until :meth:`turn_to` names one; ``budget`` is in bytes."""
        self.log = log
        self.budget = Budget(budget)
        self._asking = Asking(pair) if pair is not None else None
        self._copies: queue.Queue[tuple[Copy, int]] = queue.Queue(QUEUED)
        self._aside = {"dropped": 0, "skipped": 0}
        self._lock = threading.Lock()

    @property
    def pair(self) -> Pair | None:
        """What is compared."""
        return self._asking.pair if self._asking is not None else None

    def turn_to(self, pair: Pair) -> None:
        """Compare these from now on, with the copies that wait already, too."""
        if pair != self.pair:
            self.tell()
            self._asking = Asking(pair)

    def offer(self, made: Any, size: int) -> None:
        """Queue what ``made`` returns; ``size`` bytes of the budget were taken for it, to be given back in the end."""
        try:
            self._copies.put_nowait((made(), size))
        except (SkippedError, queue.Full) as error:
            self.budget.give(size)
            self.count("skipped" if isinstance(error, SkippedError) else "dropped")

    def count(self, kind: str) -> None:
        """Count a copy that is not compared."""
        with self._lock:
            self._aside[kind] += 1

    def tell(self) -> None:
        """Write down what was not compared."""
        with self._lock:
            aside = {kind: count for kind, count in self._aside.items() if count}
            self._aside = dict.fromkeys(self._aside, 0)
        if aside:
            names = self._asking.names if self._asking is not None else {}
            self.log.write(Line(time=time.time(), **names, **aside))

    def work(self) -> None:
        """Ask one copy after another, for ever."""
        while True:
            copy, size = self._copies.get()
            asking = self._asking
            try:
                if asking is None:
                    self.count("skipped")
                else:
                    self.log.write(asking.compared(copy))
            finally:
                self.budget.give(size)
