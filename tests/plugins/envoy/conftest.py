"""Echo servers, doors before them, and clients of several kinds that count what they get."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from shipctl.release.router import Backend, Routed
from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy.access_log import KEPT, Entry
from shipctl_plugins._envoy.proxy import Proxy

INFER = "/v2/models/m/infer"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
STABLE, CANDIDATE = "a" * 64, "c" * 64


@dataclass
class Echo:
    """One echo server."""

    name: str
    backend: Backend
    process: subprocess.Popen[bytes]

    def start_again(self) -> None:
        ports = [address.rpartition(":")[2] for address in (self.backend.http, self.backend.grpc)]
        self.process = launch(self.name, *ports)
        wait_for_port(int(ports[0]))

    def behave(self, mode: str) -> None:
        self._call("POST", "/behave", mode.encode())

    def reset(self) -> None:
        """Have it as it was when it started."""
        self._call("POST", "/reset")

    @property
    def seen(self) -> int:
        """Requests that it got, health checks aside."""
        return int(self._call("GET", "/seen")["seen"])

    @property
    def headers(self) -> dict[str, str]:
        """Of the newest request."""
        return dict(self._call("GET", "/seen")["headers"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _call(self, verb: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.backend.http, timeout=5)
        try:
            connection.request(verb, path, body)
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()


def launch(name: str, http_port: str, grpc_port: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("echo_server.py")
    return subprocess.Popen([sys.executable, str(script), name, http_port, grpc_port])


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="session")
def idle() -> Iterator[dict[str, Echo]]:
    """Echo servers that tests have left, by name, for the next ones."""
    left: dict[str, Echo] = {}
    yield left
    for server in left.values():
        server.kill()


@pytest.fixture
def echo(idle: dict[str, Echo]) -> Iterator[Callable[[str], Echo]]:
    """Start echo servers by name, or take those of tests before, which then have seen nothing."""
    started: list[Echo] = []

    def start(name: str) -> Echo:
        if name in idle:
            started.append(idle.pop(name))
            started[-1].reset()
            return started[-1]
        http_port, grpc_port = free_ports(2)
        backend = Backend(name=name, http=f"127.0.0.1:{http_port}", grpc=f"127.0.0.1:{grpc_port}")
        server = Echo(name, backend, launch(name, str(http_port), str(grpc_port)))
        started.append(server)
        wait_for_port(http_port)
        return server

    yield start
    for server in started:
        if server.process.poll() is None and server.name not in idle:
            idle[server.name] = server
        else:
            server.kill()


@dataclass
class Door:
    """A proxy with the two sides that most tests have: two stable replicas and one candidate."""

    proxy: Proxy
    stable: list[Echo] = field(default_factory=list)
    candidate: list[Echo] = field(default_factory=list)
    epoch: int = 0

    @property
    def backends(self) -> dict[str, tuple[Backend, ...]]:
        sides = {STABLE: self.stable, CANDIDATE: self.candidate}
        return {name: tuple(one.backend for one in side) for name, side in sides.items() if side}

    def set(self, traffic: Traffic, **more: Sequence[Backend]) -> Routed:
        backends = {**self.backends, **{name: tuple(known) for name, known in more.items()}}
        return self.proxy.set(traffic, backends, etag=self.proxy.get().etag, epoch=self.epoch)

    def weigh(self, candidate: int, **more: Any) -> Routed:
        """Give the candidate so many percent."""
        weights = {STABLE: 100 - candidate, CANDIDATE: candidate}
        return self.set(Traffic(weights=weights, fallback=STABLE, **more))

    def entries(self, since: float = 0.0) -> list[Entry]:
        """What the access log says of requests that came since then, once it was flushed; rotated logs included."""
        time.sleep(0.5)
        log = self.proxy.access_log
        logs = [log.with_name(f"{log.name}.{number}") for number in range(KEPT, 0, -1)] + [log]
        lines = [line for path in logs if path.exists() for line in path.read_bytes().splitlines()]
        parsed = [entry for entry in map(Entry.parse, lines) if entry is not None]
        assert len(parsed) == len(lines)
        return [entry for entry in parsed if entry.end >= since]

    @property
    def address(self) -> str:
        return self.proxy.endpoints["http"].removeprefix("http://")

    def ask(
        self, path: str = INFER, headers: dict[str, str] | None = None, body: bytes = b"{}"
    ) -> tuple[int, Any]:
        """Ask once over HTTP, on a connection of its own."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request("POST", path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] == b"{" else text.decode()
        finally:
            connection.close()

    def ask_grpc(self, method: str = MODEL_INFER, metadata: Sequence[tuple[str, str]] = ()) -> str:
        """Ask once over gRPC, on a connection of its own; raises grpc.RpcError."""
        with grpc.insecure_channel(self.proxy.endpoints["grpc"]) as channel:
            return bytes(channel.unary_unary(method)(b"x", metadata=metadata, timeout=30)).decode()


@pytest.fixture
def door(tmp_path: Path, echo: Callable[[str], Echo]) -> Iterator[Door]:
    """A running door with two stable replicas and one candidate, all traffic stable, the lease held for a minute."""
    proxy = Proxy(tmp_path / "door", log=lambda line: None)
    try:
        proxy.ensure()
        made = Door(proxy, [echo("stable-1"), echo("stable-2")], [echo("candidate")])
        made.epoch = proxy.lease.acquire("test", 60)
        made.weigh(0)
        yield made
    finally:
        proxy.stop()


@dataclass
class Load:
    """What clients under load got."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.failures)


@pytest.fixture
def load() -> Callable[..., Any]:
    """Keep asking a door over both protocols, on two connections each, while the block runs."""
    return keep_asking


@contextmanager
def keep_asking(
    door: Door, *, protocols: Sequence[str] = ("http", "grpc"), pause: float = 0.005
) -> Iterator[Load]:
    result, end = Load(), threading.Event()
    asked = {"http": _ask_http, "grpc": _ask_grpc}
    threads = [
        threading.Thread(target=asked[protocol], args=(door, result, end, pause))
        for protocol in protocols
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        end.set()
        for thread in threads:
            thread.join()


def _ask_http(door: Door, result: Load, end: threading.Event, pause: float) -> None:
    connection = http.client.HTTPConnection(door.address, timeout=10)
    while not end.is_set():
        try:
            connection.request("POST", INFER, b"{}")
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200:
                result.answers[json.loads(text)["name"]] += 1
            else:
                result.failures.append((time.time(), f"{answer.status} {text!r}"))
        except (OSError, http.client.HTTPException) as error:
            result.failures.append((time.time(), repr(error)))
            connection.close()
        time.sleep(pause)
    connection.close()


def _ask_grpc(door: Door, result: Load, end: threading.Event, pause: float) -> None:
    with grpc.insecure_channel(
        door.proxy.endpoints["grpc"], [("grpc.max_reconnect_backoff_ms", 100)]
    ) as channel:
        call = channel.unary_unary(MODEL_INFER)
        while not end.is_set():
            try:
                result.answers[bytes(call(b"x", timeout=10)).decode()] += 1
            except grpc.RpcError as error:
                result.failures.append((time.time(), f"{error.code()} {error.details()}"))
            time.sleep(pause)
