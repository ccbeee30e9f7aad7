"""The distribution of test stages, seen only by the tests of core."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support_engine import SUPPORT, EngineProject


@pytest.fixture
def test_stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The distribution `shipctl-test-stages` is installed, as far as this process and its workers see."""
    places = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    sys.path.insert(0, str(SUPPORT))
    yield
    sys.path.remove(str(SUPPORT))


@pytest.fixture
def project(tmp_path: Path, test_stages: None, monkeypatch: pytest.MonkeyPatch) -> EngineProject:
    """An empty project whose specs may use the test stages."""
    made = EngineProject(tmp_path / "project")
    monkeypatch.setenv("SHIPCTL_TEST_TRACE", str(made.trace_file))
    monkeypatch.chdir(made.root)
    return made
