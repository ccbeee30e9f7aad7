"""A door's processes and files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl.release.router import Backend
from shipctl.release.traffic import Segment, Traffic
from shipctl_plugins._envoy.processes import choose_ports
from shipctl_plugins._envoy.proxy import DoorPorts, Proxy
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.processes import free_ports

pytestmark = pytest.mark.slow

STABLE, CANDIDATE = "a" * 64, "c" * 64


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(tmp_path / "door", log=lambda line: None)
    yield made
    made.stop()


def test_no_server_is_given_a_port_that_a_door_may_come_back_to() -> None:
    doors = [port for _ in range(20) for port in vars(choose_ports(DoorPorts(), None, "door")).values()]
    servers = free_ports(300)
    assert max(doors) < min(servers) or min(doors) > max(servers)


def running_in(folder: Path) -> list[str]:
    """Return the command lines of processes that have to do with a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


def test_a_new_door_is_closed_and_keeps_its_ports(proxy: Proxy) -> None:
    proxy.ensure()
    assert proxy.running
    first = proxy.get()
    assert (first.traffic, first.etag) == (Traffic(), "0-closed")
    assert abs((first.since or 0) - time.time()) < 10
    where = proxy.endpoints
    assert set(where) == {"http", "grpc", "admin"}
    pid = proxy.processes.envoy.pid
    proxy.ensure()
    assert proxy.processes.envoy.pid == pid
    said = proxy.stop()
    assert said == [
        "the supervisor of the door door",
        f"the door door on {where['http']} and {where['grpc']}",
    ]
    assert not proxy.running
    assert running_in(proxy.folder) == []
    assert proxy.stop() == []
    proxy.ensure()
    assert proxy.endpoints == where


def test_demanded_ports_are_used_and_a_running_door_does_not_move(proxy: Proxy) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    proxy.ensure(DoorPorts(http=port))
    assert proxy.endpoints["http"] == f"http://127.0.0.1:{port}"
    with pytest.raises(StageError) as raised:
        proxy.ensure(DoorPorts(http=port + 1))
    assert str(raised.value) == (
        f"the door door listens on http port {port}, not on {port + 1}: stop it with "
        "`shipctl down` before it can be moved"
    )


def test_a_taken_port_is_named(proxy: Proxy) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StageError) as raised:
            proxy.ensure(DoorPorts(grpc=port))
    assert str(raised.value) == (
        f"the door door cannot listen on grpc port {port}: Address already in use; stop what does, or give the door "
        "other ports in the spec"
    )
    assert running_in(proxy.folder) == []


def test_a_door_never_shares_its_ports_with_another_envoy(proxy: Proxy, tmp_path: Path) -> None:
    proxy.ensure()
    port = proxy.ports.http if proxy.ports else 0
    with socket.socket() as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="Address already in use"):
            second.bind(("127.0.0.1", port))


def test_a_door_that_was_never_started_says_so(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "never")
    assert not proxy.running
    assert proxy.endpoints == {}
    assert proxy.ready(Backend(name="x", http="127.0.0.1:1", grpc="127.0.0.1:2")) is None
    with pytest.raises(StageError, match="the door never was never started; apply again"):
        proxy.get()
    assert proxy.stop() == []


def test_an_envoy_that_cannot_start_says_why(proxy: Proxy, tmp_path: Path) -> None:
    binary = tmp_path / "envoy"
    binary.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    binary.chmod(0o755)
    proxy.make_environment = lambda progress: binary
    with pytest.raises(StageError, match=r"(?s)Envoy of the door door ended while starting.*no such luck"):
        proxy.ensure()


def test_revisions_without_replicas_get_no_traffic(door: Any) -> None:
    with pytest.raises(StageError) as raised:
        door.set(Traffic.only("d" * 64))
    assert str(raised.value) == f"no replicas were named for {'d' * 64}, which is to get traffic"
    with pytest.raises(StageError, match="begin alike, so the door cannot tell them apart"):
        door.set(Traffic.only(STABLE), **{STABLE[:63] + "b": door.backends[CANDIDATE]})
    with pytest.raises(StageError, match="x has the address 'nowhere', which is not host:port"):
        door.set(Traffic.only(STABLE), other=[Backend(name="x", http="nowhere", grpc="127.0.0.1:1")])


def test_what_envoy_rejects_leaves_everything_as_it_was(door: Any) -> None:
    before = door.proxy.get()
    bad = Segment.model_construct(name="s", header="not a\nheader", values=("1",), revision=CANDIDATE)
    with pytest.raises(
        StageError,
        match=r"Envoy does not take what the door door was told; its log says\n.*Name: value does not match",
    ):
        door.set(Traffic(weights={STABLE: 100}, fallback=STABLE, segments=(bad,)))
    assert door.proxy.get() == before
    assert door.ask()[0] == 200
    with pytest.raises(StageError, match=r"its log says\n.*malformed IP address: no\.such\.host"):
        door.set(Traffic.only(STABLE), other=[Backend(name="x", http="no.such.host:1", grpc="127.0.0.1:1")])
    assert door.proxy.get() == before
    door.weigh(50)
    assert door.ask()[0] == 200


def test_a_change_says_since_when_it_holds(door: Any) -> None:
    begin = time.time()
    since = door.weigh(50).since
    assert begin <= since <= time.time()
    os.kill(door.proxy.processes.envoy.pid, signal.SIGKILL)
    time.sleep(1)
    door.proxy.ensure()
    assert abs(door.proxy.get().since - since) < 11


def test_servers_on_the_list_are_started_again_and_others_are_not(door: Any, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    one = door.candidate[0]
    one.kill()
    ports = [address.rpartition(":")[2] for address in (one.backend.http, one.backend.grpc)]
    order = {
        "command": [sys.executable, str(Path(__file__).with_name("echo_server.py")), "kept", *ports],
        "environ": {"SHIPCTL_SERVER": "shipctl-echo-"},
        "log": str(folder / "server.log"),
        "state": str(folder / "server.json"),
        "record": {"shm_prefix": "shipctl-echo-"},
    }
    (folder / "server-start.json").write_text(json.dumps(order))
    (folder / "server.json").write_text('{"pid": 0, "start_time": 1, "boot_id": "an older one"}')
    wait_until(lambda: door.proxy.ready(one.backend) is False)

    def pid() -> int:
        return int(json.loads((folder / "server.json").read_text())["pid"])

    def serves_again(but: int) -> bool:
        return pid() != but and "kept" in {door.ask(headers=preview)[1]["name"] for _ in range(3)}

    preview = {"x-shipctl-preview": "1"}
    door.weigh(0, preview=CANDIDATE)
    door.proxy.keep([folder])
    wait_until(lambda: serves_again(0))

    left = Path("/dev/shm/shipctl-echo-region")
    left.write_text("")
    stub = subprocess.Popen(["sleep", "60"], env={**os.environ, "SHIPCTL_SERVER": "shipctl-echo-"})
    try:
        for _ in range(2):
            killed = pid()
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: serves_again(killed))  # noqa: B023
        assert stub.wait(5) == -signal.SIGKILL  # what the dead one had started does not stay either
        assert not left.exists()
        door.proxy.keep([])
        time.sleep(0.5)
        killed = pid()
        os.kill(killed, signal.SIGKILL)
        time.sleep(2)
        assert pid() == killed
    finally:
        stub.kill()
        launcher.kill_process(pid())


def test_a_supervisor_of_another_version_is_replaced(door: Any) -> None:
    state = door.proxy.processes.supervisor.state
    old = json.loads(state.read_text())
    state.write_text(json.dumps({**old, "source": "older"}))
    door.proxy.ensure()
    assert door.proxy.processes.supervisor.pid != old["pid"]
    assert launcher.start_time(old["pid"]) is None
    assert door.proxy.running


def test_a_large_access_log_is_put_aside(door: Any, load: Callable[..., Any]) -> None:
    settings = door.proxy.folder / "supervisor-config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "log_bytes": 40_000}))
    os.kill(door.proxy.processes.supervisor.pid, signal.SIGTERM)
    wait_until(lambda: not door.proxy.running)
    door.proxy.processes.supervisor.start(
        door.proxy.folder / "supervisor-start.json",
        json.loads((door.proxy.folder / "supervisor-start.json").read_text())["command"],
        door.proxy.folder / "supervisor.log",
    )
    log = door.proxy.access_log
    with load(door) as result:
        wait_until(lambda: log.with_name("access.jsonl.2").exists())
    assert result.failures == []
    time.sleep(0.5)
    lines = sum(len(path.read_bytes().splitlines()) for path in log.parent.glob("access.jsonl*"))
    assert len(door.entries()) == lines


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
