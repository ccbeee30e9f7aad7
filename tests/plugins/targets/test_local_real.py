"""The local target with real servers and a real door, while clients that are not ours keep asking."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import numpy_helper

from shipctl.release.target import Candidate, Commit, Preflight, Prepare, ScaleDown, Shift
from shipctl.release.traffic import Mirror, Traffic
from shipctl.stages.context import ReleaseContext, StageContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model
from shipctl_plugins._envoy.access_log import Entry
from shipctl_plugins._triton.replicas import ReplicaSet
from shipctl_plugins.targets.local import Local, LocalOptions
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(180)]

MakeCandidate = Callable[..., Candidate]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local target")


@pytest.fixture(scope="module")
def candidate(folder: Path) -> MakeCandidate:
    """Return a function: the tiny model with its weights scaled, as a candidate."""
    golden = tiny_dataset(folder / "data", "golden")

    def make(version: str, scale: float, extra: str = "") -> Candidate:
        model = tiny_onnx_model(folder / version / "model")
        graph = onnx.load(model.path)
        for tensor in graph.graph.initializer:
            array = numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(graph, model.path)
        work = folder / version / "work"
        work.mkdir()
        stage = TritonConfig(TritonConfigOptions(name="digits"))
        context = StageContext(workdir=work, log=lambda line: None)
        repository = stage.run(
            TritonConfigInputs(model=sealed(model.located(model.root))), context
        ).repository
        if extra:
            config = repository.root / "digits" / "config.pbtxt"
            config.write_text(config.read_text() + extra)
        return Candidate(f"revision-{version}", version, sealed(repository), golden)

    return make


def open_local(folder: Path, **options: Any) -> Local:
    context = ReleaseContext(
        project=folder, target_dir=folder / "targets" / "local", pipeline="digits", version="1.0.0",
        stage="release", revision="", run="run-1", log=lambda line: None,
    )  # fmt: skip
    return Local(LocalOptions.model_validate(options), context)


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Local]:
    local = open_local(folder)
    yield local
    local.down()
    assert processes_of(folder) == []


def processes_of(folder: Path) -> list[str]:
    """Processes whose command line or environment names this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.decode(errors="replace"))
    return found


def until(seen: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def group(local: Local, number: int) -> ReplicaSet:
    return ReplicaSet(local.deployment.releases, "digits", number)


@contextmanager
def clients(local: Local) -> Iterator[Counter[str]]:
    """Ask all the time over both protocols; count answers by protocol and version, and failures."""
    seen: Counter[str] = Counter()
    stop = threading.Event()
    endpoints = local.endpoints()

    def loop(protocol: str, module: Any) -> None:
        with module.InferenceServerClient(endpoints[protocol].removeprefix("http://")) as client:
            tensor = module.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
            while not stop.is_set():
                try:
                    answer = client.infer("digits", [tensor]).get_response()
                    version = answer["model_version"] if isinstance(answer, dict) else answer.model_version
                    seen[f"{protocol} {version}"] += 1
                except Exception as error:  # noqa: BLE001  (whatever it is, the user saw a failure)
                    seen[f"failed: {error}"] += 1
                time.sleep(0.015)

    threads = [
        threading.Thread(target=loop, args=item)
        for item in (("http", tritonclient.http), ("grpc", tritonclient.grpc))
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def failures(seen: Counter[str]) -> dict[str, int]:
    return {what: count for what, count in seen.items() if what.startswith("failed")}


def prepare(local: Local, candidate: Candidate, epoch: int) -> None:
    local.apply(Prepare(), candidate, epoch)
    assert (
        "preflight passed on Triton 2.51.0, onnxruntime" in local.apply(Preflight(), candidate, epoch).message
    )
    until(lambda: local.observe().ready(candidate.revision))


def test_versions_come_and_go_without_a_failed_request(local: Local, candidate: MakeCandidate) -> None:
    one, two = candidate("1.0.0", 1.0), candidate("1.1.0", 1.01)
    epoch = local.acquire("test")
    began = time.monotonic()
    local.apply(Prepare(), one, epoch)
    assert time.monotonic() - began < 5.0
    prepare(local, one, epoch)
    local.apply(Shift(traffic=Traffic.only(one.revision)), one, epoch)
    local.apply(Commit(expected=None, revision=one.revision), one, epoch)
    assert local.status()[0].healthy
    with clients(local) as seen:
        until(lambda: seen["http 1"] and seen["grpc 1"])
        epoch = local.acquire("test")
        prepare(local, two, epoch)
        assert set(seen) == {"http 1", "grpc 1"}
        half = Traffic(weights={one.revision: 50, two.revision: 50}, fallback=one.revision)
        local.apply(Shift(traffic=half), two, epoch)
        until(lambda: seen["http 2"] and seen["grpc 2"])
        assert local.observe().traffic == half
        local.apply(Shift(traffic=Traffic.only(two.revision)), two, epoch)
        local.apply(Commit(expected=one.revision, revision=two.revision), two, epoch)
        local.apply(ScaleDown(revision=one.revision), two, epoch)
        before = seen["http 1"] + seen["grpc 1"]
        time.sleep(0.5)
        assert seen["http 1"] + seen["grpc 1"] == before
        assert failures(seen) == {}
    seen_now = local.observe()
    assert (seen_now.stable, seen_now.previous, set(seen_now.replicas)) == (
        two.revision,
        None,
        {two.revision},
    )
    assert seen_now.ready(two.revision)


def test_bad_candidates_touch_nothing(local: Local, candidate: MakeCandidate) -> None:
    wrong, broken = candidate("2.0.0", -1.0), candidate("3.0.0", 1.0, "no_such_field: 1\n")
    epoch = local.acquire("test")
    with clients(local) as seen:
        for bad in (wrong, broken):
            local.apply(Prepare(), bad, epoch)
            applied = local.apply(Preflight(), bad, epoch)
            assert {verdict.outcome for verdict in applied.verdicts} & {Outcome.FAIL}
            if bad is broken:  # what the API hides, the log says
                assert "no_such_field" in applied.message
                problem = until(lambda: local.observe().replicas[broken.revision].problem)
                assert "no_such_field" in problem
            else:
                assert applied.message.startswith(
                    "preflight of digits 2.0.0: preflight y over HTTP: agreement 0 is not >= 1"
                )
            local.apply(ScaleDown(revision=bad.revision), bad, epoch)
        assert failures(seen) == {}


def test_copies_are_compared_and_whoever_asked_hears_nothing_of_it(
    local: Local, candidate: MakeCandidate
) -> None:
    stable, other = "revision-1.1.0", candidate("1.2.0", -1.0)
    epoch = local.acquire("test")
    local.apply(Prepare(), other, epoch)
    until(lambda: local.observe().ready(other.revision))
    shadow = Traffic.only(stable).model_copy(update={"mirror": Mirror(percent=100, candidate=other.revision)})
    compared = local.deployment.door.folder / "comparisons.jsonl"
    with clients(local) as seen:
        message = local.apply(Shift(traffic=shadow), other, epoch).message
        assert message == "digits: 100 % to 1.1.0, copies of 100 % for a comparison"
        assert local.apply(Shift(traffic=shadow), other, epoch).message == message
        until(lambda: compared.exists() and len(compared.read_text().splitlines()) > 5)
        assert set(seen) == {"http 2", "grpc 2"}
    local.apply(Shift(traffic=Traffic.only(stable)), other, epoch)
    assert not (local.deployment.door.folder / "comparator.json").exists()
    local.apply(ScaleDown(revision=other.revision), other, epoch)


def test_golden_samples_are_load_until_that_is_stopped(local: Local, candidate: MakeCandidate) -> None:
    replayed = candidate("1.1.1", 1.01)
    log = local.deployment.door.access_log

    def logged() -> list[Entry]:
        return [
            entry for line in log.read_text().splitlines() if (entry := Entry.parse(line)) and entry.inference
        ]

    time.sleep(0.5)  # what was asked before is in the log by then
    before = len(logged())
    local.replay(replayed, 50.0)
    local.replay(replayed, 50.0)
    until(lambda: len(logged()) > before + 60)
    local.replay(replayed, None)
    time.sleep(0.5)
    entries = logged()[before:]
    assert {entry.code for entry in entries} == {200}
    rate = (len(entries) - 1) / (entries[-1].start - entries[0].start)
    assert 35 < rate < 55
    time.sleep(0.5)
    assert len(logged()) == before + len(entries)


def test_replica_that_is_killed_is_stood_in_for_and_comes_back(local: Local) -> None:
    with clients(local) as seen:
        until(lambda: seen["http 2"] and seen["grpc 2"])
        server = group(local, 2).servers()[0]
        os.killpg(server.record.pid, signal.SIGKILL)
        until(lambda: not local.observe().ready("revision-1.1.0"))
        until(lambda: local.observe().ready("revision-1.1.0"))
        failed, asked = sum(failures(seen).values()), sum(seen.values())
    assert failed <= max(2, asked // 200), seen


def test_everything_that_was_killed_serves_again_where_it_did(local: Local, folder: Path) -> None:
    addresses = {name: local.status()[0].endpoints[name] for name in ("http", "grpc")}
    door = local.deployment.door.processes
    for pid in (door.supervisor.pid, door.envoy.pid):
        assert pid
        os.kill(pid, signal.SIGKILL)
    for server in group(local, 2).servers():
        os.killpg(server.record.pid, signal.SIGKILL)
    until(lambda: not local.status()[0].healthy)
    again = open_local(folder)
    again.acquire("test")
    until(lambda: again.observe().ready("revision-1.1.0"))
    (serving,) = again.status()
    assert serving.healthy
    assert {name: serving.endpoints[name] for name in ("http", "grpc")} == addresses
    with clients(again) as seen:
        until(lambda: seen["http 2"] > 3 and seen["grpc 2"] > 3)
        assert failures(seen) == {}
