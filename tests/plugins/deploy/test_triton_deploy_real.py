"""The release with real servers, while a client that is not ours keeps asking."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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

from shipctl.stages.artifacts import Artifact, Dataset, TritonRepository
from shipctl.stages.base import Phase
from shipctl.stages.context import StageContext
from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model
from shipctl_plugins._triton.local_target import LocalTarget
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions

pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]

APPLYING = Path(__file__).with_name("applying_process.py")
KILL_POINTS = (
    "after:publish",
    "before:_ask",  # inside the preflight: its server runs and has the model loaded
    "after:preflight",
    "after:lay_out",
    "after:activate",
    "before:commit_stable",
    "after:commit_stable",
    "before:retire",
    "after:retire",
)


@pytest.fixture
def repositories(tmp_path: Path) -> Callable[[str, float], TritonRepository]:
    """Return a function: the repository of the tiny model with its weights scaled."""

    def make(name: str, scale: float) -> TritonRepository:
        model = tiny_onnx_model(tmp_path / name / "model")
        graph = onnx.load(model.path)
        for tensor in graph.graph.initializer:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name)
            )
        onnx.save(graph, model.path)
        (tmp_path / name / "work").mkdir()
        stage = TritonConfig(TritonConfigOptions(name="digits"))
        context = StageContext(workdir=tmp_path / name / "work", log=lambda line: None)
        return sealed(
            stage.run(TritonConfigInputs(model=sealed(model.located(model.root))), context).repository
        )

    return make


@pytest.fixture
def golden(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path / "data", "golden")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[LocalTarget]:
    """The target of this test, taken down at its end."""
    target = LocalTarget(tmp_path / ".shipctl" / "targets" / "local" / "triton", log=lambda line: None)
    yield target
    target.down("digits")
    assert target.server() is None
    assert preflights(target) == []


def preflights(target: LocalTarget) -> list[int]:
    """Processes whose command line names this target's preflight folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(target.folder / "preflight").encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def ask(endpoints: dict[str, str], golden: Dataset) -> dict[str, np.ndarray]:
    """Ask for all golden samples over both protocols, without a version."""
    x = np.load(golden.path)["x"]
    answers = {}
    for protocol, module in (("http", tritonclient.http), ("grpc", tritonclient.grpc)):
        with module.InferenceServerClient(endpoints[protocol].removeprefix("http://")) as client:
            tensor = module.InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x)
            answers[protocol] = client.infer("digits", [tensor]).as_numpy("y")
    return answers


@contextmanager
def client_loop(endpoint: str) -> Iterator[Counter[str]]:
    """Ask all the time, without a version; count answers by the version that gave them, and failures."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def loop() -> None:
        with tritonclient.http.InferenceServerClient(endpoint.removeprefix("http://")) as client:
            tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
            while not stop.is_set():
                try:
                    seen[client.infer("digits", [tensor]).get_response()["model_version"]] += 1
                except Exception as error:  # noqa: BLE001  (whatever it is, the user saw a failure)
                    seen[f"failed: {error}"] += 1
                time.sleep(0.005)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_versions_come_and_go_without_a_failed_request(
    start_release: Callable[..., Any],
    repositories: Callable[[str, float], TritonRepository],
    golden: Dataset,
    target: LocalTarget,
) -> None:
    expected = np.load(golden.path)["y"]
    one, two = repositories("one", 1.0), repositories("two", 1.01)
    first = start_release(one, golden, "1.0.0", scale_down_delay="1s")
    assert first.run().message == "digits 1.0.0 serves as version 1"
    assert first.in_place
    (serving,) = first.stage.status(first.context)
    for answer in ask(serving.endpoints, golden).values():
        np.testing.assert_array_equal(answer.argmax(axis=1), expected.argmax(axis=1))

    with client_loop(serving.endpoints["http"]) as seen:
        second = start_release(two, golden, "1.1.0", scale_down_delay="1s")
        assert second.run().message == "digits 1.1.0 serves as version 2; version 1 is unloaded"
        for answer in ask(serving.endpoints, golden).values():
            np.testing.assert_allclose(answer, expected * 1.01, rtol=1e-5)
        assert set(seen) == {"1", "2"}
        seen.clear()

        bad = start_release(repositories("bad", -1.0), golden, "2.0.0")
        assert bad.run().phase is Phase.REJECTED
        assert bad.steps[-1].message.startswith(
            "preflight of digits 2.0.0: preflight y over HTTP: agreement 0 is not >= 1"
        )
        assert set(seen) == {"2"}
        assert second.in_place

        back = start_release(one, golden, "1.0.0", intent="rollback")
        assert back.run().message == "digits 1.0.0 serves as version 1; version 2 is unloaded"
        assert set(seen) == {"1", "2"}
    assert back.in_place

    server = target.server()
    assert server is not None
    os.kill(server.record.pid, signal.SIGKILL)
    while server.alive:
        time.sleep(0.02)
    assert not back.in_place
    assert not first.stage.status(first.context)[0].healthy
    again = start_release(one, golden, "1.0.0")
    assert again.run().message == "digits 1.0.0 serves"
    (restarted,) = first.stage.status(first.context)
    assert restarted.healthy
    assert restarted.endpoints == serving.endpoints


def job_of(artifact: Artifact) -> dict[str, Any]:
    return {"manifest": artifact.manifest(), "root": str(artifact.root)}


def test_killed_anywhere_it_goes_on_and_repeats_nothing(
    start_release: Callable[..., Any],
    repositories: Callable[[str, float], TritonRepository],
    golden: Dataset,
    target: LocalTarget,
    tmp_path: Path,
) -> None:
    first = start_release(repositories("one", 1.0), golden, "1.0.0")
    first.run()
    (serving,) = first.stage.status(first.context)
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps(
            {
                "repository": job_of(repositories("two", 1.01)),
                "golden": job_of(golden),
                "options": {"scale_down_delay": "500ms"},
                "context": {
                    "project": str(tmp_path),
                    "target_dir": str(first.context.target_dir),
                    "pipeline": "digits",
                    "version": "1.1.0",
                    "stage": "release",
                    "revision": "revision-1.1.0",
                    "run": "run-2",
                },
            }
        )
    )
    with client_loop(serving.endpoints["http"]) as seen:
        for point in KILL_POINTS:
            killed = subprocess.run(
                [sys.executable, APPLYING, job, point], capture_output=True, text=True, check=False
            )
            assert killed.returncode == -signal.SIGKILL, (point, killed.stdout, killed.stderr)
            time.sleep(0.3)
            assert preflights(target) == [], point
        finished = subprocess.run(
            [sys.executable, APPLYING, job, "-"], capture_output=True, text=True, check=True
        )
    assert finished.stdout == "done digits 1.1.0 serves as version 2; version 1 is unloaded\n"
    assert set(seen) == {"1", "2"}
    known = target.releases.model("digits")
    assert known is not None
    assert [entry.number for entry in known.published] == [1, 2]
    assert known.stable == 2
    server = target.server()
    assert server is not None
    assert server.api.loaded_versions("digits") == [2]
    assert server.endpoints == serving.endpoints
