from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from shipctl.spec import load_spec
from shipctl.testing.fixtures import SampleProject
from shipctl.testing.samples import tiny_onnx_model
from support_cli import Call

BUILDER = "def build():\n    ...\n\n\ndef _private():\n    ...\n"


def test_an_onnx_model_says_what_it_takes_and_gives(project: SampleProject, call: Call) -> None:
    tiny_onnx_model(project.root / "models")
    result = call("init", "models/model.onnx")
    assert (result.exit_code, result.lines) == (
        0,
        [
            "wrote specs/model.yaml",
            "wrote .github/workflows/shipctl.yml",
            "next: shipctl plan specs/model.yaml",
        ],
    )
    spec = load_spec(project.root / "specs/model.yaml").spec
    assert spec.model is not None
    assert spec.model.uri == "../models/model.onnx"
    assert [str(tensor) for tensor in (*spec.model.inputs, *spec.model.outputs)] == [
        "x: float32[batch, 4]",
        "y: float32[batch, 3]",
    ]
    assert [stage.uses for stage in spec.stages] == ["onnx-simplify", "benchmark", "triton-config"]


def test_a_pytorch_model_with_its_signature(project: SampleProject, call: Call) -> None:
    project.write({"models/Digits Net.py": BUILDER, "models/Digits Net.safetensors": b""})
    result = call(
        "init", "models/Digits Net.py:build",
        "--input", "image: float32[batch, 1, 8, 8]", "--output", "logits:float32[batch,10]",
    )  # fmt: skip
    assert result.exit_code == 0
    spec = load_spec(project.root / "specs/digits-net.yaml").spec
    assert spec.model is not None
    assert spec.model.weights == "../models/Digits Net.safetensors"
    assert str(spec.model.inputs[0]) == "image: float32[batch, 1, 8, 8]"
    assert spec.stages[1].uses == "torch-export"


def test_without_a_signature_it_says_that_it_is_an_example(project: SampleProject, call: Call) -> None:
    project.write({"net.py": BUILDER})
    result = call("init", "net.py:build")
    assert (
        "its inputs and outputs are an example: write there what your model takes and gives" in result.lines
    )
    assert load_spec(project.root / "specs/net.yaml").spec.stages
    assert "# An example: write here" in (project.root / "specs/net.yaml").read_text()


def test_the_workflow_plans_on_a_pull_request_and_applies_on_main(project: SampleProject, call: Call) -> None:
    project.write({"net.py": BUILDER})
    call("init", "net.py:build")
    text = (project.root / ".github/workflows/shipctl.yml").read_text()
    workflow = YAML(typ="safe").load(text)
    assert set(workflow["on"]) == {"pull_request", "push"}
    assert workflow["on"]["push"] == {"branches": ["main"]}
    plan, apply = workflow["jobs"]["plan"], workflow["jobs"]["apply"]
    assert plan["if"] == "github.event_name == 'pull_request'"
    assert apply["if"] == "github.event_name == 'push'"
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in workflow["jobs"].items()
    }
    assert "pip install 'shipctl[cpu,optimize,torch,triton]'" in commands["plan"]
    assert any("shipctl plan specs/net.yaml" in command for command in commands["plan"])
    assert not any("apply" in command for command in commands["plan"])
    assert "shipctl apply specs/net.yaml --events events.jsonl" in commands["apply"]
    assert "${{ runner.os }}" in text


def test_nothing_is_overwritten_without_force(project: SampleProject, call: Call) -> None:
    project.write({"net.py": BUILDER, "specs/net.yaml": "mine\n"})
    result = call("init", "net.py:build")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: specs/net.yaml exists already; nothing was written, --force overwrites\n",
    )
    assert not (project.root / ".github").exists()
    assert call("init", "net.py:build", "--force").exit_code == 0
    assert (project.root / "specs/net.yaml").read_text() != "mine\n"


def test_into_another_folder(project: SampleProject, call: Call, tmp_path: Path) -> None:
    project.write({"net.py": BUILDER})
    assert call("init", "net.py:build", "--directory", "sub/project").exit_code == 0
    spec = load_spec(project.root / "sub/project/specs/net.yaml").spec
    assert spec.model is not None
    assert spec.model.uri == "../../../net.py:build"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["net.py:buidl"], "net.py has no function 'buidl' at its top level; did you mean 'build'?"),
        (["net.py:xyz"], "net.py has no function 'xyz' at its top level; it has build"),
        (["net.py"], "name the function that builds the model, such as net.py:build"),
        (["net.txt"], "cannot tell what 'net.txt' is; name a model as path.py:function or path.onnx"),
        (["no.onnx"], "there is no file no.onnx; name a model as path.py:function or path.onnx"),
        (["net.py:build", "--input", "x"], "name both sides of the model, with --input and --output"),
        (
            ["net.py:build", "--input", "x", "--output", "y: float32[1]"],
            "'x' is not a tensor; write it like 'image: float32[batch, 1, 8, 8]'",
        ),
    ],
)
def test_what_is_no_model_is_said(
    project: SampleProject, call: Call, arguments: list[str], text: str
) -> None:
    project.write({"net.py": BUILDER, "net.txt": ""})
    result = call("init", *arguments)
    assert (result.exit_code, result.stderr) == (2, f"error: {text}\n")
    assert not (project.root / "specs").exists()


def test_what_is_no_onnx_file_is_said(project: SampleProject, call: Call) -> None:
    project.write({"bad.onnx": b"\x00\x01 no model", "bad.py": "def ("})
    assert call("init", "bad.onnx").stderr.startswith("error: bad.onnx is not an ONNX model: ")
    assert call("init", "bad.py:build").stderr.startswith("error: bad.py is not Python: ")
    tiny_onnx_model(project.root)
    assert call("init", "model.onnx", "--input", "a: float32[1]").stderr == (
        "error: an ONNX model says itself what its inputs and outputs are; leave out --input and --output\n"
    )


def test_dimensions_without_a_usable_name_get_one(project: SampleProject, call: Call) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["a"], ["b"])
    value = helper.make_tensor_value_info("a", TensorProto.INT64, [None, "seq-len", None, 2])
    other = helper.make_tensor_value_info("b", TensorProto.INT64, [None, "seq-len", None, 2])
    graph = helper.make_graph([node], "g", [value], [other])
    (project.root / "odd.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert call("init", "odd.onnx").exit_code == 0
    model = load_spec(project.root / "specs/odd.yaml").spec.model
    assert model is not None
    assert str(model.inputs[0]) == "a: int64[batch, seq_len, a_2, 2]"
