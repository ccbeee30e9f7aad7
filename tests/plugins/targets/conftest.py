"""The target over server processes that only look like Triton, and a door that only remembers what it was told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shipctl.engine.environments import Environment
from shipctl.errors import StageError
from shipctl.release.lease import FileLease
from shipctl.release.router import Backend, Routed
from shipctl.release.target import Candidate
from shipctl.release.traffic import Traffic
from shipctl.stages.artifacts import TritonRepository
from shipctl.stages.context import ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.samples import SIGNATURE, sealed, tiny_dataset
from shipctl_plugins._envoy.proxy import DoorPorts
from shipctl_plugins._triton import preflight
from shipctl_plugins._triton.environment import ServerEnvironment
from shipctl_plugins._triton.golden import Judgement, Probe
from shipctl_plugins.targets.local import Local, LocalOptions
from support_kubernetes import make_target, new, old

__all__ = ["make_target", "new", "old"]

FAKE = Path(__file__).with_name("fake_triton.py")


class FakeDoor:
    """What :class:`Proxy` promises, with all that it remembers in one file."""

    def __init__(self, folder: Path, **_: Any) -> None:
        self.folder = folder
        self.file = folder / "door.json"
        self.lease = FileLease(folder / "lease.json")
        self.sick: set[str] = set()
        self.taken: set[int] = set()

    def _read(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def _write(self, **changes: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({**self._read(), **changes}))
        new.replace(self.file)

    def die(self) -> None:
        self._write(running=False)

    @property
    def running(self) -> bool:
        return bool(self._read().get("running"))

    @property
    def processes(self) -> Any:
        return SimpleNamespace(supervisor=SimpleNamespace(alive=self.running))

    @property
    def endpoints(self) -> dict[str, str]:
        http, grpc = self._read().get("ports", (0, 0))
        return {
            "http": f"http://127.0.0.1:{http}",
            "grpc": f"127.0.0.1:{grpc}",
            "admin": "http://127.0.0.1:3",
        }

    @property
    def access_log(self) -> Path:
        return self.folder / "access.jsonl"

    @property
    def kept(self) -> list[str]:
        return list(self._read().get("kept", ()))

    def ensure(self, ports: DoorPorts = DoorPorts(), *, servers: Sequence[Path] | None = None) -> None:  # noqa: B008
        if ports.http in self.taken:
            message = f"port {ports.http} is taken"
            raise StageError(message)
        if servers is not None:
            self.keep(servers)
        self._write(running=True, ports=self._read().get("ports") or (ports.http or 1, ports.grpc or 2))

    def get(self) -> Routed:
        if not self.running:
            message = "the door does not run"
            raise StageError(message)
        return Routed.model_validate(self._read().get("routed") or {"traffic": {}, "etag": "0"})

    def set(
        self, traffic: Traffic, backends: Mapping[str, tuple[Backend, ...]], *, etag: str, epoch: int
    ) -> Routed:
        present = self.get()
        assert present.etag == etag
        assert set(traffic.revisions) <= set(backends)
        with self.lease.guard(epoch):
            if (present.traffic, present.backends) != (traffic, dict(backends)):
                after = Routed(
                    traffic=traffic, backends=dict(backends), since=1.0, etag=str(int(present.etag) + 1)
                )
                self._write(routed=after.model_dump(mode="json"))
        return self.get()

    def ready(self, backend: Backend) -> bool | None:
        return False if backend.name in self.sick else None

    def keep(self, servers: Sequence[Path]) -> None:
        self._write(kept=[str(server) for server in servers])

    def stop(self) -> list[str]:
        was = self.running
        if self.file.exists():
            self._write(running=False, routed=None, kept=[])
        return ["the door"] if was else []


def fake_ask(endpoints: dict[str, str], *, model: str, where: str, golden: Path, **_: Any) -> Judgement:
    """Judge by the text of the model, which is its answer to everything."""
    from shipctl_plugins._triton.api import TritonApi

    port = int(endpoints["http"].rpartition(":")[2])
    body = TritonApi(port).request("POST", f"/v2/models/{model}/infer", b"question")[1]
    wrong = b"wrong" in body
    verdict = Verdict(
        gate=where,
        outcome=Outcome.FAIL if wrong else Outcome.PASS,
        message=f"{where}: agreement {0 if wrong else 1}",
    )
    return Judgement((verdict,), 12, "1", Probe(b"question", 8))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerEnvironment:
    """The environment of servers that look like Triton; asking golden samples of them is faked as well."""
    binary = tmp_path / "fake-triton"
    binary.write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
    binary.chmod(0o755)
    monkeypatch.setattr(preflight, "ask_golden", fake_ask)
    home = Environment(path=tmp_path, python=Path(sys.executable), key="")
    return ServerEnvironment(home, binary, (), tmp_path, tmp_path, "1.31.1")


Open = Callable[..., Local]


@pytest.fixture
def open_local(
    tmp_path: Path, environment: ServerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Return a function: the target as a new process would open it. At the end everything is taken down."""
    monkeypatch.setattr("shipctl_plugins.targets.local.Proxy", FakeDoor)
    pipelines = {"digits"}

    def open_it(
        pipeline: str = "digits", log: Callable[[str], None] = lambda line: None, **options: Any
    ) -> Local:
        pipelines.add(pipeline)
        context = ReleaseContext(
            project=tmp_path, target_dir=tmp_path / "targets" / "local", pipeline=pipeline, version="1.0.0",
            stage="release", revision="", run="run-1", log=log,
        )  # fmt: skip
        local = Local(LocalOptions.model_validate({"replicas": 1, **options}), context)
        local.deployment.make_environment = lambda _log: environment
        return local

    yield open_it
    for pipeline in pipelines:
        open_it(pipeline).deployment.down()


MakeCandidate = Callable[..., Candidate]


@pytest.fixture
def candidate(tmp_path: Path) -> MakeCandidate:
    """Return a function: something to release, whose model is the text ``content``."""
    golden = tiny_dataset(tmp_path / "data", "golden")

    def make(content: str, version: str = "1.0.0", model: str = "digits", golden: Any = golden) -> Candidate:
        root = tmp_path / "made" / f"{model}-{version}"
        if not root.exists():
            (root / model / "1").mkdir(parents=True)
            (root / model / "1" / "model.onnx").write_text(content)
            (root / model / "config.pbtxt").write_text(f'name: "{model}"\n')
        fields = {"model": model, "signature": SIGNATURE, "max_batch_size": 8, "source": "0" * 64}
        repository = sealed(TritonRepository.at(root, **fields))
        return Candidate(
            revision=f"r{version}-{content}", version=version, repository=repository, golden=golden
        )

    return make
