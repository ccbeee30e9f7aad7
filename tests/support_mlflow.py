"""Packages to register, MLflow's own file store in this process, and a real MLflow server in a process of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from shipctl.engine.environments import Environment, ensure_environment
from shipctl.evidence.package import MANIFEST, PROVENANCE, PackagedArtifact, PackageManifest
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import FileEntry, ModelPackage, OnnxModel
from shipctl.stages.base import Phase, Step
from shipctl.stages.context import ReleaseContext
from shipctl.store.depot import open_depot
from shipctl.store.local import LocalStore
from shipctl_plugins._mlflow import agent
from shipctl_plugins._mlflow.login import Login
from shipctl_plugins._mlflow.process import RETRIES
from shipctl_plugins.register.mlflow_register import (
    MlflowRegister,
    MlflowRegisterInputs,
    MlflowRegisterOptions,
    MlflowRegisterState,
)

REQUIREMENTS = ("mlflow==3.17.2", "onnx>=1.19,<2", "onnxruntime>=1.22,<2")
"""Of the server, and of a colleague who logs ONNX models there."""
WRITES = ("create", "delete", "describe", "finish", "log", "set", "tag")
"""How the names of calls begin that change something on the server."""
START_S = 120.0
LIFE_S = 600
"""Seconds after which a server ends by itself, whatever became of the test."""
SPEC_DIGEST = "5" * 64
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
)


# -- packages ------------------------------------------------------------------------------------------------


def make_package(
    project: Path, version: str, *, model: bytes | None = None, publish: bool = True, kind: str = "onnx-model"
) -> ModelPackage:
    """Return a package of the model `digits`, in the project's store and (if ``publish``) published there."""
    folder = project / "packages" / version
    graph = folder / "model" / "model.onnx"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(model if model is not None else f"graph {version}".encode())
    (folder / PROVENANCE).parent.mkdir()
    (folder / PROVENANCE).write_text(
        json.dumps(
            {"predicate": {"buildDefinition": {"externalParameters": {"spec": {"sha256": SPEC_DIGEST}}}}}
        )
    )
    inner = OnnxModel(files=(_entry(graph, "model.onnx"),), signature=SIGNATURE)
    manifest = PackageManifest(
        name="digits",
        version=version,
        owner="vision-team",
        description="Reads handwritten digits.",
        labels={"critical": "true"},
        license="MIT",
        signature=SIGNATURE,
        metrics={"accuracy": 0.97, "latency.p95": 0.0021, "broken": float("nan")},
        calibration={"calibration": "c" * 64},
        artifacts=(
            PackagedArtifact(
                role="model", path="model", digest=inner.digest, manifest={**inner.manifest(), "kind": kind}
            ),
        ),
        files=tuple(
            _entry(path, path.relative_to(folder).as_posix())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    local = LocalStore(project / ".shipctl" / "store")
    package = ModelPackage.at(
        folder,
        name="digits",
        version=version,
        model=inner.digest,
        signature=SIGNATURE,
        signer="sha256:" + "a" * 64,
    )
    stored = local.publish(package, folder.parent)
    if publish:
        with open_depot(None, project, local) as depot:
            depot.publish(stored)
    return local.view(stored, project / "views" / version)


def _entry(path: Path, name: str) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


# -- releasing -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for `kill -9` of shipctl: nothing in shipctl catches it."""


@dataclass
class Releaser:
    """Drives `mlflow-register` as the engine does: the state is kept after every step, as JSON."""

    project: Path
    make: Callable[[], MlflowRegister]
    kept: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def context(self, package: ModelPackage, **changes: Any) -> ReleaseContext:
        values: dict[str, Any] = {
            "project": self.project,
            "target_dir": self.project / ".shipctl" / "targets" / "mlflow",
            "pipeline": "digits",
            "version": package.version,
            "stage": "mlflow",
            "revision": f"revision of {package.version}",
            "run": f"run of {package.version}",
            "base": self.project,
            "log": self.lines.append,
            "now": lambda: 1_700_000_000.0,
        }
        return ReleaseContext(**{**values, **changes})

    def drive(self, package: ModelPackage, *, undo: bool = False, **context: Any) -> Step:
        """Take steps until the release is finished, from where it stood when it was killed."""
        stage, inputs, ctx = (
            self.make(),
            MlflowRegisterInputs(package=package),
            self.context(package, **context),
        )
        state = MlflowRegisterState.model_validate(self.kept)
        step = Step(phase=Phase.PENDING, message="")
        while not step.phase.is_final:
            state, step = (stage.abort if undo else stage.step)(state, inputs, ctx)
            self.kept = json.loads(state.model_dump_json())
            self.steps.append(step)
            assert len(self.steps) < 50
        return step

    def release(self, package: ModelPackage, **context: Any) -> Step:
        """Drive a new release."""
        self.kept, self.steps = {}, []
        return self.drive(package, **context)

    def in_place(self, package: ModelPackage) -> bool:
        return self.make().in_place(MlflowRegisterInputs(package=package), self.context(package))


class InProcessMlflow:
    """Calls the agent in this process, on a server or on MLflow's file store; can die before or after any call."""

    def __init__(self, uri: str) -> None:
        self.agent = agent.Agent(uri)
        self.calls: list[str] = []
        self.die_before: int | None = None
        self.die_after: int | None = None
        self.fail: dict[str, list[str]] = {}
        """Call to what happens to it, in order: `lost` (done, but the answer is lost), `unreachable`."""

    def __call__(self, call: str, arguments: Mapping[str, Any], within: float | None) -> dict[str, Any]:
        index = len(self.calls)
        self.calls.append(call)
        if index == self.die_before:
            raise Killed
        fault = self.fail[call].pop(0) if self.fail.get(call) else None
        gone = {"error": {"kind": "unreachable", "code": "", "cause": "Connection refused", "message": ""}}
        if fault == "unreachable":
            return gone
        try:
            value = self.agent.answer(call, json.loads(json.dumps(dict(arguments))), 0)
            reply: dict[str, Any] = {"value": json.loads(json.dumps(value))}
        except Exception as exc:  # noqa: BLE001  (as the agent does)
            reply = {"error": agent.explain(exc)}
        if index == self.die_after:
            raise Killed
        return gone if fault == "lost" else reply

    def forget(self) -> None:
        """Begin to count anew, and die no more."""
        self.calls, self.die_before, self.die_after = [], None, None


class ServedHere:
    """The agent as its process runs it, with its environment, but in this process, which imports MLflow only once."""

    def __init__(self, login: Login) -> None:
        self._setup = {"uri": login.uri, "retries": RETRIES, "environ": login.environ()}

    def __call__(self, call: str, arguments: Mapping[str, Any], within: float | None) -> dict[str, Any]:
        request = {"call": call, "arguments": dict(arguments)}
        lines, answers = [json.dumps(line) for line in (self._setup, request)], io.StringIO()
        with patch.dict(os.environ):
            agent.serve(io.StringIO("\n".join(lines)), answers)
        return dict(json.loads(answers.getvalue()))


class Saying:
    """An HTTP server on loopback that gives the same answer to every request, and keeps their headers."""

    def __init__(
        self, status: int, body: str, *, content_type: str = "text/html", delay: float = 0.0
    ) -> None:
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                outer.wait.wait(delay)
                content = body.encode()
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", content_type)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.wait = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def stage_on(uri: str, **options: Any) -> MlflowRegister:
    """Return the stage with options as a spec would give them."""
    return MlflowRegister(MlflowRegisterOptions.model_validate({"uri": uri, **options}))


# -- the real server -----------------------------------------------------------------------------------------


def server_environment() -> Environment:
    """Return the environment of the full MLflow; made once per machine, in about a minute."""
    return ensure_environment("mlflow-3.17", REQUIREMENTS, progress=print)


@dataclass
class RealMlflow:
    """A running server on loopback."""

    uri: str
    command: list[str]
    environ: Mapping[str, str]
    python: Path
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start it, again on the same port and database if it was stopped, and return when it answers."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.log.parent,
                env={**_quiet_environ(), **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                message = f"MLflow does not answer; the end of its log:\n{self.log.read_text()[-3000:]}"
                raise RuntimeError(message)
            time.sleep(0.2)

    def rest(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """Make a plain REST call: GET, or POST with a body."""
        url = f"{self.uri}/api/2.0/mlflow/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return dict(json.loads(answer.read()))

    def run_python(self, code: str, *arguments: str) -> str:
        """Run code in the server's own environment, as a client of it, and return what it printed."""
        done = subprocess.run(
            [self.python, "-c", code, *arguments],
            env={**_quiet_environ(), "MLFLOW_TRACKING_URI": self.uri},
            cwd=self.log.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def stop(self) -> None:
        """End the server with all its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start_mlflow(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> RealMlflow:
    """Start a real MLflow server with a database in ``folder`` and return it when it answers."""
    python = server_environment().python
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    command = [
        "timeout", str(LIFE_S), str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"), *arguments,
    ]  # fmt: skip
    server = RealMlflow(f"http://127.0.0.1:{port}", command, environ or {}, python, log)
    server.start()
    return server


def _quiet_environ() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    return {
        **ours,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "OMP_NUM_THREADS": "1",
    }
