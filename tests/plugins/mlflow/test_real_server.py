"""A real MLflow server with a database: what `mlflow-register` leaves there, seen by clients that are not ours."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from shipctl.errors import SpecError, StoreError
from shipctl.stages.artifacts import ModelPackage
from shipctl.stages.base import Phase
from shipctl_plugins._mlflow.client import MlflowServer
from shipctl_plugins.register.mlflow_register import MlflowRegister, MlflowRegisterInputs, MlflowRegisterState
from shipctl_plugins.sources.mlflow_source import MlflowSource
from support_engine import EngineProject
from support_mlflow import (
    WRITES,
    InProcessMlflow,
    Killed,
    RealMlflow,
    Releaser,
    make_package,
    stage_on,
    start_mlflow,
)
from support_proxy import proxy_to

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = [pytest.mark.mlflow, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMlflow]:
    running = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield running
    running.stop()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    return tmp_path


def save_graph(path: Path) -> NDArray[np.float32]:
    """Write an ONNX graph with one weight of 16 KiB, and return that."""
    weights = np.arange(4096, dtype=np.float32).reshape(64, 64)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return weights


class SourcePoint:
    """The entry point of the source."""

    name = "mlflow"
    value = "shipctl_plugins.sources.mlflow_source:MlflowSource"

    def load(self) -> type[MlflowSource]:
        return MlflowSource


def registered(server: RealMlflow, name: str) -> list[dict[str, Any]]:
    """Return the versions of a model, newest first, by plain REST."""
    return list(server.rest("model-versions/search", filter=f"name = '{name}'").get("model_versions", []))


def alias(server: RealMlflow, name: str, which: str) -> str:
    return str(server.rest("registered-models/alias", name=name, alias=which)["model_version"]["version"])


def runs(server: RealMlflow, name: str, package: ModelPackage) -> list[dict[str, Any]]:
    experiment = server.rest("experiments/get-by-name", experiment_name=name)["experiment"]
    wanted = f"tags.`shipctl.digest` = '{package.digest}'"
    body = {"experiment_ids": [experiment["experiment_id"]], "filter": wanted}
    return list(server.rest("runs/search", body).get("runs", []))


def test_two_versions_move_the_alias_and_a_rollback_moves_it_back(server: RealMlflow, project: Path) -> None:
    name = "two-versions"
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = Releaser(project, lambda: stage_on(server.uri, name=name, alias="production"))
    assert not driver.in_place(first)
    assert driver.release(first).phase is Phase.DONE
    assert alias(server, name, "production") == "1"
    assert driver.release(second).phase is Phase.DONE
    assert alias(server, name, "production") == "2"

    newest, oldest = registered(server, name)
    assert (newest["version"], oldest["version"]) == ("2", "1")
    assert oldest["source"] == "shipctl:/digits@1.0.0"
    tags = {item["key"]: item["value"] for item in oldest["tags"]}
    assert tags["shipctl.digest"] == first.digest
    assert tags["shipctl.owner"] == "vision-team"
    [run] = runs(server, name, first)
    assert oldest["run_id"] == run["info"]["run_id"]
    assert run["info"]["run_name"] == "digits@1.0.0"
    assert run["info"]["status"] == "FINISHED"
    assert {item["key"]: item["value"] for item in run["data"]["metrics"]} == {
        "accuracy": 0.97,
        "latency.p95": 0.0021,
    }
    params = {item["key"]: item["value"] for item in run["data"]["params"]}
    assert params["output.y"] == "float32 [batch, 2]"
    model = server.rest("registered-models/get", name=name)["registered_model"]
    assert model["description"] == "Reads handwritten digits."

    assert driver.in_place(second)
    assert not driver.in_place(first)
    assert driver.release(first, intent="rollback", run="rollback").phase is Phase.DONE
    assert alias(server, name, "production") == "1"
    assert [item["version"] for item in registered(server, name)] == ["2", "1"]
    assert driver.in_place(first)
    [serving] = driver.make().status(driver.context(first))
    assert (serving.version, serving.healthy) == ("1.0.0", True)


def test_killed_at_any_call_that_writes_there_is_one_version_and_one_run(
    server: RealMlflow, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    name, transport = "killed", InProcessMlflow(server.uri)

    def stage() -> MlflowRegister:
        made = stage_on(server.uri, name=name, alias="production")
        made.__dict__["_server"] = MlflowServer(made._server.login, transport)
        return made

    driver = Releaser(project, stage)
    driver.release(make_package(project, "0.9.0"))
    transport.forget()
    driver.release(make_package(project, "0.9.1"))
    # One that only reads leaves the server as the call before it did, and so does one that is never made;
    # test_mlflow_register has all of them.
    writing = [index for index, call in enumerate(transport.calls) if call.startswith(WRITES)]
    assert {transport.calls[index] for index in writing} == {
        "create_run", "log_run", "finish_run", "create_version", "set_alias",
    }  # fmt: skip
    moments = [("die_before", writing[0]), *(("die_after", index) for index in writing)]
    for number, (moment, index) in enumerate(moments):
        package = make_package(project, f"1.0.{number}")
        driver.kept, driver.steps = {}, []
        transport.forget()
        setattr(transport, moment, index)
        with pytest.raises(Killed):
            driver.drive(package)
        transport.forget()
        assert driver.drive(package).phase is Phase.DONE
        [version] = transport.agent.versions(name, "shipctl.digest", package.digest)
        [run] = runs(server, name, package)
        assert version["run_id"] == run["info"]["run_id"]
        assert alias(server, name, "production") == str(version["version"])
        metrics = server.rest("metrics/get-history", run_id=version["run_id"], metric_key="accuracy")[
            "metrics"
        ]
        assert len(metrics) == 1


def test_an_abort_leaves_the_server_as_it_was(server: RealMlflow, project: Path) -> None:
    name = "aborted"
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = Releaser(project, lambda: stage_on(server.uri, name=name, alias="production"))
    driver.release(first)
    driver.release(second)
    assert driver.drive(second, undo=True).phase is Phase.ROLLED_BACK
    assert alias(server, name, "production") == "1"
    assert [item["version"] for item in registered(server, name)] == ["1"]
    assert runs(server, name, second) == []
    driver.kept = {"task": "alias", "version": 1, "previous": {"production": None}}
    assert driver.drive(first, undo=True).phase is Phase.REJECTED
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.rest("registered-models/get", name=name)


@pytest.fixture(scope="module")
def logged(server: RealMlflow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """What a colleague has logged with the full MLflow, in one go; an ONNX graph and its weight."""
    original = tmp_path_factory.mktemp("colleague") / "original.onnx"
    weights = save_graph(original)
    server.run_python(
        """
import sys, onnx, mlflow
model = onnx.load(sys.argv[1])
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None): return model_input
mlflow.set_experiment("theirs")
with mlflow.start_run() as run:
    for inside in (True, False):
        mlflow.onnx.log_model(model, name="net", registered_model_name="logged", pip_requirements=["onnx"],
                              save_as_external_data=not inside)
    mlflow.pyfunc.log_model(name="net", python_model=Model(), registered_model_name="pickled",
                            pip_requirements=["mlflow"])
    mlflow.log_artifact(sys.argv[1], "plain")
    client = mlflow.MlflowClient()
    client.create_registered_model("plain")
    client.create_model_version("plain", run.info.artifact_uri + "/plain", run.info.run_id)
    client.set_registered_model_alias("plain", "good", "1")
""",
        str(original),
    )
    return original, weights


def test_a_model_that_mlflow_logged_is_taken(
    server: RealMlflow,
    logged: tuple[Path, NDArray[np.float32]],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    original, weights = logged

    def fetched(uri: str) -> Path:
        resolved = MlflowSource().resolve(uri, base=project, store=None)
        folder = project / f"fetched-{len(list(project.glob('fetched-*')))}"
        folder.mkdir()
        MlflowSource().fetch(resolved, folder, base=project, store=None)
        return folder

    plain = fetched("mlflow:/plain@good")
    assert [path.name for path in plain.iterdir()] == ["model.onnx"]
    assert (plain / "model.onnx").read_bytes() == original.read_bytes()
    inside = fetched("mlflow:/logged/1")
    assert [path.name for path in inside.iterdir()] == ["model.onnx"]
    assert (inside / "model.onnx").read_bytes() == original.read_bytes()
    beside = fetched("mlflow:/logged/latest")
    assert len(list(beside.iterdir())) == 2
    loaded = onnx.load(beside / "model.onnx").graph.initializer[0]
    assert np.array_equal(numpy_helper.to_array(loaded), weights)


@pytest.mark.usefixtures("logged")
def test_a_pickled_model_that_mlflow_logged_is_refused(
    server: RealMlflow, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with pytest.raises(SpecError) as failure:
        MlflowSource().resolve("mlflow:/pickled/1", base=project, store=None)
    assert str(failure.value) == (
        "mlflow:/pickled/1 has no ONNX flavour but python_function, and loading those runs code that came with the "
        "model; log the model as ONNX (mlflow.onnx.log_model) and name that version"
    )


def test_a_version_of_ours_comes_back_out_of_our_store(
    server: RealMlflow, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    driver = Releaser(project, lambda: stage_on(server.uri, name="ours", alias="production"))
    driver.release(make_package(project, "1.0.0", model=b"the bytes of the graph"))
    resolved = MlflowSource().resolve("mlflow:/ours@production", base=project, store=None)
    folder = project / "fetched"
    folder.mkdir()
    MlflowSource().fetch(resolved, folder, base=project, store=None)
    assert (folder / "model.onnx").read_bytes() == b"the bytes of the graph"


HEAD = """\
secrets: {mlflow: {env: DEMO_TOKEN}}
env: [DEMO_MLFLOW]
model:
  uri: URI
  inputs: [{name: x, dtype: float32, shape: [batch, 64]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 64]}]
"""
PACKAGE = """
- id: package
  uses: package
  with: {license: MIT, require: []}
"""
RELEASE = """
- id: publish
  uses: publish
- id: mlflow
  uses: mlflow-register
  needs: [package, publish]
  with:
    uri: "${{ env.DEMO_MLFLOW }}"
    name: through-the-engine
    alias: production
    token: "${{ secrets.mlflow }}"
"""


def test_through_the_engine_there_and_back_and_into_another_pipeline(
    server: RealMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMO_TOKEN", "a-token-that-is-secret")
    monkeypatch.setenv("DEMO_MLFLOW", server.uri)
    project = EngineProject(tmp_path / "one")
    save_graph(project.root / "net.onnx")
    project.spec(PACKAGE + RELEASE, head=HEAD.replace("URI", "net.onnx"))
    first = project.apply()
    assert (first.code, first.statuses["mlflow"]) == (0, "done")
    assert project.actions()["mlflow"] == "in-place"
    project.edit("version: 1.0.0", "version: 1.1.0")
    assert project.apply().code == 0
    assert alias(server, "through-the-engine", "production") == "2"
    monkeypatch.chdir(project.root)
    code, said = project.command("rollback", "--stage", "mlflow")
    assert code == 0, said
    assert alias(server, "through-the-engine", "production") == "1"
    assert project.holding(b"a-token-that-is-secret") == []

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr("shipctl.store.sources.entry_points", lambda **_: [SourcePoint()])
    other = EngineProject(tmp_path / "two")
    store = f"store: {project.root / '.shipctl' / 'store'}\n"
    other.spec(PACKAGE, head=store + HEAD.replace("URI", "mlflow:/through-the-engine@production"))
    run = other.apply()
    # The same bytes under the same name and version: what the first pipeline made of them is there already.
    assert (run.code, run.statuses) == (0, {"package": "cached"})
    [fetched] = (other.state / "sources").rglob("model.onnx")
    assert fetched.read_bytes() == (project.root / "net.onnx").read_bytes()


def test_a_server_that_stops_in_the_middle_is_said_once_and_the_release_goes_on_when_it_is_back(
    server: RealMlflow, project: Path
) -> None:
    """Its port stops: a door before the server that is closed and opened again, which is quicker than MLflow starts."""
    name, package = "stopped", make_package(project, "1.0.0")
    with proxy_to(server.uri) as door:
        driver = Releaser(
            project, lambda: stage_on(door.endpoint, name=name, alias="production", timeout="2s")
        )
        stage, inputs, ctx = driver.make(), MlflowRegisterInputs(package=package), driver.context(package)
        state, _ = stage.step(MlflowRegisterState(), inputs, ctx)
        state, _ = stage.step(state, inputs, ctx)
    with pytest.raises(StoreError) as failure:
        stage.step(state, inputs, ctx)
    assert str(failure.value) == (
        f"cannot reach MLflow at {door.endpoint}: connection refused; see whether it runs, and whether the "
        "address is right"
    )
    driver.kept = state.model_dump(mode="json")
    with proxy_to(server.uri, port=int(door.endpoint.rpartition(":")[2])):
        assert driver.drive(package).phase is Phase.DONE
    assert [item["version"] for item in registered(server, name)] == ["1"]
    assert len(runs(server, name, package)) == 1
