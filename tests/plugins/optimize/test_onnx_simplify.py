"""Stage `onnx-simplify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

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
