"""A project with a spec of test stages, and everything that a test wants to know about its runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shipctl import Hooks, Plan, RunResult, apply, events, hookimpl, make_plan, read_plan

SUPPORT = Path(__file__).parent / "support"
"""Holds the distribution `shipctl-test-stages`."""
HEAD = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: demo, version: VERSION}
"""


@dataclass
class Watcher:
    """Keeps all events of a run."""

    heard: list[events.Event] = field(default_factory=list)

    @hookimpl
    def shipctl_plan_ready(self, event: events.PlanReady) -> None:
        self.heard.append(event)

    @hookimpl
    def shipctl_stage_started(self, event: events.StageStarted) -> None:
        self.heard.append(event)

    @hookimpl
    def shipctl_stage_logged(self, event: events.StageLogged) -> None:
        self.heard.append(event)

    @hookimpl
    def shipctl_stage_finished(self, event: events.StageFinished) -> None:
        self.heard.append(event)

    @hookimpl
    def shipctl_gate_decided(self, event: events.GateDecided) -> None:
        self.heard.append(event)

    @hookimpl
    def shipctl_release_stepped(self, event: events.ReleaseStepped) -> None:
        self.heard.append(event)

    @hookimpl
    def shipctl_run_finished(self, event: events.RunFinished) -> None:
        self.heard.append(event)


@dataclass
class Run:
    """How one apply went."""

    result: RunResult
    events: list[events.Event]
    ran: list[str]
    """Labels of the stages whose code ran, in order."""
    problems: list[str]

    @property
    def code(self) -> int:
        return self.result.exit_code

    @property
    def statuses(self) -> dict[str, str]:
        return dict(self.result.statuses)

    @property
    def messages(self) -> dict[str, str]:
        return {e.node: e.message for e in self.events if isinstance(e, events.StageFinished)}

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        return {e.node: e.metrics for e in self.events if isinstance(e, events.StageFinished)}

    @property
    def log(self) -> list[str]:
        return [f"{e.node}: {e.line}" for e in self.events if isinstance(e, events.StageLogged)]

    @property
    def phases(self) -> list[str]:
        return [str(e.phase) for e in self.events if isinstance(e, events.ReleaseStepped)]

    def text(self) -> str:
        """Everything that a hook was told, as JSON lines."""
        return "\n".join(event.model_dump_json() for event in self.events)


@dataclass
class EngineProject:
    """A folder with a `spec.yaml`, applied in this process or by the command line."""

    root: Path

    def __post_init__(self) -> None:
        (self.root / ".git").mkdir(parents=True, exist_ok=True)  # so that nothing above it is the project

    # -- the spec --------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self.root / "spec.yaml"

    def spec(self, stages: str, *, head: str = "", version: str = "1.0.0") -> EngineProject:
        """Write the spec: its stages, and what else stands at the top."""
        body = textwrap.indent(textwrap.dedent(stages).strip("\n"), "  ")
        top = "\n".join(
            filter(None, [HEAD.replace("VERSION", version).strip(), textwrap.dedent(head).strip()])
        )
        text = f"{top}\nstages:\n{body}\n"
        self.path.write_text(text, encoding="utf-8")
        return self

    def edit(self, old: str, new: str) -> None:
        """Replace a text that stands in the spec once."""
        text = self.path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the spec"
        self.path.write_text(text.replace(old, new))

    # -- doing -----------------------------------------------------------------------------------------------

    def plan(self, **options: Any) -> Plan:
        return make_plan(self.path, **options)

    def actions(self, **options: Any) -> dict[str, str]:
        """Return what a plan says of each node."""
        return {node.node: node.action for node in self.plan(**options).nodes}

    def reasons(self) -> dict[str, list[str]]:
        return {node.node: list(node.reasons) for node in self.plan().nodes}

    def to_run(self) -> list[str]:
        """Return the nodes that a plan wants to run."""
        return [node for node, action in self.actions().items() if action == "run"]

    def apply(
        self, plan: Plan | None = None, *, jobs: int = 2, retry: bool = False, lock_timeout: float = 0.0
    ) -> Run:
        before = len(self.trace())
        watcher = Watcher()
        hooks = Hooks([watcher], installed=False)
        result = apply(plan or self.plan(), hooks=hooks, jobs=jobs, retry=retry, lock_timeout=lock_timeout)
        ran = [line[4:] for line in self.trace()[before:] if line.startswith("run ")]
        return Run(result, watcher.heard, ran, hooks.problems)

    def apply_file(self, file: Path) -> Run:
        return self.apply(read_plan(file))

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of a shipctl process of this project."""
        places = [str(SUPPORT), *(path for path in sys.path if path)]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(places), **more}

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `shipctl …` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "shipctl.cli", *arguments],
            cwd=self.root,
            env=self.environ(**(environ or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def shipctl(
        self, *arguments: str, environ: Mapping[str, str] | None = None, timeout: float = 60
    ) -> tuple[int, str]:
        """Run `shipctl …` and return its exit code and what it said."""
        with self.start(*arguments, environ=environ) as process:
            said, _ = process.communicate(timeout=timeout)
        return process.returncode, said

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run `shipctl …` in this process, whose current folder is the project, as :meth:`shipctl` does in its own."""
        from shipctl.cli.main import run

        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = run(arguments)
        return code, said.getvalue()

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        return self.root / ".shipctl"

    @property
    def trace_file(self) -> Path:
        return self.root / "trace"

    def trace(self) -> list[str]:
        """Return what the stages and hooks traced."""
        return self.trace_file.read_text().splitlines() if self.trace_file.exists() else []

    def blobs(self) -> list[Path]:
        return [path for path in (self.state / "store" / "blobs").rglob("*") if path.is_file()]

    def blob_of(self, text: str) -> Path:
        """Return the blob with that text."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.state / "store" / "blobs" / digest[:2] / digest

    def results(self) -> list[Path]:
        return [path for path in (self.state / "store" / "results").rglob("*") if path.is_file()]

    def stored_texts(self) -> set[str]:
        return {blob.read_text() for blob in self.blobs()}

    def serving(self, target: str = "shelf") -> dict[str, str] | None:
        path = self.state / "targets" / target / "serving.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def holding(self, *needles: bytes) -> list[str]:
        """Return the files below `.shipctl`, and beside it, that contain one of these byte strings."""
        ours = {self.path}
        files = (path for path in self.root.rglob("*") if path.is_file() and path not in ours)
        return [
            path.relative_to(self.root).as_posix()
            for path in files
            if any(needle in path.read_bytes() or needle in path.name.encode() for needle in needles)
        ]

    def assert_whole(self) -> None:
        """Nothing half-written, every blob what its name says, the journal sound."""
        assert [*(self.state / "work").rglob("*")] == []
        assert [*(self.state / "store" / "tmp").rglob("*")] == []
        for blob in self.blobs():
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        database = sqlite3.connect(self.state / "journal.db")
        try:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("SELECT * FROM processes").fetchall() == []
        finally:
            database.close()


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file, whatever its permissions."""
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(body)


def processes_with(token: str) -> list[int]:
    """Return the processes, beside this one, in whose environment a text stands."""
    return [pid for pid, environ in _environments() if token.encode() in environ and pid != os.getpid()]


def _environments() -> Iterator[tuple[int, bytes]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "environ").read_bytes()
            except OSError:
                continue


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    """Wait until a function returns something true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


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
