"""The local target keeps what every target promises."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shipctl.release.target import Candidate, Target
from shipctl.stages.context import ReleaseContext, StageContext
from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model
from shipctl.testing.targets import TargetConformance
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins.targets.local import Local, LocalOptions
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions

OLD, NEW = "a" * 64, "b" * 64


def made(folder: Path, version: str, revision: str, scale: float) -> Candidate:
    """The tiny model with its weights scaled: by the answer to zeros, its bias, one is told from another."""
    model = tiny_onnx_model(folder / version / "model")
    graph = onnx.load(model.path)
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor) * np.float32(scale)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(graph, model.path)
    work = folder / version / "work"
    work.mkdir()
    stage = TritonConfig(TritonConfigOptions(name="digits"))
    inputs = TritonConfigInputs(model=sealed(model.located(model.root)))
    repository = stage.run(inputs, StageContext(workdir=work, log=lambda _: None)).repository
    return Candidate(revision, version, sealed(repository), tiny_dataset(folder / version, "golden"))


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, Candidate]:
    folder = tmp_path_factory.mktemp("candidates")
    return made(folder, "1.0.0", OLD, 1.0), made(folder, "2.0.0", NEW, 1.5)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.timeout(300)
class TestConformance(TargetConformance):
    """Real servers behind a real door."""

    name, plugin = "local", Local

    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        context = ReleaseContext(
            project=tmp_path, target_dir=tmp_path / "targets" / "local", pipeline="digits", version="1.0.0",
            stage="release", revision="", run="run-1", log=lambda _: None,
        )  # fmt: skip
        return Local(LocalOptions.model_validate({"replicas": 1}), context)

    def clean_up(self, target: Target) -> None:
        """Kill servers, which nobody asks any more: the polite way, that `down` is tested with, takes seconds."""
        stop = TritonServer.stop
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TritonServer, "stop", lambda server: stop(server, timeout=0))
            target.down()

    def ask(self, target: Target) -> str | None:
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4}]}
        address = f"{target.endpoints()['http']}/v2/models/digits/infer"
        try:
            with urllib.request.urlopen(address, json.dumps(body).encode(), timeout=10) as answer:
                said = json.load(answer)["outputs"][0]["data"][0]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503 and b"closed" in error.read():
                    return None
            raise
        return OLD if abs(said - 0.25) < 0.01 else NEW
