"""What becomes of requests when something dies."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy.proxy import Proxy

pytestmark = pytest.mark.slow

STABLE, CANDIDATE = "a" * 64, "c" * 64


def until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for a condition and return how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)
    return time.monotonic() - begin


def test_a_dead_candidate_costs_nobody_a_request_and_is_not_taken_for_healthy(
    door: Any, load: Callable[..., Any]
) -> None:
    door.weigh(50)
    with load(door) as result:
        time.sleep(1)
        killed = time.time()
        door.candidate[0].kill()
        time.sleep(4)
        assert door.proxy.ready(door.candidate[0].backend) is False
    assert len(result.failures) <= result.total * 0.001
    logged = [entry for entry in door.entries(killed) if entry.start > killed]
    meant = [entry for entry in logged if entry.arm == CANDIDATE[:12]]
    assert 0.4 < len(meant) / len(logged) < 0.6  # as many as the weight says, whoever answered them
    stable = {address for one in door.stable for address in (one.backend.http, one.backend.grpc)}
    assert {entry.host for entry in meant if not entry.failed} <= stable


def test_a_candidate_that_is_not_ready_gets_nothing(door: Any, load: Callable[..., Any]) -> None:
    door.weigh(50)
    one = door.candidate[0]
    one.behave("sick")
    until(lambda: door.proxy.ready(one.backend) is False)
    time.sleep(1)  # that is one protocol; each has health checks of its own, twice a second
    begin = one.seen
    with load(door) as result:
        time.sleep(1)
    assert result.failures == []
    assert one.seen == begin
    one.behave("ok")
    until(lambda: door.proxy.ready(one.backend) is True)


def test_a_candidate_that_answers_with_errors_is_left_alone_for_seconds(
    door: Any, load: Callable[..., Any]
) -> None:
    door.weigh(50)
    door.candidate[0].behave("fail")
    begin = time.time()
    with load(door) as result:
        time.sleep(4)
    assert 5 <= len(result.failures) <= 30
    assert {said for _, said in result.failures if "INTERNAL" not in said} <= {
        said for _, said in result.failures if said.startswith("500")
    }
    counted = Counter(
        "failed" if entry.failed else "other" if entry.host not in _addresses(door.candidate) else "own"
        for entry in door.entries(begin)
        if entry.arm == CANDIDATE[:12]
    )
    assert counted["own"] == 0
    assert counted["failed"] == len(result.failures)
    assert counted["other"] > counted["failed"]


def test_a_dead_stable_replica_costs_nothing_and_wakes_no_candidate(
    door: Any, load: Callable[..., Any]
) -> None:
    with load(door) as result:
        time.sleep(0.5)
        door.stable[0].kill()
        time.sleep(3)
        door.stable[0].start_again()
        until(lambda: door.proxy.ready(door.stable[0].backend) is True)
        time.sleep(0.5)
        answered = result.answers["stable-1"]
        until(lambda: result.answers["stable-1"] > answered)
    assert len(result.failures) <= result.total * 0.001
    assert door.candidate[0].seen == 0


def test_nothing_reaches_the_candidate_when_stable_fails_altogether(
    door: Any, load: Callable[..., Any]
) -> None:
    for one in door.stable:
        one.behave("fail")
    with load(door) as result:
        time.sleep(2)
        for one in door.stable:
            one.kill()
        time.sleep(2)
    assert result.answers == {}
    assert {said.partition(" ")[0] for _, said in result.failures} <= {
        "500", "503", "StatusCode.INTERNAL", "StatusCode.UNAVAILABLE",
    }  # fmt: skip
    assert door.candidate[0].seen == 0


def test_a_candidate_never_answers_for_stable_at_half_the_weight(door: Any) -> None:
    door.weigh(50)
    for one in door.stable:
        one.kill()
    begin = time.time()
    for _ in range(100):
        door.ask()
    arms = Counter((entry.arm, entry.host in _addresses(door.candidate)) for entry in door.entries(begin))
    assert arms[STABLE[:12], True] == 0
    assert arms[CANDIDATE[:12], True] > 20


def test_a_killed_envoy_is_back_within_two_seconds_with_the_same_weights(door: Any) -> None:
    before = door.weigh(50)
    pid = door.proxy.processes.envoy.pid
    os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        try:
            return bool(door.ask()[0] == 200)
        except OSError:
            return False

    assert until(back) < 2.5
    assert door.proxy.processes.envoy.pid != pid
    after = door.proxy.get()
    assert (after.traffic, after.etag) == (before.traffic, before.etag)
    shares = Counter(door.ask()[1]["name"].partition("-")[0] for _ in range(200))
    assert 60 < shares["candidate"] < 140


def test_envoy_may_open_as_many_files_as_the_machine_allows(door: Any) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for _ in range(2):
        pid = door.proxy.processes.envoy.pid
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
        os.kill(pid, signal.SIGKILL)
        until(lambda: door.proxy.processes.envoy.pid != pid)  # noqa: B023


def test_a_killed_supervisor_is_replaced_without_interrupting_anything(
    door: Any, load: Callable[..., Any]
) -> None:
    door.weigh(50)
    envoy = door.proxy.processes.envoy.pid
    with load(door) as result:
        os.kill(door.proxy.processes.supervisor.pid, signal.SIGKILL)
        until(lambda: not door.proxy.running)
        Proxy(door.proxy.folder, log=lambda line: None).ensure()
        assert door.proxy.running
        time.sleep(0.5)
    assert result.failures == []
    assert result.total > 50
    assert door.proxy.processes.envoy.pid == envoy
    assert door.proxy.get().traffic.weight(CANDIDATE) == 50
    os.kill(envoy, signal.SIGKILL)  # the new one watches over an Envoy that another one has started
    until(lambda: door.proxy.processes.envoy.pid not in {envoy, None})


def test_a_server_that_hangs_gets_nothing_more_after_seconds(door: Any) -> None:
    door.weigh(50)
    hanging = (door.stable[0], door.candidate[0])
    for one in hanging:
        one.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: all(door.proxy.ready(one.backend) is False for one in hanging))
        begin = time.monotonic()
        assert {door.ask()[1]["name"] for _ in range(50)} == {"stable-2"}
        assert {door.ask_grpc() for _ in range(10)} == {"stable-2"}
        assert time.monotonic() - begin < 5
    finally:
        for one in hanging:
            one.process.send_signal(signal.SIGCONT)


def test_stable_is_asked_even_if_it_says_that_it_is_not_ready(door: Any) -> None:
    for one in door.stable:
        one.behave("sick")

    def all_sick() -> bool:
        hosts = door.proxy._admin.hosts()
        return not any(hosts["http-aaaaaaaaaaaa"].values()) and not any(hosts["grpc-aaaaaaaaaaaa"].values())

    until(all_sick)
    status, _ = door.ask()
    assert status == 500  # its own answer
    assert door.candidate[0].seen == 0


def test_weights_can_be_set_while_envoy_is_being_restarted(door: Any) -> None:
    os.kill(door.proxy.processes.envoy.pid, signal.SIGKILL)
    traffic = Traffic(weights={STABLE: 60, CANDIDATE: 40}, fallback=STABLE)
    etag = door.proxy.get().etag
    os.kill(door.proxy.processes.envoy.pid, signal.SIGKILL)
    routed = door.proxy.set(traffic, door.backends, etag=etag, epoch=door.epoch)
    assert routed.traffic == traffic


def _addresses(side: list[Any]) -> set[str]:
    return {address for one in side for address in (one.backend.http, one.backend.grpc)}
