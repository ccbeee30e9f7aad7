"""Metric provider `access-log`: every request that the door has seen, one by one, from its access log.

A request belongs to the revision that it was meant for, whoever answered it. It is an error if it failed (see
:attr:`~shipctl_plugins._envoy.access_log.Entry.failed`), if whoever asked left without an answer, or if another
revision had to answer: so the retries of a candidate that died do not look like its successes. It belongs to the window
in which it ended. Durations are those of requests that succeeded; one that was refused (status 4xx) has none, because
refusing is quick.

The log is read as it grows, and only what lies in the window of the last query is remembered.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field

from shipctl.errors import StageError
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl_plugins._envoy.access_log import FLUSH_MS, KEPT, Entry, arm_of
from shipctl_plugins._envoy.config import memo_of
from shipctl_plugins._metrics.answers import RAW_KEPT
from shipctl_plugins._metrics.tail import Tail
from shipctl_plugins._metrics.web import excerpt

LOG = "access.jsonl"
ROUTES = "routes.json"
"""Where the door has written beside its log who listens where."""
LAG = 1.0
"""Seconds after which the log has what happened: it is written every :data:`FLUSH_MS`, on a machine that is busy."""
PROTOCOLS = ("http", "grpc")
_UNORDERED = 5.0
"""Seconds by which lines may be out of order: more than enough, and cheap."""
_REFUSED, _SUCCEEDED = range(400, 500), range(200, 300)
_MOST_BROKEN = 0.5
assert FLUSH_MS / 1000 < LAG  # noqa: S101  (two constants that belong together)


class AccessLogOptions(MetricOptions):
    """Which requests count."""

    segment: str | None = Field(
        default=None, description="Only requests of this segment, as the strategy names it."
    )
    refusals: bool = Field(
        default=False,
        description="Whether requests that were refused (status 4xx, INVALID_ARGUMENT) are errors too.",
    )
    path: Path | None = Field(default=None, description="The log's file, if it is not where the target says.")


class Request(NamedTuple):
    """What is remembered of one request."""

    end: float
    duration: float | None
    """None if it did not succeed."""
    wrong: str | None
    """Why it counts as an error, in a word; None if it does not."""
    unknown: bool
    """Whether a host answered of which nobody has said whose it is."""


@dataclass(frozen=True)
class _Broken:
    """A line that cannot be read, in the place where it stood."""

    end: float


class AccessLog(MetricProvider):
    """Count the requests in the door's access log."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = AccessLogOptions
    options: AccessLogOptions

    def __init__(
        self, options: AccessLogOptions, ctx: MetricContext, now: Callable[[], float] = time.time
    ) -> None:
        """``now`` replaces the clock, for tests."""
        super().__init__(options, ctx)
        self._now = now
        self._owners = owners(ctx)
        self._tail: Tail | None = None
        self._requests: dict[str, list[Request]] = {}
        self._broken: list[_Broken] = []
        self._from = 0.0
        """From when on everything that was read is remembered."""

    def query(self, revision: str, since: float, until: float) -> Samples:
        """Return what the log says of one window. It should have ended :data:`LAG` seconds ago.

        :raises StageError: if there is no log, it cannot be read, or nobody says which hosts are the revision's
        """
        arm = arm_of(revision)
        log = self._log()
        self._owners |= owners_at_door(log)
        if arm not in self._owners.values():
            message = (
                f"neither the door nor the target says where the replicas of revision {arm} listen; "
                "what others had to answer for it could not be told"
            )
            raise StageError(message)
        tail = self._read(log, since)
        found = [request for request in self._requests.get(arm, ()) if since <= request.end < until]
        found.sort(key=lambda request: request.end)
        broken = sum(since <= each.end < until for each in self._broken)
        timed = [(item.duration, item.end) for item in found if item.duration is not None]
        wrong = Counter(request.wrong for request in found if request.wrong is not None)
        return Samples(
            revision=revision,
            since=since,
            until=until,
            requests=len(found),
            errors=sum(wrong.values()),
            durations=tuple(duration for duration, _ in timed),
            times=tuple(end for _, end in timed),
            failed=tuple(request.end for request in found if request.wrong is not None),
            coverage=self._coverage(tail, found, broken, since, until),
            query=f"requests for {arm} that ended from {since:.3f} to {until:.3f} in {tail.log}"
            + (f", segment {self.options.segment}" if self.options.segment else ""),
            raw=excerpt(
                ", ".join(
                    [f"{len(found)} requests", *(f"{count} × {why}" for why, count in wrong.most_common())]
                ),
                RAW_KEPT,
            ),
        )

    def _log(self) -> Path:
        if self.options.path is not None:
            return self.ctx.project / self.options.path.expanduser()
        if self.ctx.logs is None:
            raise StageError("the target keeps no access log on this machine; use another metric provider")
        return self.ctx.logs / LOG if self.ctx.logs.is_dir() else self.ctx.logs

    def _read(self, log: Path, since: float) -> Tail:
        """Read on, and forget what lies before the window; a window before that makes it read anew."""
        tail = self._tail
        if tail is not None and since < self._from:
            tail.close()
            tail = None
        if tail is None:
            tail, self._requests, self._broken = Tail(log, KEPT, _end_of, self._now), {}, []
            self._tail = tail
        latest = since
        read = broken = 0
        for line in tail.lines(since - _UNORDERED):
            entry = Entry.parse(line)
            read += 1
            if entry is None:
                broken += 1
                self._broken.append(_Broken(latest))
                continue
            latest = entry.end
            self._remember(entry)
        if broken > read * _MOST_BROKEN:
            self._tail = None
            tail.close()
            raise StageError(
                f"{broken} of {read} lines of {tail.log} are not those of an access log of the door"
            )
        self._from = since
        for arm, requests in self._requests.items():
            self._requests[arm] = [request for request in requests if request.end >= since]
        self._broken = [each for each in self._broken if each.end >= since]
        return tail

    def _remember(self, entry: Entry) -> None:
        if entry.arm is None or not entry.inference:
            return
        if self.options.segment is not None and entry.segment != self.options.segment:
            return
        owner = None if entry.host is None else self._owners.get(entry.host)
        wrong = self._wrong(entry, owner)
        succeeded = wrong is None and entry.code in _SUCCEEDED and not entry.grpc_status
        unknown = wrong is None and owner is None
        request = Request(entry.end, entry.duration if succeeded else None, wrong, unknown)
        self._requests.setdefault(entry.arm, []).append(request)

    def _wrong(self, entry: Entry, owner: str | None) -> str | None:
        """Return in a word why a request counts as an error."""
        status = f"status {entry.code}" + (f" gRPC {entry.grpc_status}" if entry.grpc_status else "")
        flags = f" {entry.flags}" if entry.flags else ""
        if entry.failed:
            return status + flags
        left = "DC" in entry.flags.split(",")
        if entry.code == 0 or (entry.duration is None and not left):
            return f"no answer{flags}"
        if owner is not None and owner != entry.arm:
            return f"answered by {owner}"
        if owner is None and len(set(entry.hosts_attempted)) > 1:
            return "answered by another host"
        if self.options.refusals and (entry.code in _REFUSED or entry.grpc_status):
            return status
        return None

    def _coverage(
        self, tail: Tail, found: Iterable[Request], broken: int, since: float, until: float
    ) -> float:
        """Return the share of the window that the log has, less what cannot be told of what it has."""
        if until <= since:
            return 0.0
        begin = max(tail.first() or since, tail.lost or since, since)
        end = min(self._now() - LAG, until)
        share = min(1.0, max(0.0, end - begin) / (until - since))
        requests = list(found)
        told = sum(not request.unknown for request in requests)
        total = len(requests) + broken
        return share * (told / total if total else 1.0)


def owners(ctx: MetricContext) -> dict[str, str]:
    """Return host:port to the revision (as the log names it) whose replica listens there."""
    found = {}
    for name, address in ctx.endpoints.items():
        protocol, _, rest = name.partition("/")
        arm, _, replica = rest.partition("/")
        if protocol in PROTOCOLS and replica:
            found[(address.partition("://")[2] or address).rstrip("/")] = arm
    return found


def owners_at_door(log: Path) -> dict[str, str]:
    """Return the same as :func:`owners` as the door that writes ``log`` was told last; empty where it is not ours."""
    try:
        document = json.loads(log.with_name(ROUTES).read_text())
        table = memo_of(document["resources"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {
        address: arm_of(revision)
        for revision, replicas in table.backends.items()
        for replica in replicas
        for address in (replica.http, replica.grpc)
    }


def _end_of(line: bytes) -> float | None:
    entry = Entry.parse(line)
    return None if entry is None else entry.end
