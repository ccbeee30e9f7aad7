"""pytest fixtures for plugin authors; load them with ``pytest_plugins = ["shipctl.testing.fixtures"]``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.testing import samples

_TIMEOUT_S = 300


@dataclass(frozen=True)
class Invocation:
    """How one command of shipctl ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The JSON document of ``--json``."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[str]:
        """The lines on stdout."""
        return self.stdout.splitlines()


@dataclass(frozen=True)
class SampleProject:
    """A folder with a spec, in which commands run."""

    root: Path

    def write(self, files: Mapping[str, str | bytes]) -> SampleProject:
        """Write files below the folder, by their relative path."""
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content, encoding="utf-8")
        return self

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Invocation:
        """Run `shipctl …` in the folder, in a process of its own: what a user sees."""
        done = subprocess.run(
            [sys.executable, "-m", "shipctl.cli", *arguments],
            cwd=self.root,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                **(environ or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        return Invocation(done.returncode, done.stdout, done.stderr)


class SpecRunner(Protocol):
    """What the fixture `run_spec` is."""

    def __call__(
        self, spec: str, *arguments: str, files: Mapping[str, str | bytes] | None = None
    ) -> Invocation:
        """Write ``spec`` as `spec.yaml` beside ``files`` and run a command on it, `apply` by default."""


@dataclass
class FakeClock:
    """A clock that moves when it is told to. Seconds since the epoch."""

    time: float = 1_700_000_000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Return the time; so the clock itself fits where a `now` is asked for."""
        return self.time

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass at once and remember for how long."""
        self.slept.append(seconds)
        self.advance(seconds)


@pytest.fixture
def project(tmp_path: Path) -> SampleProject:
    """An empty folder to write specs into and to run commands in."""
    root = tmp_path / "project"
    root.mkdir()
    (root / ".shipctl").mkdir()  # so that no project further up is taken for this one
    return SampleProject(root)


@pytest.fixture
def run_spec(project: SampleProject) -> SpecRunner:
    """Write a spec (and files) and run a command on it; see :class:`SpecRunner`."""

    def run(spec: str, *arguments: str, files: Mapping[str, str | bytes] | None = None) -> Invocation:
        project.write({"spec.yaml": spec, **(files or {})})
        name, *options = arguments or ("apply",)
        return project.run(name, "spec.yaml", *options)

    return run


@pytest.fixture
def make_onnx_model(tmp_path: Path) -> Callable[..., OnnxModel]:
    """Return a function that writes a tiny ONNX model which really runs; keywords replace its fields."""

    def make(**fields: Any) -> OnnxModel:
        return samples.tiny_onnx_model(tmp_path / "onnx-model", **fields)

    return make


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Return a function that writes a tiny data set which fits the tiny model."""

    def make(role: str = "evaluation") -> Dataset:
        return samples.tiny_dataset(tmp_path / "datasets", role)

    return make


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock for everything that takes `now`."""
    return FakeClock()
