"""Commands in this process, with the light stages installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.testing.fixtures import Invocation, SampleProject, project
from support_cli import ENTRY_POINTS, LIGHT, SPEC, Call, install
from support_in_process import in_process

__all__ = ["project"]


@pytest.fixture(autouse=True)
def light_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the light stages for this process and those that it starts."""
    folder = tmp_path / "site"
    install(folder, "light_stages", LIGHT, ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("light_stages", None)


@pytest.fixture
def light(project: SampleProject) -> SampleProject:
    """A project with the light spec, in `spec.yaml`."""
    import numpy as np

    np.savez(project.root / "samples.npz", x=np.zeros((2, 3), dtype=np.float32))
    return project.write({"spec.yaml": SPEC})


@pytest.fixture
def call(project: SampleProject, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in this process and in the project's folder."""

    def call(*arguments: str) -> Invocation:
        monkeypatch.chdir(project.root)
        return in_process(project.root, *arguments)

    return call
