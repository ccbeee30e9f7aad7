"""Models from `mlflow:/`: what a URI means, what is taken of a version, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shipctl.errors import PluginError, SpecError, StoreError
from shipctl.spec.models import StoreSpec
from shipctl.store.sources import ModelSource, Resolved, open_source, source_scheme
from shipctl_plugins._mlflow.client import MlflowServer
from shipctl_plugins._mlflow.login import Login
from shipctl_plugins.sources import mlflow_source as module
from shipctl_plugins.sources.mlflow_source import MlflowSource
from support_mlflow import InProcessMlflow, Releaser, make_package, stage_on

pytestmark = pytest.mark.mlflow

Register = Callable[..., int]
FORMS = "write mlflow:/NAME/VERSION, mlflow:/NAME/latest or mlflow:/NAME@ALIAS"
REMEDY = "log the model as ONNX (mlflow.onnx.log_model) and name that version"
MLMODEL = """\
artifact_path: model
flavors:
  onnx: {data: model.onnx, onnx_version: 1.19.0}
  python_function: {data: model.onnx, loader_module: mlflow.onnx}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    return tmp_path


@pytest.fixture
def mlflow(project: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessMlflow:
    """MLflow's file store, as the server that sources ask."""
    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_TRACKING_URI": (project / "mlflow").as_uri(),
    }.items():
        monkeypatch.setenv(name, value)
    transport = InProcessMlflow((project / "mlflow").as_uri())
    monkeypatch.setattr(module, "tracking_uri", lambda _: "http://mlflow.example")

    def server(login: Login) -> MlflowServer:
        return MlflowServer(login, transport)

    monkeypatch.setattr(module, "MlflowServer", server)
    return transport


@pytest.fixture
def register(project: Path, mlflow: InProcessMlflow) -> Register:
    """Register files as a version of `net`, as somebody does who does not have shipctl."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient((project / "mlflow").as_uri())

    def make(files: dict[str, bytes]) -> int:
        experiment = mlflow.agent.experiment("theirs")
        number = experiment["id"] if experiment else mlflow.agent.create_experiment("theirs", {})
        run = client.create_run(number)
        folder = project / "made" / run.info.run_id
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        client.log_artifacts(run.info.run_id, str(folder), "model")
        if mlflow.agent.registered_model("net") is None:
            client.create_registered_model("net")
        made = client.create_model_version("net", f"{run.info.artifact_uri}/model", run.info.run_id)
        return int(made.version)

    return make


def resolve(project: Path, uri: str, store: StoreSpec | None = None) -> Resolved:
    return MlflowSource().resolve(uri, base=project, store=store)


def fetched(project: Path, resolved: Resolved, store: StoreSpec | None = None) -> dict[str, bytes]:
    """Fetch in a new folder; return path to bytes. What was resolved goes through JSON, as in a plan file."""
    folder = project / f"fetched-{len(list(project.glob('fetched-*')))}"
    folder.mkdir()
    moved: list[int] = []
    kept = Resolved.model_validate_json(resolved.model_dump_json())
    MlflowSource().fetch(kept, folder, base=project, store=store, moved=moved.append)
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert [path.name for path in project.glob(".mlflow-*")] == []
    assert sum(moved) in {0, sum(map(len, found.values()))}
    return found


def graph(*, external: Sequence[str] = ()) -> bytes:
    """Return an ONNX graph with a weight per name in ``external``, kept in a file of that name (and one inside)."""
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "inside")]
    for name in external:
        weight = TensorProto(
            name=f"w-{name}", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
        )
        weight.external_data.add(key="location", value=name)
        weights.append(weight)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inside"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    return bytes(helper.make_model(made).SerializeToString())


# -- which version -------------------------------------------------------------------------------------------


def test_latest_alias_and_number_are_pinned_to_a_version(
    project: Path, mlflow: InProcessMlflow, register: Register
) -> None:
    register({"net.onnx": graph()})
    register({"net.onnx": graph()})
    mlflow.agent.set_alias("net", "good", 1)
    by_number, by_alias = resolve(project, "mlflow:/net/1"), resolve(project, "mlflow:/net@good")
    assert by_alias.pinned == by_number.pinned == "mlflow:/net/1"
    assert by_alias.identity == by_number.identity
    assert by_alias.description == "mlflow:/net@good (mlflow:/net/1)"
    latest = resolve(project, "mlflow:/net/latest")
    assert latest.pinned == "mlflow:/net/2"
    assert latest.identity != by_number.identity


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlflow:/net", f"cannot read 'mlflow:/net'; {FORMS}"),
        ("mlflow:/net/0", f"cannot read 'mlflow:/net/0'; {FORMS}"),
        ("mlflow:/n'%27/1", "cannot read \"mlflow:/n'%27/1\": \"n''\" is no name of a registered model"),
        ("mlflow:/nett/1", "mlflow:/nett/1: there is no registered model 'nett' in MLflow at http://mlflow.example"),
        ("mlflow:/net/7", "mlflow:/net/7: net has no such version in MLflow at http://mlflow.example; it has 1"),
        (
            "mlflow:/net@bad",
            "mlflow:/net@bad: net has no alias 'bad' in MLflow at http://mlflow.example; it has good",
        ),
    ],
)  # fmt: skip
def test_what_names_nothing_is_refused(
    project: Path, mlflow: InProcessMlflow, register: Register, uri: str, said: str
) -> None:
    register({"net.onnx": graph()})
    mlflow.agent.set_alias("net", "good", 1)
    with pytest.raises(SpecError) as failure:
        resolve(project, uri)
    assert str(failure.value) == said


def test_without_a_server_the_variable_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        SpecError, match="no MLflow server is named: set `uri`, or export MLFLOW_TRACKING_URI="
    ):
        resolve(project, "mlflow:/net/1")


# -- what is taken -------------------------------------------------------------------------------------------


def test_a_logged_onnx_model_is_taken_without_its_python_side(project: Path, register: Register) -> None:
    register(
        {
            "MLmodel": MLMODEL.encode(),
            "model.onnx": graph(),
            "conda.yaml": b"{}",
            "python_model.pkl": b"\x80\x04.",
        }
    )
    resolved = resolve(project, "mlflow:/net/1")
    assert fetched(project, resolved) == {"model.onnx": graph()}


def test_a_plain_onnx_file_is_taken(project: Path, register: Register) -> None:
    register({"export/net.onnx": graph(), "README.md": b"hello"})
    resolved = resolve(project, "mlflow:/net/1")
    assert resolved.size == len(graph())
    assert resolved.identity["graph"] == "export/net.onnx"
    assert fetched(project, resolved) == {"model.onnx": graph()}


def test_external_data_comes_along_and_nothing_else(project: Path, register: Register) -> None:
    content = graph(external=["0b1c.data", "deep/w.bin"])
    files = {"export/net.onnx": content, "export/0b1c.data": b"w" * 16, "export/deep/w.bin": b"v" * 16}
    register({**files, "export/optimizer.pt": b"not wanted"})
    resolved = resolve(project, "mlflow:/net/1")
    assert resolved.size is None
    assert fetched(project, resolved) == {
        "model.onnx": content,
        "0b1c.data": b"w" * 16,
        "deep/w.bin": b"v" * 16,
    }


@pytest.mark.parametrize("name", ["../outside.data", "/etc/passwd", "missing.data", "model.onnx"])
def test_external_data_elsewhere_is_refused(project: Path, register: Register, name: str) -> None:
    register({"export/net.onnx": graph(external=[name]), "outside.data": b"w" * 16})
    with pytest.raises(StoreError) as failure:
        fetched(project, resolve(project, "mlflow:/net/1"))
    assert str(failure.value) == (
        f"the graph of mlflow:/net/1 keeps weights in {name!r}, which is not among the files of that version"
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {
                "MLmodel": b"flavors: {python_function: {}, sklearn: {pickled_model: model.pkl}}",
                "model.pkl": b"x",
            },
            (
                "mlflow:/net/1 has no ONNX flavour but python_function, sklearn, and loading those runs code that came "
                f"with the model; {REMEDY}"
            ),
        ),
        (
            {"net.pt": b"x", "vocabulary.txt": b"x"},
            f"mlflow:/net/1 has no .onnx file but net.pt, and loading that may run code that came with it; {REMEDY}",
        ),
        (
            {"notes.txt": b"x"},
            f"mlflow:/net/1 has no .onnx file (notes.txt); {REMEDY}",
        ),
        (
            {"a.onnx": b"x", "b.onnx": b"x"},
            "mlflow:/net/1 has several ONNX graphs (a.onnx, b.onnx); register a version for each",
        ),
        (
            {"MLmodel": b"flavors: {onnx: {data: ../up.onnx}}"},
            (
                "the ONNX flavour of mlflow:/net/1 names the graph '../up.onnx', which is not among its files; "
                f"{REMEDY}"
            ),
        ),
        (
            {"MLmodel": b"[1, 2]"},
            f"the MLmodel file of mlflow:/net/1 names no flavours; {REMEDY}",
        ),
    ],
)
def test_what_cannot_be_taken_safely_is_refused(
    project: Path, register: Register, files: dict[str, bytes], said: str
) -> None:
    register(files)
    with pytest.raises(SpecError) as failure:
        resolve(project, "mlflow:/net/1")
    assert str(failure.value) == said


def test_an_mlmodel_file_that_builds_objects_is_not_obeyed(project: Path, register: Register) -> None:
    register(
        {"MLmodel": b"flavors: !!python/object/apply:os.system ['touch /tmp/owned']", "model.onnx": graph()}
    )
    with pytest.raises(SpecError, match="the MLmodel file of mlflow:/net/1 is not YAML"):
        resolve(project, "mlflow:/net/1")


def test_a_version_that_changed_after_the_plan_is_refused(project: Path, register: Register) -> None:
    register({"net.onnx": graph()})
    resolved = resolve(project, "mlflow:/net/1")
    [place] = (project / "mlflow").rglob("net.onnx")
    place.write_bytes(b"other")
    with pytest.raises(StoreError) as failure:
        fetched(project, resolved)
    assert str(failure.value) == (
        "mlflow:/net/1 in MLflow at http://mlflow.example is not what it was when the plan was made; plan again"
    )


# -- what we registered --------------------------------------------------------------------------------------


@pytest.fixture
def registered(project: Path, mlflow: InProcessMlflow) -> Releaser:
    def stage() -> Any:
        made = stage_on("http://mlflow.example", alias="production")
        made.__dict__["_server"] = MlflowServer(made._server.login, mlflow)
        return made

    return Releaser(project, stage)


def test_a_version_of_ours_is_taken_from_our_store_with_digests(project: Path, registered: Releaser) -> None:
    package = make_package(project, "1.0.0", model=b"the bytes of the graph")
    registered.release(package)
    resolved = resolve(project, "mlflow:/digits@production")
    assert resolved.pinned == "mlflow:/digits/1"
    assert resolved.identity["package"] == package.digest
    assert resolved.identity["reference"] == "digits@1.0.0"
    assert resolved.size == len(b"the bytes of the graph")
    assert resolved.files is not None
    assert [entry.path for entry in resolved.files] == ["model.onnx"]
    assert fetched(project, resolved) == {"model.onnx": b"the bytes of the graph"}


def test_a_package_in_another_store_is_named(project: Path, registered: Releaser) -> None:
    registered.release(make_package(project, "1.0.0"))
    own = (project / ".shipctl" / "store").as_uri()
    with pytest.raises(SpecError) as failure:
        resolve(project, "mlflow:/digits/1", StoreSpec(uri="elsewhere"))
    assert str(failure.value) == (
        f"mlflow:/digits/1 is the package digits@1.0.0 in the store {own}, and the store of this spec "
        f"({(project / 'elsewhere').as_uri()}) does not have it; set `store` to that one"
    )


def test_a_package_of_another_kind_is_refused(project: Path, registered: Releaser) -> None:
    package = make_package(project, "1.0.0", kind="torch-model")
    registered.release(package)
    with pytest.raises(SpecError) as failure:
        resolve(project, "mlflow:/digits/1")
    assert str(failure.value) == (
        f"mlflow:/digits/1: the package {package.digest[:12]} holds torch-model, and only an ONNX model can be taken "
        "from it"
    )


# -- finding the source --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("mlflow:/net/1", "mlflow"),
        ("MLFLOW:/net@a", "mlflow"),
        ("s3://bucket/net.onnx", "s3"),
        ("models/net.py:build", None),
        ("net.py:build", None),
        ("net.onnx", None),
        ("C:/models/net.onnx", None),
        ("/models/net.onnx", None),
    ],
)
def test_a_scheme_is_told_from_a_path(uri: str, scheme: str | None) -> None:
    assert source_scheme(uri) == scheme


class _Point:
    """An entry point."""

    name, value = "mlflow", "somewhere:Source"

    def __init__(self, loaded: object) -> None:
        self.loaded = loaded

    def load(self) -> object:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


class _Old(ModelSource):
    api_version = 0

    def resolve(self, uri: str, *, base: Path, store: StoreSpec | None) -> Resolved:
        raise AssertionError

    def fetch(self, *_: object, **__: object) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("loaded", "error", "said"),
    [
        (None, SpecError, "cannot get 'mlflow:/net/1': no plugin for mlflow:/ is installed; there are none"),
        (
            ImportError("no"),
            PluginError,
            "source plugin 'mlflow' (somewhere:Source) does not import: ImportError: no",
        ),
        (
            dict,
            PluginError,
            "source plugin 'mlflow' (somewhere:Source) is not a subclass of shipctl.ModelSource",
        ),
        (
            _Old,
            PluginError,
            (
                "source plugin 'mlflow' (somewhere:Source) was written for version 0 of the source API, this shipctl "
                "has version 1; install a release of the plugin for it"
            ),
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, loaded: object, error: type[Exception], said: str
) -> None:
    points = [] if loaded is None else [_Point(loaded)]
    monkeypatch.setattr("shipctl.store.sources.entry_points", lambda **_: points)
    with pytest.raises(error) as failure:
        open_source("mlflow:/net/1")
    assert str(failure.value) == said


def test_a_plugin_is_found_by_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipctl.store.sources.entry_points", lambda **_: [_Point(MlflowSource)])
    assert isinstance(open_source("mlflow:/net/1"), MlflowSource)
    with pytest.raises(SpecError, match="no plugin for s3:/ is installed; there are mlflow:/"):
        open_source("s3://bucket/net.onnx")


def test_an_onnx_graph_is_read_without_its_weights(tmp_path: Path, mlflow: InProcessMlflow) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(graph(external=["absent.data"]))
    assert mlflow.agent.external_data(str(path)) == ["absent.data"]
    assert len(onnx.load(str(path), load_external_data=False).graph.initializer) == 2
