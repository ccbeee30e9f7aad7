"""A real Prometheus on loopback, from Debian's package, that scrapes what a test offers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

BINARY = shutil.which("prometheus")
MISSING = "Debian's prometheus is not installed: make system-deps"
INTERVAL = 0.2
"""Seconds between two scrapes."""


@dataclass
class Prometheus:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, query: str) -> list[Any]:
        address = f"{self.url}/api/v1/query?query={quote(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def scraped(self, query: str, seconds: float = 30) -> None:
        """Wait until a query gives something."""
        wait(lambda: bool(self.ask(query)), seconds, f"{query} gives nothing")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """It takes connections, and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextmanager
def prometheus(folder: Path, targets: list[str], listed: Path | None = None) -> Iterator[Prometheus]:
    """Run a server with a data folder of its own over ``targets`` (host:port), and those that a file lists."""
    assert BINARY is not None
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": f"{INTERVAL * 1000:g}ms", "scrape_timeout": f"{INTERVAL * 1000:g}ms"},
        "scrape_configs": [
            {
                "job_name": "triton",
                "static_configs": [{"targets": targets}],
                "file_sd_configs": [{"files": [str(listed)], "refresh_interval": "1s"}] if listed else [],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                BINARY,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
    server = Prometheus(f"http://{address}", process, log)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{server.url}/-/ready", timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    try:
        wait(ready, 30, "prometheus does not start")
        yield server
    finally:
        process.kill()
        process.wait()
