"""Stage `onnx-optimize`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl_plugins.optimize.onnx_optimize import Inputs, OnnxOptimize, Options, Outputs
from support_small_transformer import small_transformer


class TestConformance(StageConformance):
    stage = "onnx-optimize"
    options = {"level": "extended"}  # noqa: RUF012


@pytest.fixture
def transformer(onnx_model: Any) -> OnnxModel:
    made: OnnxModel = onnx_model(*small_transformer())
    return made


def optimize(model: OnnxModel, context: Any, calibration: Dataset | None = None, **options: Any) -> Outputs:
    return OnnxOptimize(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


def fusions(outputs: Outputs) -> dict[str, int]:
    return {row["op_type"]: row["nodes"] for row in outputs.report.details["fused"]}


def outcomes(outputs: Outputs) -> set[Outcome]:
    return {verdict.outcome for verdict in OnnxOptimize(Options()).judge(outputs, JudgeContext())}


def test_patterns_of_a_transformer_are_fused(transformer: OnnxModel, context: Any) -> None:
    outputs = optimize(transformer, context, model_type="bert", level="none")
    assert fusions(outputs) == {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 4}
    metrics = outputs.report.metrics
    assert metrics["nodes.before"] == len(onnx.load(transformer.path).graph.node)
    assert (
        metrics["nodes.after"] == len(onnx.load(outputs.model.path).graph.node) < metrics["nodes.before"] / 2
    )
    assert metrics["fused.nodes"] == 8
    assert outputs.report.details["domains"] == ["ai.onnx", "com.microsoft"]
    assert outcomes(outputs) == {Outcome.PASS}
    assert outputs.model.signature == transformer.signature
    assert outputs.model.derived_from == transformer.digest


def test_heads_can_be_named(transformer: OnnxModel, context: Any) -> None:
    outputs = optimize(transformer, context, model_type="bert", num_heads=4, hidden_size=32)
    heads = [
        helper.get_attribute_value(entry)
        for node in onnx.load(outputs.model.path).graph.node
        for entry in node.attribute
        if node.op_type == "Attention" and entry.name == "num_heads"
    ]
    assert heads == [4, 4]


def test_basic_level_stays_within_onnx(onnx_model: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("MatMul", ["same", "w"], ["product"]),
        helper.make_node("Add", ["product", "two"], ["y"]),
    ]
    model = onnx_model(nodes, {"one": np.ones(4, np.float32), "w": np.eye(4, dtype=np.float32)}, signature)
    outputs = optimize(model, context)
    assert [node.op_type for node in onnx.load(outputs.model.path).graph.node] == ["Gemm"]
    assert (outputs.report.details["domains"], fusions(outputs)) == (["ai.onnx"], {"Gemm": 1})


def test_old_graph_whose_weights_are_inputs_is_optimised(onnx_model: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    nodes = [helper.make_node("Add", ["w", "w"], ["two"]), helper.make_node("Mul", ["x", "two"], ["y"])]
    made = onnx_model(nodes, {"w": np.ones(4, np.float32)}, signature)
    model = onnx.load(made.path)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))
    made.path.write_bytes(model.SerializeToString())
    outputs = optimize(made, context)
    assert [node.op_type for node in onnx.load(outputs.model.path).graph.node] == ["Mul"]


def test_extended_level_fuses_into_operators_of_onnx_runtime(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any
) -> None:
    outputs = optimize(digits_onnx, context, calibration, level="extended")
    assert fusions(outputs) == {"FusedConv": 4}
    assert outcomes(outputs) == {Outcome.PASS}
    assert outputs.report.details["parity"][-1]["case"] == "calibration data, batch 16"
    imported = {entry.domain for entry in onnx.load(outputs.model.path).opset_import}
    assert imported == {"", "com.microsoft"}


def test_same_input_gives_the_same_digest(transformer: OnnxModel, context: Any) -> None:
    digests = {
        optimize(transformer, context, level="extended", model_type="bert").model.digest for _ in range(2)
    }
    assert len(digests) == 1


def test_other_function_does_not_pass(
    digits_onnx: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto, level: str, scratch: Any) -> onnx.ModelProto:
        twin = onnx.ModelProto()
        twin.CopyFrom(model)
        for node in twin.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Abs"
        return twin

    monkeypatch.setattr("shipctl_plugins.optimize.onnx_optimize._optimize", broken)
    assert Outcome.FAIL in outcomes(optimize(digits_onnx, context))


def test_model_without_the_patterns_fails(digits_onnx: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        optimize(digits_onnx, context, model_type="bert")
    assert str(caught.value) == (
        "nothing was fused: the graph has no pattern of model_type bert; "
        "try another one, name num_heads and hidden_size, or say none"
    )


def test_optimiser_that_fails_is_named(
    transformer: OnnxModel, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyError("node_7")

    monkeypatch.setattr("onnxruntime.transformers.optimizer.optimize_model", fail)
    with pytest.raises(
        StageError,
        match=r"^ONNX Runtime's optimiser for model_type vit fails on this graph: KeyError: 'node_7'$",
    ):
        optimize(transformer, context, model_type="vit")


def test_graph_that_onnx_runtime_does_not_take_is_named(onnx_model: Any, context: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    model = onnx_model([helper.make_node("NoSuchOperator", ["x"], ["y"])], {}, signature)
    with pytest.raises(
        StageError, match=r"^ONNX Runtime [0-9.]+ does not optimise this graph: .*NoSuchOperator"
    ):
        optimize(model, context)


def test_layer_normalisation_of_an_old_opset_gets_advice(onnx_model: Any, context: Any) -> None:
    """ONNX Runtime finds the operator in primitives and writes it into a graph whose opset has none."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("Mul", ["normal", "gamma"], ["scaled"]),
        helper.make_node("Add", ["scaled", "beta"], ["y"]),
    ]
    weights = {
        "two": np.float32(2), "epsilon": np.float32(1e-5),
        "gamma": np.full(4, 2, np.float32), "beta": np.ones(4, np.float32),
    }  # fmt: skip
    model = onnx_model(nodes, weights, signature, opset=13)
    with pytest.raises(StageError, match=r"fusions need opset 17: export the model with it or a newer one$"):
        optimize(model, context, level="extended")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "all"}, "level 'all' writes memory layouts of this machine's processor into the graph; say"),
        ({"level": "none"}, "level none and model_type none leave nothing to do; name one of them"),
        ({"num_heads": 4}, "num_heads and hidden_size are for a model_type; name it, such as bert"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Options(**options)
    assert message in str(caught.value)
