"""The log of a real door: what a candidate that dies leaves in it, and how soon."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shipctl.release.metrics import MetricContext, Samples
from shipctl.release.router import Backend
from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy.proxy import Proxy
from shipctl_plugins.metrics.access_log import LAG, AccessLog, AccessLogOptions
from support_metrics import CANDIDATE, STABLE, Web, serving

pytestmark = [pytest.mark.triton, pytest.mark.slow]  # Envoy's wheel exists where Triton's does


@dataclass
class Client:
    """Asks as fast as a stopwatch allows, and remembers what it got."""

    port: int
    statuses: list[int] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.done.wait(0.004):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("POST", "/v2/models/m/infer", b"{}")
            answer = connection.getresponse()
            answer.read()  # who leaves before the end has no duration
            self.statuses.append(answer.status)
            connection.close()


@dataclass
class Door:
    """A door before a stable revision and a candidate, half and half."""

    proxy: Proxy
    candidate: ExitStack
    client: Client

    def provider(self) -> AccessLog:
        ctx = MetricContext(pipeline="p", model="m", versions={}, logs=self.proxy.folder)
        return AccessLog(AccessLogOptions(), ctx)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    proxy = Proxy(tmp_path / "door", log=lambda _: None)
    with ExitStack() as stack:
        candidate = stack.enter_context(ExitStack())
        webs = {
            STABLE: stack.enter_context(serving(Web(answer=lambda _: (200, "{}")))),
            CANDIDATE: candidate.enter_context(serving(Web(answer=lambda _: (200, "{}")))),
        }
        backends = {
            name: (Backend(name=name[:3], http=f"127.0.0.1:{web.port}", grpc=f"127.0.0.1:{web.port}"),)
            for name, web in webs.items()
        }
        proxy.ensure()
        stack.callback(proxy.stop)
        epoch = proxy.lease.acquire("test", 300)
        traffic = Traffic(weights={STABLE: 50, CANDIDATE: 50}, fallback=STABLE)
        proxy.set(traffic, backends, etag=proxy.get().etag, epoch=epoch)
        ports = proxy.ports
        assert ports is not None
        client = Client(ports.http)
        thread = threading.Thread(target=client.run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(client.done.set)
        time.sleep(1.5)
        yield Door(proxy, candidate, client)


def measured(provider: AccessLog, seconds: float = 2.0) -> tuple[Samples, Samples]:
    since = time.time()
    time.sleep(seconds)
    until = time.time()
    time.sleep(LAG)
    return provider.query(STABLE, since, until), provider.query(CANDIDATE, since, until)


def test_a_candidate_killed_at_half_the_traffic_is_not_healed_by_retries(door: Door) -> None:
    """Clients see next to nothing of it, and its numbers are not those of the one that stands in."""
    provider = door.provider()
    stable, candidate = measured(provider)
    for each in (stable, candidate):
        assert each.requests > 15
        assert (each.errors, each.coverage) == (0, 1.0)
        assert each.durations is not None
        assert len(each.durations) == each.requests
        assert 0 < min(each.durations) < max(each.durations) < 1
    before = len(door.client.statuses)
    door.candidate.close()
    time.sleep(0.5)  # what it had begun to answer
    stable, candidate = measured(provider)
    failed = [status for status in door.client.statuses[before:] if status != 200]
    assert candidate.requests > 15
    assert candidate.errors == candidate.requests
    assert candidate.durations == ()
    assert "answered by aaaaaaaaaaaa" in candidate.raw
    assert stable.requests > 15
    assert stable.errors == 0
    assert len(failed) <= 2


def test_a_rotation_by_the_supervisor_loses_nothing(door: Door) -> None:
    """Every request that got its answer is in one window, and in one only."""
    provider = door.provider()
    log = door.proxy.access_log
    since = time.time()
    first = len(door.client.statuses)
    log.rename(log.with_name(f"{log.name}.1"))
    time.sleep(0.5)
    connection = http.client.HTTPConnection(door.proxy.endpoints["admin"].partition("://")[2], timeout=5)
    connection.request("POST", "/reopen_logs")
    assert connection.getresponse().status == 200
    connection.close()
    time.sleep(1)
    until, last = time.time(), len(door.client.statuses)
    time.sleep(LAG)
    half = (since + until) / 2
    counted = [
        provider.query(revision, begin, end).requests
        for begin, end in ((since, half), (half, until))
        for revision in (STABLE, CANDIDATE)
    ]
    assert sum(counted) == pytest.approx(last - first, abs=2)
