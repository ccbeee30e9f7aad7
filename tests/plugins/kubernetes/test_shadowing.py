"""The comparator of a cluster: a process for real, told what to compare and read over HTTP, and what is kept of it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl.release.analysis.shadow import Comparisons, ShadowState, judge_shadow
from shipctl.release.metrics import MetricContext
from shipctl.release.strategy import ShadowOptions
from shipctl.release.target import Candidate, Shift
from shipctl.release.traffic import Mirror, Traffic
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.comparator import RESULTS
from shipctl_plugins._kubernetes.shadowing import Shadowing
from shipctl_plugins._triton.comparator_feed import Feed, Kept
from shipctl_plugins._triton.comparator_log import FILE, Line, Log
from shipctl_plugins._triton.comparator_queue import Comparator
from shipctl_plugins.metrics.comparison import Comparison, ComparisonOptions
from support_bridge_comparator import own_address
from support_cluster import CLUSTER, Kube, wait_for
from support_kubernetes import GATEWAY, MakeTarget, make_target, new, old, prepared, released
from support_metrics import CANDIDATE, STABLE, Asked, Web, serving

__all__ = ["make_target", "new", "old"]

slow = pytest.mark.slow

REQUEST = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}).encode()
SHADOWED = Traffic(weights={STABLE: 100}, fallback=STABLE, mirror=Mirror(percent=100, candidate=CANDIDATE))


def answer(*values: float) -> Callable[[Asked], tuple[int, str]]:
    output = {"name": "y", "shape": [1, len(values)], "datatype": "FP32", "data": list(values)}
    text = json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]})
    return lambda _: (200, text)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]


@dataclass
class Running:
    """The process, and the two whose answers it compares."""

    folder: Path
    stable: Web
    candidate: Web
    host: str = "127.0.0.1"
    ports: tuple[int, ...] = field(default_factory=lambda: tuple(free_ports(3)))
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "shipctl_plugins._kubernetes.comparator"]
        command += ["--app", "shop", "--namespace", "ns", "--folder", str(self.folder), "--host", self.host]
        for name, port in zip(("http", "grpc", "results"), self.ports, strict=True):
            command += [f"--{name}", str(port)]
        for revision, web in ((STABLE, self.stable), (CANDIDATE, self.candidate)):
            command += ["--at", f"{revision}=127.0.0.1:{web.port},127.0.0.1:9"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "the comparator of shop in ns takes copies\n"

    def stop(self) -> float:
        """Return how many seconds it took to end."""
        assert self.process is not None
        begin = time.monotonic()
        self.process.terminate()
        try:
            assert self.process.wait(10) == 0
        finally:
            self.kill()
        return time.monotonic() - begin

    def kill(self) -> None:
        if self.process is not None:
            with self.process as process:
                process.kill()
            self.process = None

    # what a cluster is to the target: Services that are asked through the API server
    def proxy(
        self,
        service: str,
        port: int,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        assert (service, port) == ("shop-comparator", RESULTS)
        return self.asked(self.ports[2], path, method, body, headers)

    def asked(
        self, port: int, path: str, method: str = "POST", body: bytes | None = None, headers: Any = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, port, timeout=10)
        with closing(connection):
            try:
                connection.request(method, path, body, dict(headers or {}))
            except OSError:
                return 503, b"no endpoints available"
            given = connection.getresponse()
            return given.status, given.read()

    def copy(self, count: int = 1, body: bytes = REQUEST) -> None:
        for _ in range(count):
            assert self.asked(self.ports[0], "/v2/models/m/infer", body=body)[0] == 200


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        stable, candidate = (stack.enter_context(serving(Web(answer=answer(1.0, 2.0)))) for _ in range(2))
        running = Running(tmp_path / "there", stable, candidate)
        running.start()
        stack.callback(running.kill)
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def shadowing(running: Running, tmp_path: Path, said: list[str]) -> Shadowing:
    place = Place(running, App("shop", "ns", "shop"))  # type: ignore[arg-type]
    return Shadowing(place, tmp_path / "here", said.append)


def lines(shadowing: Shadowing) -> list[Line]:
    shadowing.fetch()
    return [Line.model_validate_json(line) for line in (shadowing.folder / FILE).read_bytes().splitlines()]


def compared(shadowing: Shadowing, count: int) -> list[Line]:
    def found() -> list[Line]:
        return [line for line in lines(shadowing) if line.protocol is not None]

    wait_for(lambda: len(found()) >= count, what=f"{count} comparisons")
    return found()


@slow
def test_what_it_finds_is_judged_as_where_the_comparator_runs_here(
    running: Running, shadowing: Shadowing
) -> None:
    shadowing.turn_to(STABLE, CANDIDATE)
    since = time.time()
    running.copy(20)
    compared(shadowing, 20)
    running.candidate.answer = answer(1.0, 2.5)
    running.copy(20)
    found = compared(shadowing, 40)
    assert {(line.stable, line.candidate) for line in found} == {(STABLE, CANDIDATE)}
    ctx = MetricContext(pipeline="p", model="m", versions={}, logs=shadowing.folder)
    samples = Comparison(ComparisonOptions(maxRelError=0.1), ctx).query(CANDIDATE, since, time.time())
    counted = Comparisons.model_validate_json(samples.raw)
    assert (counted.compared, counted.differing) == (40, 20)
    _, measurement = judge_shadow(ShadowOptions(comparisons=40), ShadowState(), counted)
    assert (measurement.outcome, measurement.conclusive) == (Outcome.FAIL, True)


@slow
def test_nothing_is_asked_before_it_is_told_what_to_compare(running: Running, shadowing: Shadowing) -> None:
    running.copy()
    head = shadowing.fetch()
    assert (head.stable, head.candidate) == (None, None)
    wait_for(lambda: sum(line.skipped for line in lines(shadowing)) == 1)
    assert running.stable.asked == []
    shadowing.follow(SHADOWED, STABLE)
    head = shadowing.fetch()
    assert (head.stable, head.candidate) == (STABLE, CANDIDATE)
    running.copy()
    compared(shadowing, 1)


@slow
def test_whoever_sends_copies_gives_no_orders(running: Running, shadowing: Shadowing) -> None:
    shadowing.turn_to(STABLE, CANDIDATE)
    order = json.dumps({"stable": CANDIDATE, "candidate": STABLE}).encode()
    assert running.asked(running.ports[0], "/compare", body=order) == (200, b"")
    wait_for(lambda: sum(line.skipped for line in lines(shadowing)) == 1)
    assert shadowing.fetch().stable == STABLE
    assert b"next" not in running.asked(running.ports[0], "/comparisons", "GET")[1]


@slow
@pytest.mark.parametrize("order", [b"{}", b"[]", b"", b'{"stable": "example.com", "candidate": "x"}'])
def test_an_order_that_names_no_revisions_is_refused(running: Running, order: bytes) -> None:
    assert running.asked(running.ports[2], "/compare", body=order)[0] == 400
    assert running.asked(running.ports[2], "/", body=order)[0] == 404
    assert running.asked(running.ports[2], "/", "GET")[0] == 404


@slow
def test_one_that_was_restarted_is_told_again_and_what_is_lost_is_said(
    running: Running, shadowing: Shadowing, said: list[str]
) -> None:
    shadowing.follow(SHADOWED, STABLE)
    running.copy(3)
    compared(shadowing, 3)
    running.stop()
    shadowing.follow(SHADOWED, STABLE)
    shadowing.follow(SHADOWED, STABLE)
    running.start()
    shadowing.follow(SHADOWED, STABLE)
    running.copy(2)
    assert len(compared(shadowing, 5)) == 5
    unread = (
        "comparisons cannot be read: the comparator shop-comparator does not answer (status 503: no endpoints "
        "available); see `kubectl get pods -n ns -l app.kubernetes.io/component=comparator`"
    )
    lost = "shop-comparator was restarted, or not read for too long: some comparisons are lost"
    assert said == [unread, lost]


@slow
def test_nothing_is_read_while_nothing_is_copied(running: Running, shadowing: Shadowing) -> None:
    shadowing.follow(Traffic.only(STABLE), STABLE)
    shadowing.follow(SHADOWED, None)
    assert not shadowing.folder.exists()
    assert running.asked(running.ports[2], "/comparisons", "GET")[0] == 200


@slow
def test_it_ends_soon_and_stays_small(running: Running, shadowing: Shadowing) -> None:
    shadowing.turn_to(STABLE, CANDIDATE)
    running.stable.answer = lambda _: None  # it hangs, and so do those who ask
    for _ in range(20):
        running.copy(body=REQUEST.ljust(8 << 20))
    assert running.process is not None
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    memory = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) >> 10
    assert memory < 192, "MiB, the limit of its pod"
    assert running.stop() < 2


def test_a_target_without_the_comparator_says_what_is_missing(tmp_path: Path) -> None:
    class Nobody:
        def proxy(self, *_: Any, **__: Any) -> tuple[int, bytes]:
            return 503, b'{"message": "no endpoints available for service \\"shop-comparator\\""}'

    place = Place(Nobody(), App("shop", "ns", "shop"))  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"^the comparator shop-comparator does not answer \(status 503: "):
        Shadowing(place, tmp_path).turn_to(STABLE, CANDIDATE)


# -- the log, read elsewhere ----------------------------------------------------------------------------------


def written(log: Log, first: int, count: int) -> None:
    for number in range(first, first + count):
        log.write(Line(time=float(number), candidate=CANDIDATE, protocol="http", ok=True))


def numbers(folder: Path) -> list[int]:
    kept = [folder / f"{FILE}.1", folder / FILE]
    return [
        int(Line.model_validate_json(line).time)
        for path in kept
        if path.exists()
        for line in path.read_bytes().splitlines()
    ]


def a_feed(folder: Path, limit: int = 10_000) -> tuple[Log, Feed]:
    folder.mkdir(exist_ok=True)
    log = Log(folder, limit)
    return log, Feed(Comparator(None, log), log)


def test_each_line_is_kept_once_whoever_reads(tmp_path: Path) -> None:
    log, feed = a_feed(tmp_path / "there")
    first, second = Kept(tmp_path / "here"), Kept(tmp_path / "here")
    for round_ in range(0, 60, 20):
        written(log, round_, 10)
        assert not first.fetch(feed.answer).lost
        written(log, round_ + 10, 10)
        assert not second.fetch(feed.answer).lost
    assert numbers(tmp_path / "here") == list(range(60))


def test_full_logs_are_read_across_and_what_is_gone_is_said(tmp_path: Path) -> None:
    log, feed = a_feed(tmp_path / "there", limit=1000)
    kept = Kept(tmp_path / "here", limit=3000)
    for number in range(60):
        written(log, number, 1)
        assert not kept.fetch(feed.answer).lost
    here = numbers(tmp_path / "here")
    assert here == list(range(here[0], 60)), "in order, none twice, none left out"
    assert 0 < here[0] < 40
    written(log, 60, 60)
    assert kept.fetch(feed.answer).lost
    assert numbers(tmp_path / "here")[-1] == 119


@pytest.mark.parametrize("limit", [10_000, 100], ids=["in a file", "between two"])
def test_who_was_killed_while_he_read_reads_that_again(tmp_path: Path, limit: int) -> None:
    log, feed = a_feed(tmp_path / "there")
    kept = Kept(tmp_path / "here", limit)
    written(log, 0, 5)
    kept.fetch(feed.answer)
    before = (tmp_path / "here" / f"{FILE}.place").read_bytes()
    written(log, 5, 3)
    kept.fetch(feed.answer)
    (tmp_path / "here" / f"{FILE}.place").write_bytes(before)
    written(log, 8, 2)
    Kept(tmp_path / "here").fetch(feed.answer)
    assert numbers(tmp_path / "here") == list(range(10))


def test_times_are_those_of_this_machine(tmp_path: Path) -> None:
    log, feed = a_feed(tmp_path / "there")
    log.write(Line(time=time.time(), candidate=CANDIDATE))
    Kept(tmp_path / "here", now=lambda: time.time() + 100).fetch(feed.answer)
    (line,) = numbers(tmp_path / "here")
    assert abs(line - time.time() - 100) < 5


def test_what_answers_in_its_place_is_told_from_it(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"^what answers for the comparator is none: b'<html>'; see what its"
    ):
        Kept(tmp_path).fetch(lambda _: b"<html>")


# -- through a real API server --------------------------------------------------------------------------------


@slow
@CLUSTER
def test_a_shadow_release_compares_through_the_api_server(
    make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str, running: Running
) -> None:
    """By what is rendered, but for the pod's address: the API server of the tests reaches no other process."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback, which no endpoint may have")
    running.stop()
    running.host = address
    target = make_target(router=GATEWAY, comparator={"image": "shipctl:1"})
    epoch = released(target, old)
    prepared(target, new, epoch)
    shadow = Shift(traffic=SHADOWED)
    stand_in(kube, namespace, address, running.ports)
    said = target.apply(shadow, new, epoch).message
    assert said.startswith("nothing is copied yet: the comparator shop-comparator does not answer (status 50")
    assert target.observe().traffic.mirror is None, "nothing is copied before somebody can compare"
    running.start()
    since = time.time()

    def shifted() -> bool:
        target.acquire("test")
        with suppress(StageError):
            target.apply(shadow, new, epoch)
        return target.observe().traffic == SHADOWED

    wait_for(shifted, what="nothing is copied")
    (mirror,) = (
        each["requestMirror"]["backendRef"]
        for rule in kube.get("HTTPRoute", "shop", namespace)["spec"]["rules"]
        for each in rule.get("filters", ())
    )
    assert (mirror["name"], mirror["port"]) == ("shop-comparator", 8000)
    running.copy(3)
    ctx = MetricContext(pipeline="digits", model="digits", versions={}, logs=target.logs)
    provider = Comparison(ComparisonOptions(), ctx)

    def counted() -> int:
        target.observe()
        return provider.query(CANDIDATE, since, time.time()).requests

    wait_for(lambda: counted() == 3, what="three comparisons")


def stand_in(kube: Kube, namespace: str, address: str, ports: tuple[int, ...]) -> None:
    """Have the comparator's pod be the process that listens there."""
    named = dict(zip(("http", "grpc", "results"), ports, strict=True))
    found = kube.get("Service", "shop-comparator", namespace)["spec"]["ports"]
    changed = [{**port, "targetPort": named[port["name"]]} for port in found]
    kube.patch("Service", "shop-comparator", namespace, {"spec": {"ports": changed}})
    wait_for(lambda: kube.get("Deployment", "shop-comparator", namespace)["status"].get("readyReplicas"))
    (pod,) = kube.list("Pod", namespace, "app.kubernetes.io/component=comparator")
    status = {"podIP": address, "podIPs": [{"ip": address}]}
    kube.set_status("Pod", pod["metadata"]["name"], namespace, status)
