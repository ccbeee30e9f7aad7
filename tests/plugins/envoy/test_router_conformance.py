"""The door keeps what every router promises."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipctl.release.router import Backend, TrafficRouter
from shipctl.testing.routers import RouterConformance
from shipctl_plugins._envoy.proxy import Proxy

REVISIONS = {"stable": "a" * 64, "candidate": "c" * 64}


@pytest.mark.triton  # Envoy's wheel exists where Triton's does
@pytest.mark.slow
class TestConformance(RouterConformance):
    """Real Envoy before real servers."""

    @pytest.fixture
    def router(self, tmp_path: Path) -> Iterator[TrafficRouter]:
        proxy = Proxy(tmp_path / "door", log=lambda _: None)
        proxy.ensure()
        yield proxy
        proxy.stop()

    @pytest.fixture
    def backends(self, echo: Callable[[str], Any]) -> dict[str, tuple[Backend, ...]]:
        return {
            REVISIONS["stable"]: (echo("stable-1").backend, echo("stable-2").backend),
            REVISIONS["candidate"]: (echo("candidate-1").backend,),
        }

    def epoch(self, router: Any) -> int:
        return int(router.lease.acquire("test", 60))

    def take_over(self, router: Any) -> int:
        router.lease.release(self.epoch(router))
        return int(router.lease.acquire("another", 60))

    def ask(self, router: Any) -> str | None:
        connection = http.client.HTTPConnection(router.endpoints["http"].partition("://")[2], timeout=10)
        try:
            connection.request("POST", "/v2/models/m/infer", b"{}")
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status == 503 and b"closed" in text:
            return None
        assert answer.status == 200, text
        return REVISIONS[json.loads(text)["name"].partition("-")[0]]
