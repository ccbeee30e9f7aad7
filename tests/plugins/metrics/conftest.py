"""The release that providers are asked about, and a server that answers as a test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.release.metrics import MetricContext
from shipctl.stages.context import CheckContext
from support_metrics import CANDIDATE, STABLE, Web, serving


@pytest.fixture
def web() -> Iterator[Web]:
    with serving(Web()) as running:
        yield running


@pytest.fixture
def ctx(tmp_path: Path) -> MetricContext:
    return MetricContext(
        pipeline="digits",
        model="digits",
        versions={STABLE: "3", CANDIDATE: "4"},
        endpoints={
            "http": "http://127.0.0.1:9000",
            "http/aaaaaaaaaaaa/0": "127.0.0.1:8000",
            "http/aaaaaaaaaaaa/1": "127.0.0.1:8010",
            "grpc/aaaaaaaaaaaa/0": "127.0.0.1:8001",
            "http/bbbbbbbbbbbb/0": "http://127.0.0.1:8100",
            "grpc/bbbbbbbbbbbb/0": "127.0.0.1:8101",
        },
        logs=tmp_path,
        project=tmp_path,
    )


@pytest.fixture
def check_ctx(tmp_path: Path) -> CheckContext:
    return CheckContext(project=tmp_path, pipeline="digits", base=tmp_path)
