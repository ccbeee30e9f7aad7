"""Real Triton servers: start, find again, load what `triton-config` makes, say why not, leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import OnnxModel
from shipctl.stages.context import StageContext
from shipctl.testing.samples import sealed
from shipctl_plugins._triton.api import TritonApi, TritonApiError
from shipctl_plugins._triton.client import InferenceError, asking
from shipctl_plugins._triton.config_text import DIGEST_PARAMETER
from shipctl_plugins._triton.environment import ServerEnvironment, ensure_server_environment
from shipctl_plugins._triton.golden import Tolerance, ask_golden
from shipctl_plugins._triton.probe import answers_as_recorded, record_probe
from shipctl_plugins._triton.processes import Ports
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions

pytestmark = pytest.mark.triton

IMAGE, LABEL = 'an "image"', "label"
CACHE = ("--cache-config=local,size=1048576",)


@pytest.fixture(scope="module")
def environment() -> ServerEnvironment:
    return ensure_server_environment(print)


@pytest.fixture(scope="module")
def server(
    environment: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    running = TritonServer.start(
        environment, repository=folder / "models", folder=folder / "server", bound=True, arguments=CACHE
    )
    yield running
    running.stop()
    assert shared_memory(running) == []


@pytest.fixture
def models(server: TritonServer) -> Path:
    return server.state.parent.parent / "models"


def shared_memory(server: TritonServer) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{server.record.shm_prefix}*"))


def processes_of(server: TritonServer) -> list[int]:
    """The server and everything it has started, by the mark in their environment."""
    mark = f"SHIPCTL_SERVER={server.record.shm_prefix}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def classifier(folder: Path) -> OnnxModel:
    """float32 `an "image"` [batch, 4] to int64 `label` [batch], its largest element's index, and `twice` the image."""
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", [IMAGE], [LABEL], axis=1, keepdims=0),
            helper.make_node("Add", [IMAGE, IMAGE], ["twice"]),
        ],
        "classifier",
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info(LABEL, TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        folder / "model.onnx",
    )
    signature = Signature(
        inputs=(TensorSpec(name=IMAGE, dtype="float32", shape=("batch", 4)),),
        outputs=(
            TensorSpec(name=LABEL, dtype="int64", shape=("batch",)),
            TensorSpec(name="twice", dtype="float32", shape=("batch", 4)),
        ),
    )
    return sealed(OnnxModel.at(folder / "model.onnx", signature=signature, opset=21))


def test_repository_of_triton_config_is_served_bit_by_bit(
    server: TritonServer, models: Path, tmp_path: Path
) -> None:
    """Quotes in a name, one number per sample, warm-up, response cache, and batching across requests."""
    model = classifier(tmp_path / "model")
    stage = TritonConfig(
        TritonConfigOptions.model_validate(
            {
                "name": "classifier",
                "max_batch_size": 8,
                "warmup": [1, 8],
                "response_cache": True,
                "dynamic_batching": {"max_queue_delay": "1ms", "preferred_batch_size": [4]},
                "instance_group": {"count": 2, "kind": "cpu"},
                "parameters": {"intra_op_thread_count": "1"},
            }
        )
    )
    work = tmp_path / "work"
    work.mkdir()
    repository = stage.run(
        TritonConfigInputs(model=model), StageContext(workdir=work, log=lambda line: None)
    ).repository
    (repository.root / "classifier").rename(models / "classifier")
    server.load("classifier")
    assert server.api.loaded_versions("classifier") == [1]
    assert server.api.parameter("classifier", DIGEST_PARAMETER) == model.digest

    images = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    labels, twice = session.run(None, {IMAGE: images})
    np.savez(tmp_path / "golden.npz", **{IMAGE: images, LABEL: labels, "twice": twice})
    judgement = ask_golden(
        server.endpoints,
        model="classifier",
        signature=model.signature,
        max_batch_size=8,
        golden=tmp_path / "golden.npz",
        tolerance=Tolerance(cosine=1.0, max_abs_error=0.0),
        timeout=30.0,
    )
    assert judgement.summary == "12 golden samples agree over HTTP and gRPC"
    assert judgement.version == "1"

    assert judgement.probe is not None
    probe = tmp_path / "probe.json"
    record_probe(server.api, "classifier", judgement.probe, probe)
    assert answers_as_recorded(server.api, "classifier", probe)
    changed = json.loads(probe.read_text())
    probe.write_text(json.dumps({**changed, "version": "2"}))
    assert not answers_as_recorded(server.api, "classifier", probe)
    assert not answers_as_recorded(TritonApi(1, timeout=1.0), "classifier", probe)


def test_hidden_reason_of_a_failed_load_is_shown(server: TritonServer, models: Path) -> None:
    (models / "broken").mkdir()
    (models / "broken" / "config.pbtxt").write_text('name: "broken"\nbackend: "onnxruntime"\nbatch_size: 4\n')
    with pytest.raises(StageError) as caught:
        server.load("broken")
    first, second, *rest = str(caught.value).splitlines()
    assert first == (
        "Triton could not load broken: failed to load 'broken', failed to poll from model repository"
    )
    assert second == "the server's log says"
    assert any('has no field named "batch_size"' in line for line in rest), rest


def test_disagreement_with_the_graph_is_refused_in_tritons_words(
    server: TritonServer, models: Path, tmp_path: Path
) -> None:
    model = classifier(tmp_path / "model")
    (models / "wrong" / "1").mkdir(parents=True)
    (models / "wrong" / "1" / "model.onnx").write_bytes(model.path.read_bytes())
    (models / "wrong" / "config.pbtxt").write_text(
        'platform: "onnxruntime_onnx" max_batch_size: 4\n'
        'input { name: "an \\"image\\"" data_type: TYPE_FP32 dims: [2, 2] }\n'
        'output { name: "label" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }\n'
    )
    with pytest.raises(
        StageError, match=r"model 'wrong', tensor 'an \"image\"': the model expects 2 dimensions"
    ):
        server.load("wrong")
    # Without inputs and outputs the configuration is completed from the graph, by the platform's name too.
    (models / "wrong" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\n')
    server.load("wrong")
    config = server.api.config("wrong")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (4, [4])


def test_server_that_does_not_know_or_does_not_answer_is_an_error(server: TritonServer) -> None:
    address = server.endpoints["http"].removeprefix("http://")
    with (
        asking("http", address, "nothing", ["y"]) as ask,
        pytest.raises(InferenceError, match="unknown model: 'nothing' is not found"),
    ):
        ask({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(TritonApiError, match=r"^no answer from 127\.0\.0\.1:1: "):
        TritonApi(1).server_id()


def test_detached_server_is_found_again_and_a_reused_pid_is_not(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    folder = tmp_path / "server"
    started = TritonServer.start(environment, repository=tmp_path / "models", folder=folder)
    try:
        found = TritonServer.attach(folder)
        assert found is not None
        assert found.record == started.record
        assert found.answers()
        state = json.loads((folder / "server.json").read_text())
        for change in ({"start_time": state["start_time"] - 1}, {"boot_id": "another"}):
            (folder / "server.json").write_text(json.dumps({**state, **change}))
            assert TritonServer.attach(folder) is None
        with pytest.raises(StageError) as caught:
            TritonServer.start(
                environment,
                repository=tmp_path / "models",
                folder=tmp_path / "second",
                ports=found.record.ports,
            )
        message = str(caught.value)
        assert message.startswith(
            f"the Triton server ended while starting; its log ({tmp_path}/second/server.log) ends with"
        )
        assert "already in use" in message
    finally:
        started.stop()
    assert not started.alive
    assert processes_of(started) == []


def test_free_ports_are_distinct_and_given_ones_are_kept() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        chosen = Ports(http=taken.getsockname()[1]).chosen()
        assert chosen.http == taken.getsockname()[1]
    assert len({chosen.http, chosen.grpc, chosen.metrics}) == 3
    assert 0 not in (chosen.http, chosen.grpc, chosen.metrics)


def test_bound_server_ends_with_its_starter_however_that_ends(
    environment: ServerEnvironment, server: TritonServer, models: Path, tmp_path: Path
) -> None:
    """SIGKILL of the starter: server, stub processes and shared memory go."""
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from shipctl_plugins._triton.environment import ensure_server_environment
        from shipctl_plugins._triton.server import TritonServer
        server = TritonServer.start(ensure_server_environment(print), repository=Path({str(models)!r}),
                                    folder=Path({str(tmp_path)!r}), bound=True, arguments={CACHE!r})
        server.load("classifier")
        print("loaded", flush=True)
        time.sleep(60)
    """)
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "loaded\n"
        running = TritonServer.attach(tmp_path)
        assert running is not None
        assert len(processes_of(running)) > 1
        assert shared_memory(running)
    finally:
        starter.kill()
        starter.communicate()
    assert wait_until(lambda: processes_of(running) == [] and shared_memory(running) == [])


def test_nothing_of_a_killed_server_is_left(
    environment: ServerEnvironment, models: Path, tmp_path: Path
) -> None:
    started = TritonServer.start(
        environment, repository=models, folder=tmp_path, models=["classifier"], arguments=CACHE
    )
    assert started.api.loaded_versions("classifier") == [1]
    os.kill(started.record.pid, signal.SIGKILL)
    assert wait_until(lambda: not started.alive)
    TritonServer.clean_up(tmp_path)
    assert wait_until(lambda: processes_of(started) == [])
    assert shared_memory(started) == []
    assert TritonServer.attach(tmp_path) is None
