"""What a plan sees of an ONNX file without onnx, beside what onnx itself reads there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from shipctl.engine.onnx_files import external_files
from shipctl.testing.samples import tiny_onnx_model
from support_engine import EngineProject

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
HEAD = """
model:
  uri: net/MODEL
  inputs: [{name: x, dtype: float32, shape: [batch, 4]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 3]}]
"""


def far(name: str, location: str) -> TensorProto:
    """A tensor whose data is in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def answer(path: Path) -> list[str] | str:
    """What is found, or what is said."""
    try:
        return external_files(path)
    except ValueError as exc:
        return str(exc)


def saved(path: Path, graph: onnx.GraphProto) -> Path:
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_data_outside_is_found_wherever_a_graph_has_tensors(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=far("c", "inner.bin"))], "inner", [], [],
        [far("d", "also-inner.bin")],
    )  # fmt: skip
    sparse = helper.make_sparse_tensor(
        far("v", "values.bin"), numpy_helper.from_array(np.zeros(1, np.int64)), [4]
    )
    outer = helper.make_graph(
        [helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)], "outer", [], [],
        [far("w", "weights/w.bin"), far("x", "weights/w.bin"), numpy_helper.from_array(np.ones(3), "here")],
        sparse_initializer=[sparse],
    )  # fmt: skip
    path = saved(tmp_path / "model.onnx", outer)
    assert external_files(path) == ["also-inner.bin", "inner.bin", "values.bin", "weights/w.bin"]


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_real_graphs_are_whole_and_have_no_data_outside(path: Path) -> None:
    assert external_files(path) == []


@given(share=st.floats(0, 1, exclude_max=True))
def test_one_that_is_cut_off_is_never_taken_for_whole(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    """Cut between two fields of the model itself, it is whole as far as the format says, and onnx reads it too."""
    folder = tmp_path_factory.mktemp("cut")
    content = tiny_onnx_model(folder).path.read_bytes()
    path = folder / "cut.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    said = answer(path)
    if said == []:
        assert onnx.load(path).graph.node
    else:
        assert str(said).startswith(("it is cut off", "it is empty", "it is no ONNX model"))


@given(content=st.binary(max_size=200))
def test_whatever_is_in_a_file_there_is_an_answer(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.onnx"
    path.write_bytes(content)
    assert answer(path) is not None


def test_a_plan_takes_external_data_along(project: EngineProject) -> None:
    folder = project.root / "net"
    folder.mkdir()
    model = onnx.load(tiny_onnx_model(project.root).path)
    onnx.save_model(
        model, folder / "far.onnx", save_as_external_data=True, location="far.data", size_threshold=0
    )
    project.spec("- {uses: validate-weights}", head=HEAD.replace("MODEL", "far.onnx"))
    source = project.plan().pipeline.sources["model"]
    assert [entry.path for entry in source.artifact.files] == ["far.data", "model.onnx"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.onnx", b"\x08\x0a\x3a\x7f\x00", "it is cut off: 126 bytes are missing at its end"),
        ("text.onnx", b"hello, this is no model", "it is no ONNX model"),
        ("empty.onnx", b"", "it is empty"),
    ],
)  # fmt: skip
def test_what_is_no_whole_model_is_said_at_its_line(
    project: EngineProject, name: str, content: bytes, said: str
) -> None:
    (project.root / "net").mkdir()
    (project.root / "net" / name).write_bytes(content)
    project.spec("- {uses: validate-weights}", head=HEAD.replace("MODEL", name))
    code, text = project.command("plan", "spec.yaml")
    assert code == 2
    assert f": {name} cannot be read: {said}; write or fetch it again" in text
    assert "spec.yaml:" in text


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gone.data", "far.onnx has its data in 'gone.data', which is not there; put it beside far.onnx"),
        ("../secret", "far.onnx has data in '../secret', which is not beside it"),
        ("/etc/passwd", "far.onnx has data in '/etc/passwd', which is not beside it"),
    ],
)
def test_data_that_is_not_beside_the_graph_is_refused(
    project: EngineProject, location: str, said: str
) -> None:
    (project.root / "net").mkdir()
    saved(project.root / "net" / "far.onnx", helper.make_graph([], "g", [], [], [far("w", location)]))
    project.spec("- {uses: validate-weights}", head=HEAD.replace("MODEL", "far.onnx"))
    code, text = project.command("plan", "spec.yaml")
    assert (code, said in text) == (2, True), text
