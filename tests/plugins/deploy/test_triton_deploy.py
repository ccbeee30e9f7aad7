"""The release's corner cases against a fake server that loads, serves and breaks as Triton was seen to."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, TritonRepository
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.fixtures import FakeClock
from shipctl.testing.samples import SIGNATURE, sealed, tiny_dataset
from shipctl_plugins._triton import local_target
from shipctl_plugins._triton.golden import Judgement, Probe
from shipctl_plugins._triton.processes import Ports


@dataclass
class FakeServer:
    """Serves the text of `model.onnx` by version. `hang`, `crash` and `dead` in that text are what happens."""

    repository: Path
    folder: Path
    ports: Ports
    bound: bool
    pid: int
    loaded: dict[str, dict[int, str]] = field(default_factory=dict)
    revision: dict[str, str] = field(default_factory=dict)
    alive: bool = True
    hung: bool = False

    running: ClassVar[dict[Path, FakeServer]] = {}
    started: ClassVar[list[FakeServer]] = []
    broken_loads: ClassVar[int] = 0
    taken: ClassVar[set[int]] = set()

    @classmethod
    def start(
        cls,
        environment: object,
        *,
        repository: Path,
        folder: Path,
        ports: Ports | None = None,
        models: Sequence[str] = (),
        bound: bool = False,
        arguments: Sequence[str] = (),
    ) -> FakeServer:
        wanted = ports or Ports()
        if wanted.http in cls.taken:
            message = "the Triton server ended while starting"
            raise StageError(message)
        chosen = Ports(wanted.http or 8000, wanted.grpc or 8001, wanted.metrics or 8002)
        server = cls(repository, folder, chosen, bound, pid=100 + len(cls.started))
        cls.started.append(server)
        cls.running[folder] = server
        for model in models:
            server.load(model)
        return server

    @classmethod
    def attach(cls, folder: Path) -> FakeServer | None:
        server = cls.running.get(folder)
        return server if server and server.alive else None

    @classmethod
    def clean_up(cls, folder: Path) -> None:
        if folder in cls.running and not cls.running[folder].alive:
            del cls.running[folder]

    @property
    def record(self) -> FakeServer:
        return self

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def api(self) -> FakeServer:
        return self

    @property
    def endpoints(self) -> dict[str, str]:
        return {"http": f"http://127.0.0.1:{self.ports.http}", "grpc": f"127.0.0.1:{self.ports.grpc}"}

    def answers(self) -> bool:
        return self.alive and not self.hung

    def server_version(self) -> str:
        return "2.51.0"

    def load(self, model: str, *, timeout: float = 0) -> None:
        if FakeServer.broken_loads and not self.bound:
            FakeServer.broken_loads -= 1
            message = f"Triton could not load {model}: out of memory"
            raise StageError(message)
        config = (self.repository / model / "config.pbtxt").read_text()
        found = re.search(r"versions: \[([\d, ]+)\]", config)
        assert found
        numbers = [int(number) for number in found[1].split(",")]
        fresh = {
            number: (self.repository / model / str(number) / "model.onnx").read_text() for number in numbers
        }
        if bad := [number for number, text in fresh.items() if "unloadable" in text]:
            message = f"Triton could not load {model}: version {bad[0]} is at UNAVAILABLE state"
            raise StageError(message)
        self.loaded[model] = {**fresh, **{n: t for n, t in self.loaded.get(model, {}).items() if n in fresh}}
        revision = re.findall(r'"shipctl.revision" value { string_value: "([^"]*)"', config)
        self.revision[model] = revision[-1]

    def unload(self, model: str, *, timeout: float = 0) -> None:
        self.loaded.pop(model, None)

    def loaded_versions(self, model: str) -> list[int]:
        return sorted(self.loaded.get(model, {}))

    def parameter(self, model: str, key: str) -> str | None:
        return self.revision.get(model) if model in self.loaded else None

    def stop(self, timeout: float = 0) -> None:
        self.alive = False
        self.running.pop(self.folder, None)

    def answer(self, model: str = "digits", version: int | None = None) -> tuple[int, str]:
        """Version and text that answer: the largest version, unless one is asked for."""
        versions = self.loaded.get(model, {})
        if not versions or not self.alive:
            return 0, ""
        number = version or max(versions)
        return number, versions[number]


def fake_ask(
    endpoints: dict[str, str], *, where: str, model: str, version: int | None, **_: Any
) -> Judgement:
    # In this fake a preflight server has the same ports as the one that serves; the latest is meant.
    asked = next(
        server for server in reversed(FakeServer.started) if server.alive and server.endpoints == endpoints
    )
    number, text = asked.answer(model, version)
    wrong = "wrong" in text or (where == "serving" and "shy" in text) or not text
    outcome = Outcome.FAIL if wrong else Outcome.PASS
    verdict = Verdict(gate=where, outcome=outcome, message=f"{where}: agreement {0 if wrong else 1}")
    return Judgement((verdict,), 12, str(number), Probe(b"probe", 5))


@pytest.fixture(autouse=True)
def fake_triton(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    FakeServer.running, FakeServer.started, FakeServer.broken_loads = {}, [], 0
    FakeServer.taken = set()

    def record(server: FakeServer, model: str, probe: Probe, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repr(server.answer(model)))

    def answers_as_recorded(server: FakeServer, model: str, path: Path) -> bool:
        return path.exists() and path.read_text() == repr(server.answer(model))

    monkeypatch.setattr(local_target, "TritonServer", FakeServer)
    monkeypatch.setattr(local_target, "ask_golden", fake_ask)
    monkeypatch.setattr(local_target, "record_probe", record)
    monkeypatch.setattr(local_target, "answers_as_recorded", answers_as_recorded)
    monkeypatch.setattr(local_target, "_HUNG_AFTER_S", 0.0)
    monkeypatch.setattr(local_target, "_POLL_S", 0.0)
    monkeypatch.setattr(
        local_target.LocalTarget, "environment", lambda self: SimpleNamespace(onnxruntime="1.31.1")
    )
    return FakeServer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def release(tmp_path: Path, start_release: Callable[..., Any], clock: FakeClock) -> Callable[..., Any]:
    """Return a function: begin the release of a repository whose model is ``content``."""
    golden = tiny_dataset(tmp_path / "data", "golden")

    def begin(content: str, version: str, *, config: str = "", model: str = "digits", **more: object) -> Any:
        root = tmp_path / "made" / f"{version}-{model}"
        if not root.exists():
            (root / model / "1").mkdir(parents=True)
            (root / model / "1" / "model.onnx").write_text(content)
            (root / model / "config.pbtxt").write_text(f'name: "{model}"\n{config}')
        fields = {"model": model, "signature": SIGNATURE, "max_batch_size": 8, "source": "0" * 64}
        repository = sealed(TritonRepository.at(root, **fields))
        assert isinstance(golden, Dataset)
        return start_release(repository, golden, version, now=clock, sleep=clock.sleep, **more)

    return begin


def server() -> FakeServer:
    (only,) = [server for server in FakeServer.running.values() if server.alive]
    return only


Begin = Callable[..., Any]


def test_first_version_serves_after_its_preflight(release: Begin) -> None:
    first = release("one", "1.0.0")
    assert not first.in_place
    assert first.run().message == "digits 1.0.0 serves as version 1"
    assert first.phases == ["preparing", "preflight", "promoting", "done"]
    assert (
        "preflight passed on Triton 2.51.0, onnxruntime 1.31.1, CPU: 12 golden samples agree over HTTP and gRPC"
        in [step.message for step in first.steps]
    )
    assert first.in_place
    assert server().answer() == (1, "one")
    assert [started.bound for started in FakeServer.started] == [True, False]


def test_second_version_takes_over_beside_the_first_which_goes_later(
    release: Begin, clock: FakeClock
) -> None:
    release("one", "1.0.0").run()
    second = release("two", "1.1.0")
    second.run(until=lambda step: step.phase is Phase.WATCHING)
    assert server().loaded_versions("digits") == [1, 2]
    assert server().answer() == (2, "two")
    began = clock()
    assert second.run().message == "digits 1.1.0 serves as version 2; version 1 is unloaded"
    assert clock() - began == 30.0
    assert server().loaded_versions("digits") == [2]
    assert second.phases == ["preparing", "preflight", "promoting", "watching", "done"]


def test_other_configuration_replaces_the_old_version_at_once(release: Begin, clock: FakeClock) -> None:
    release("one", "1.0.0").run()
    second = release("two", "2.0.0", config="max_batch_size: 4\n")
    began = clock()
    assert second.run().phase is Phase.DONE
    assert (server().loaded_versions("digits"), clock() - began) == ([2], 0.0)


@pytest.mark.parametrize(
    ("content", "reason"), [("wrong", "preflight: agreement 0"), ("unloadable", "Triton could not load")]
)
def test_bad_version_is_rejected_and_the_good_one_is_not_touched(
    release: Begin, content: str, reason: str
) -> None:
    release("one", "1.0.0").run()
    before = server()
    bad = release(content, "2.0.0")
    end = bad.run()
    assert end.phase is Phase.REJECTED
    assert end.message.startswith(f"preflight of digits 2.0.0: {reason}")
    assert [verdict.outcome for verdict in end.verdicts] == [Outcome.FAIL]
    assert server() is before
    assert server().answer() == (1, "one")
    assert not bad.in_place


def test_bad_first_version_starts_no_server(release: Begin) -> None:
    assert release("wrong", "1.0.0").run().phase is Phase.REJECTED
    assert [started.bound for started in FakeServer.started] == [True]
    assert FakeServer.running == {}


def test_version_that_fails_once_it_serves_is_taken_back(release: Begin) -> None:
    release("one", "1.0.0").run()
    shy = release("shy", "2.0.0")
    assert shy.run().message == "1.0.0 (version 1) of digits serves again"
    assert shy.phases == ["preparing", "preflight", "promoting", "aborting", "rolled-back"]
    assert server().loaded_versions("digits") == [1]
    assert shy.steps[-2].message == "version 2 of digits does not serve as it should: serving: agreement 0"


def test_first_version_that_fails_once_it_serves_leaves_nothing_open(release: Begin) -> None:
    shy = release("shy", "1.0.0")
    assert shy.run().message == "digits 1.0.0 was withdrawn; nothing serves"
    assert shy.steps[-1].phase is Phase.REJECTED
    assert FakeServer.running == {}


def test_load_that_fails_puts_back_what_served(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "2.0.0")
    second.run(until=lambda step: step.phase is Phase.PREFLIGHT)
    FakeServer.broken_loads = 1
    assert second.run().phase is Phase.ROLLED_BACK
    assert server().answer() == (1, "one")


def test_restore_goes_as_far_as_a_new_server(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "2.0.0")
    second.run(until=lambda step: step.phase is Phase.WATCHING)
    before = server()
    FakeServer.broken_loads = 2
    assert second.abort().phase is Phase.ROLLED_BACK
    assert server() is not before
    assert server().answer() == (1, "one")


def test_restore_that_cannot_work_says_so(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "2.0.0")
    second.run(until=lambda step: step.phase is Phase.WATCHING)
    FakeServer.broken_loads = 9
    with pytest.raises(StageError) as caught:
        second.abort()
    assert str(caught.value) == (
        "version 1 of digits could not be put back: Triton could not load digits: out of memory"
    )


def test_new_version_that_stops_answering_is_left_for_the_old_one(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "1.1.0")
    second.run(until=lambda step: step.phase is Phase.WATCHING)
    server().loaded["digits"][2] = "broken"
    assert second.run().phase is Phase.ROLLED_BACK
    assert second.steps[-2].message == "version 2 of digits stopped answering"
    assert server().answer() == (1, "one")
    assert release("one", "1.0.0").in_place


def test_machine_that_was_switched_off_while_watching_goes_on(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "1.1.0")
    second.run(until=lambda step: step.phase is Phase.WATCHING)
    server().alive = False
    assert second.run().phase is Phase.DONE
    assert server().answer() == (2, "two")


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.PREFLIGHT, Phase.PROMOTING, Phase.WATCHING])
def test_abort_from_any_phase_restores_what_served(release: Begin, phase: Phase) -> None:
    release("one", "1.0.0").run()
    second = release("two", "1.1.0")
    second.run(until=lambda step: step.phase is phase)
    end = second.abort()
    assert end.phase is (Phase.REJECTED if phase is Phase.PREPARING else Phase.ROLLED_BACK)
    assert server().answer() == (1, "one")
    assert release("one", "1.0.0").in_place
    assert not second.in_place


@pytest.mark.parametrize("twice", range(8))
def test_every_step_can_be_taken_twice(release: Begin, twice: int) -> None:
    """Killed after the effect and before the state was written: the same step again changes nothing."""
    release("one", "1.0.0").run()
    second = release("two", "1.1.0")
    for _ in range(twice):
        second.step()
    state = second.state
    again = second.stage.step(state, second.inputs, second.context)
    second.state = state
    assert second.step() == again[1]
    assert second.run().phase is Phase.DONE
    assert server().loaded_versions("digits") == [2]
    assert [entry.number for entry in target_models(second)["digits"].published] == [1, 2]


def target_models(release: Any) -> dict[str, Any]:
    return dict(release.stage._target(release.context).releases.record().models)


def test_abort_can_be_taken_twice(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "1.1.0")
    second.run(until=lambda step: step.phase is Phase.WATCHING)
    for _ in range(2):
        _, step = second.stage.abort(second.state, second.inputs, second.context)
        assert step.phase is Phase.ROLLED_BACK
    assert server().answer() == (1, "one")


def test_rollback_needs_no_preflight_and_keeps_the_number(release: Begin) -> None:
    release("one", "1.0.0").run()
    release("two", "1.1.0").run()
    back = release("one", "1.0.0", intent="rollback")
    count = len(FakeServer.started)
    assert back.run().message == "digits 1.0.0 serves as version 1; version 2 is unloaded"
    assert len(FakeServer.started) == count
    assert server().answer() == (1, "one")
    third = release("three", "1.2.0")
    assert third.run().phase is Phase.DONE
    assert server().answer() == (3, "three")


def test_server_that_died_is_started_again_where_it_was(release: Begin) -> None:
    first = release("one", "1.0.0", http_port=8123)
    first.run()
    server().alive = False
    assert not first.in_place
    again = release("one", "1.0.0", http_port=8123)
    assert again.run().message == "digits 1.0.0 serves"
    assert server().ports.http == 8123
    assert len(FakeServer.started) == 3


def test_server_that_hangs_is_replaced(release: Begin) -> None:
    release("one", "1.0.0").run()
    server().hung = True
    said: list[str] = []
    release("one", "1.0.0", log=said.append).run()
    assert said[0] == "the Triton server (pid 101) does not answer; it is started anew"
    assert server().answer() == (1, "one")


def test_chosen_port_that_somebody_has_taken_is_chosen_anew(release: Begin) -> None:
    release("one", "1.0.0").run()
    server().alive = False
    FakeServer.taken = {8000}
    assert release("one", "1.0.0").run().message == "digits 1.0.0 serves"


def test_demanded_port_that_somebody_has_taken_is_an_error(release: Begin) -> None:
    first = release("one", "1.0.0", http_port=8123)
    FakeServer.taken = {8123}
    assert first.run().phase is Phase.REJECTED
    assert "the Triton server ended while starting" in [step.message for step in first.steps]


def test_other_port_than_the_servers_is_refused(release: Begin) -> None:
    release("one", "1.0.0").run()
    second = release("two", "1.1.0", http_port=9000)
    second.step()
    assert second.steps[-1].message == (
        "the Triton server of this target already serves with http_port 8000, not 9000; `shipctl down` stops it, or "
        "leave the port out"
    )
    assert second.run().phase is Phase.REJECTED


def test_status_preview_and_down(release: Begin, clock: FakeClock) -> None:
    first = release("one", "1.0.0")
    stage, context = first.stage, first.context
    assert stage.preview(context) == [
        "nothing serves: the first version starts the server once it has passed its preflight"
    ]
    assert stage.status(context) == []
    first.run()
    (serving,) = stage.status(context)
    assert (serving.name, serving.version, serving.revision) == ("digits", "1.0.0", "revision-1.0.0")
    assert (serving.since, serving.healthy) == (clock(), True)
    assert serving.endpoints["http"] == "http://127.0.0.1:8000"
    assert serving.details["triton version"] == "1"
    (line,) = stage.preview(context)
    assert line == (
        "digits 1.0.0 (Triton version 1, revision revision-1.0) serves; the new version is loaded beside it after its "
        "preflight, takes over, and the old one is unloaded 30s later"
    )
    server().alive = False
    (dead,) = stage.status(context)
    assert (dead.healthy, dead.endpoints) == (False, {})
    release("one", "1.0.0").run()
    assert stage.down(context) == ["the Triton server of digits (pid 102) was stopped"]
    assert stage.status(context) == []
    assert FakeServer.running == {}
    assert release("one", "1.0.0").run().message == "digits 1.0.0 serves as version 1"


def test_two_models_share_the_server(release: Begin) -> None:
    release("one", "1.0.0").run()
    other = release("other", "1.0.0", model="letters", revision="r")
    other.context = replace(other.context, pipeline="letters")
    assert other.run().phase is Phase.DONE
    assert server().loaded.keys() == {"digits", "letters"}
    assert other.stage.down(other.context) == [
        "letters was unloaded from the Triton server, which goes on serving digits"
    ]
    assert server().answer("digits") == (1, "one")


def test_files_that_the_release_lost_are_named(release: Begin) -> None:
    first = release("one", "1.0.0")
    first.run(until=lambda step: step.phase is Phase.PROMOTING)
    shutil.rmtree(first.context.target_dir)
    first.step()
    assert first.steps[-1].message == "version 1 of digits is gone from the target; run again"


def test_target_is_local(release: Begin) -> None:
    assert release("one", "1.0.0").stage.target() == "local"
