"""Stage `onnx-simplify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import graph
from shipctl_plugins.optimize.onnx_simplify import Inputs, OnnxSimplify, Options, Outputs


class TestConformance(StageConformance):
    stage = "onnx-simplify"


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)


@pytest.fixture
def wasteful(onnx_model: Callable[..., OnnxModel]) -> OnnxModel:
    """y = x + (1 + 1), with an identity, a constant sum, and a node that nobody uses."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Neg", ["same"], ["unused"]),
        helper.make_node("Add", ["same", "two"], ["y"], doc_string="/home/someone/model.py"),
    ]
    return onnx_model(nodes, {"one": np.ones(4, np.float32)}, SIGNATURE)


def simplify(model: OnnxModel, context: Any, calibration: Dataset | None = None) -> Outputs:
    return OnnxSimplify(Options()).run(Inputs(model=model, calibration=calibration), context())


def test_wasteful_nodes_go_and_the_function_stays(wasteful: OnnxModel, context: Any) -> None:
    outputs = simplify(wasteful, context)
    assert (outputs.report.metrics["nodes.before"], outputs.report.metrics["nodes.after"]) == (4, 1)
    assert outputs.report.metrics["parity.max_abs_error"] == 0
    assert outputs.model.derived_from == wasteful.digest
    assert outputs.model.signature == wasteful.signature
    assert outputs.report.subject == outputs.model.digest
    model = onnx.load(outputs.model.path)
    assert [node.op_type for node in model.graph.node] == ["Add"]
    assert b"someone" not in outputs.model.path.read_bytes()


def test_digits_keep_their_answers_on_real_samples(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    stage = OnnxSimplify(Options())
    outputs = stage.run(Inputs(model=digits_onnx, calibration=calibration), context())
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    assert {row["case"].partition(",")[0] for row in outputs.report.details["parity"]} == {
        "random inputs",
        "calibration data",
    }


def test_same_input_gives_the_same_digest(digits_onnx: OnnxModel, context: Any) -> None:
    assert simplify(digits_onnx, context).model.digest == simplify(digits_onnx, context).model.digest


def test_old_graph_whose_weights_are_inputs_is_simplified(
    wasteful: OnnxModel, context: Any, tmp_path: Path
) -> None:
    model = onnx.load(wasteful.path)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("one", onnx.TensorProto.FLOAT, [4]))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.onnx").write_bytes(model.SerializeToString())
    old = sealed(OnnxModel.at(tmp_path / "old", signature=SIGNATURE, opset=21))
    assert simplify(old, context).report.metrics["parity.max_abs_error"] == 0


def test_precision_is_inherited(wasteful: OnnxModel, context: Any) -> None:
    half = wasteful.model_copy(update={"precision": "fp16"}).located(wasteful.root)
    assert simplify(half, context).model.precision == "fp16"


def test_other_function_does_not_pass(
    wasteful: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        twin = onnx.ModelProto()
        twin.CopyFrom(model)
        twin.graph.node[3].op_type = "Sub"
        return twin

    monkeypatch.setattr("onnxslim.slim", broken)
    stage = OnnxSimplify(Options())
    outputs = stage.run(Inputs(model=wasteful), context())
    outcomes = {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}
    assert outcomes["parity.max_abs_error"] is Outcome.FAIL


def test_other_signature_fails(wasteful: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.output[0].name = model.graph.node[3].output[0] = "z"
        return model

    monkeypatch.setattr("onnxslim.slim", renamed)
    with pytest.raises(StageError) as caught:
        simplify(wasteful, context)
    assert str(caught.value) == (
        "the simplified graph has another signature: outputs are z, declared are y; leave the stage out"
    )


def test_invalid_graph_is_refused_by_the_checker(
    wasteful: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsorted(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node.append(model.graph.node.pop(0))
        return model

    monkeypatch.setattr("onnxslim.slim", unsorted)
    with pytest.raises(
        StageError, match=r"^the ONNX checker refuses the graph: Nodes in a graph must be topologically"
    ):
        simplify(wasteful, context)


def test_tool_that_fails_is_named(wasteful: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: onnx.ModelProto) -> onnx.ModelProto:
        raise KeyError("node_7")

    monkeypatch.setattr("onnxslim.slim", fail)
    with pytest.raises(StageError, match=r"^onnxslim [0-9.]+ fails on this graph: KeyError: 'node_7'$"):
        simplify(wasteful, context)


def test_nodes_in_branches_are_counted() -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value_float=1.0)],
        "b",
        [],
        [helper.make_tensor_value_info("c", 1, [])],
    )
    node = helper.make_node("If", ["q"], ["y"], then_branch=branch, else_branch=branch)
    assert graph.node_count(helper.make_model(helper.make_graph([node], "g", [], []))) == 3


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
IMAGE_NET = Signature(
    inputs=(TensorSpec(name="gpu_0/data_0", dtype="float32", shape=(1, 3, 224, 224)),),
    outputs=(TensorSpec(name="gpu_0/softmax_1", dtype="float32", shape=(1, 1000)),),
)


@pytest.fixture
def old_shufflenet() -> OnnxModel:
    """ShuffleNet's topology, as it was exported to opset 9 with each weight an input; its weights are constants."""
    return sealed(OnnxModel.at(LIGHT / "light_shufflenet.onnx", signature=IMAGE_NET))


@pytest.mark.slow
def test_an_old_graph_comes_to_a_newer_operator_set(old_shufflenet: OnnxModel, context: Any) -> None:
    outputs = OnnxSimplify(Options(opset=21)).run(Inputs(model=old_shufflenet), context())
    assert outputs.model.opset == 21
    model = onnx.load(outputs.model.path)
    assert graph.opset_of(model) == 21
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"ConstantOfShape", "BatchNormalization"}, "constants were not folded"
    assert outputs.model.size > 5_000_000, "1.4 million weights are in the graph now"
    assert outputs.report.metrics["nodes.after"] < outputs.report.metrics["nodes.before"] / 2


def test_an_operator_set_that_nobody_knows_is_refused(wasteful: OnnxModel, context: Any) -> None:
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(StageError) as caught:
        OnnxSimplify(Options(opset=999)).run(Inputs(model=wasteful), context())
    assert str(caught.value) == (
        f"onnx {onnx.__version__} knows operator sets up to {newest}, not 999; set `opset: {newest}`"
    )


def test_an_operator_without_a_way_there_is_named(onnx_model: Callable[..., OnnxModel], context: Any) -> None:
    model = onnx_model([helper.make_node("Gelu", ["x"], ["y"])], {}, SIGNATURE)
    with pytest.raises(StageError) as caught:
        OnnxSimplify(Options(opset=12)).run(Inputs(model=model), context())
    assert str(caught.value).startswith("onnx cannot convert the graph from opset 21 to 12: ")
    assert str(caught.value).endswith("export the model with that opset")
    assert "Assertion" not in str(caught.value)


TEXTS = Signature(
    inputs=(TensorSpec(name="x", dtype="string", shape=("batch", 2)),),
    outputs=(
        TensorSpec(name="y", dtype="string", shape=("batch", 2)),
        TensorSpec(name="n", dtype="float32", shape=("batch", 2)),
    ),
)


@pytest.fixture
def reading(tmp_path: Path) -> OnnxModel:
    """Texts to numbers and to texts."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["x"],
            ["f"],
            domain="ai.onnx.ml",
            keys_strings=["a", "b"],
            values_floats=[1.0, 2.0],
        ),
        helper.make_node("Identity", ["f"], ["n"]),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    graph_proto = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["batch", 2]),
         helper.make_tensor_value_info("n", TensorProto.FLOAT, ["batch", 2])],
    )  # fmt: skip
    operators = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph_proto, opset_imports=operators, ir_version=10)
    (tmp_path / "reading").mkdir()
    (tmp_path / "reading" / "model.onnx").write_bytes(model.SerializeToString())
    return sealed(OnnxModel.at(tmp_path / "reading", signature=TEXTS))


def test_texts_are_compared_on_calibration_data(
    reading: OnnxModel, dataset: Callable[..., Dataset], context: Any
) -> None:
    outputs = simplify(reading, context, dataset("calibration", x=np.array([["a", "b"], ["b", "b"]])))
    assert outputs.report.metrics["parity.max_abs_error"] == 0
    assert outputs.report.metrics["parity.top1"] == 1
    verdicts = OnnxSimplify(Options()).judge(outputs, JudgeContext())
    assert {verdict.outcome for verdict in verdicts} == {Outcome.PASS}
    with pytest.raises(StageError, match="there are no random values for input x: string"):
        simplify(reading, context)
    with pytest.raises(StageError, match="array 'x' is float64, the model takes x: string"):
        simplify(reading, context, dataset("calibration", x=np.ones((2, 2))))


def test_outputs_without_a_shape_get_the_declared_one(
    onnx_model: Callable[..., OnnxModel], context: Any
) -> None:
    model = onnx_model([helper.make_node("Neg", ["x"], ["y"])], {}, SIGNATURE)
    bare = onnx.load(model.path)
    bare.graph.output[0].type.tensor_type.ClearField("shape")
    model.path.write_bytes(bare.SerializeToString())
    made = onnx.load(simplify(model, context).model.path).graph.output[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in made.dim] == ["batch", 4]


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float16", "fp16"), ("float64", "fp64"), ("float32", "fp32")]
)
def test_precision_of_a_model_that_the_spec_brings_is_that_of_its_graph(
    onnx_model: Callable[..., OnnxModel], context: Any, dtype: str, precision: str
) -> None:
    signature = Signature(
        inputs=(TensorSpec.model_validate({"name": "x", "dtype": dtype, "shape": ("batch", 4)}),),
        outputs=(TensorSpec.model_validate({"name": "y", "dtype": dtype, "shape": ("batch", 4)}),),
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    brought = onnx_model([node], {"w": np.eye(4, dtype=dtype)}, signature).model_copy(update={"opset": None})
    assert simplify(brought, context).model.precision == precision
