"""Stage `int8-dynamic`."""

from __future__ import annotations

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
from shipctl_plugins.optimize._quantized import Inputs, Outputs
from shipctl_plugins.optimize.int8_dynamic import Int8Dynamic, Options

RNG = np.random.default_rng(0)


class TestConformance(StageConformance):
    stage = "int8-dynamic"


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})


def quantize(model: OnnxModel, context: Any, calibration: Dataset | None = None, **options: Any) -> Outputs:
    return Int8Dynamic(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in onnx.load(model.path).graph.node]


def test_the_head_of_the_digits_is_quantised(
    digits_onnx: OnnxModel, calibration: Dataset, context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = Int8Dynamic(Options())
    outputs = stage.run(Inputs(model=digits_onnx, calibration=calibration), context())
    assert {entry.outcome for entry in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    assert outputs.report.details["quantized"] == [{"op_type": "MatMul", "quantized": 1, "before": 1}]
    assert outputs.report.metrics["quantized.nodes"] == 1
    assert [row["case"] for row in outputs.report.details["parity"]][:1] == ["calibration data, batch 1"]
    assert (outputs.model.precision, outputs.model.derived_from) == ("int8", digits_onnx.digest)
    assert outputs.model.signature == digits_onnx.signature
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= set(operators(outputs.model))
    assert "Gemm" not in operators(outputs.model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_convolutions_are_quantised_on_request(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = quantize(digits_onnx, context, op_types=("Conv", "Gemm"), per_channel=True)
    assert outputs.report.metrics["quantized.nodes"] == 5
    assert operators(outputs.model).count("ConvInteger") == 4
    assert outputs.model.size < digits_onnx.size / 3
    assert [row["case"] for row in outputs.report.details["parity"]] == [
        "random inputs, batch 1", "random inputs, batch 16",
    ]  # fmt: skip


MLP = Signature(inputs=(tensor("x", "batch", 32),), outputs=(tensor("y", "batch", 4),))


@pytest.fixture
def mlp(onnx_model: Any) -> OnnxModel:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b"], ["y"], name="second"),
    ]
    weights = {"w1": RNG.standard_normal((32, 16)), "w2": RNG.standard_normal((16, 4)), "b": np.ones(4)}
    model: OnnxModel = onnx_model(nodes, {name: a.astype(np.float32) for name, a in weights.items()}, MLP)
    return model


@pytest.mark.parametrize(
    ("options", "left"),
    [({"exclude": ("first",)}, 1), ({"op_types": ("Gemm",)}, 1), ({"op_types": ("MatMul",)}, 1), ({}, 0)],
)
def test_only_what_is_asked_for_is_quantised(
    mlp: OnnxModel, context: Any, options: dict[str, Any], left: int
) -> None:
    made = quantize(mlp, context, **options).model
    assert operators(made).count("MatMul") == left
    assert operators(made).count("MatMulInteger") == 2 - left


def test_options_reach_the_weights(mlp: OnnxModel, context: Any) -> None:
    def weight(**options: Any) -> Any:
        graph = onnx.load(quantize(mlp, context, **options).model.path).graph
        return next(tensor for tensor in graph.initializer if tensor.name == "w1_quantized")

    assert weight().data_type == onnx.TensorProto.INT8
    assert weight(weight_type="quint8").data_type == onnx.TensorProto.UINT8
    assert np.abs(onnx.numpy_helper.to_array(weight())).max() > 64
    assert np.abs(onnx.numpy_helper.to_array(weight(reduce_range=True))).max() <= 64
    whole, parts = quantize(mlp, context), quantize(mlp, context, per_channel=True)
    assert whole.model.digest != parts.model.digest


@pytest.mark.parametrize("operator", ["Gather", "LSTM"])
def test_other_operators_with_weights(onnx_model: Any, context: Any, operator: str) -> None:
    if operator == "Gather":
        nodes = [helper.make_node("Gather", ["table", "x"], ["y"], name="layer")]
        weights = {"table": RNG.standard_normal((50, 8))}
        x, y = tensor("x", "batch", 3, dtype="int64"), tensor("y", "batch", 3, 8)
    else:
        nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="layer", hidden_size=4)]
        weights = {"w": RNG.standard_normal((1, 16, 8)), "r": RNG.standard_normal((1, 16, 4))}
        x, y = tensor("x", 5, "batch", 8), tensor("y", 5, 1, "batch", 4)
    signature = Signature(inputs=(x,), outputs=(y,))
    model = onnx_model(nodes, {name: a.astype(np.float32) for name, a in weights.items()}, signature)
    outputs = quantize(model, context, op_types=(operator,))
    assert outputs.report.details["quantized"] == [{"op_type": operator, "quantized": 1, "before": 1}]


def test_contradicting_shapes_from_an_exporter_do_no_harm(mlp: OnnxModel, context: Any) -> None:
    """They made ONNX Runtime's quantiser stop: inferred shape and existing shape differ."""
    path = mlp.root / "model.onnx"
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [7, 99]))
    path.write_bytes(model.SerializeToString())
    assert quantize(mlp, context).report.metrics["quantized.nodes"] == 2


def test_nothing_to_quantise_fails(mlp: OnnxModel, onnx_model: Any, context: Any) -> None:
    same = Signature(inputs=(tensor("x", "batch", 4),), outputs=(tensor("y", "batch", 4),))
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {}, same)
    with pytest.raises(StageError) as caught:
        quantize(model, context)
    assert str(caught.value) == (
        "nothing was quantised: the graph has no MatMul or Gemm or LSTM or Attention with a constant float32 weight; "
        "leave the stage out"
    )
    with pytest.raises(StageError, match=r"^nothing was quantised: .* beside those in `exclude`; leave the"):
        quantize(mlp, context, exclude=("first", "second"))


def test_unknown_node_in_exclude_is_named(mlp: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError, match=r"^`exclude` names node 'frist', which the graph does not have"):
        quantize(mlp, context, exclude=("frist",))


def test_graph_of_an_old_opset_fails(onnx_model: Any, context: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = onnx_model(nodes, {"w": np.ones((32, 4), np.float32)}, MLP, opset=9)
    with pytest.raises(StageError) as caught:
        quantize(model, context)
    assert str(caught.value) == (
        "the graph has opset 9, ranges at run time came with 11; export it with a newer opset"
    )


def test_too_coarse_a_model_does_not_pass(mlp: OnnxModel, context: Any) -> None:
    stage = Int8Dynamic(Options(min_cosine=0.9999999))
    outputs = stage.run(Inputs(model=mlp), context())
    outcomes = {entry.gate: entry.outcome for entry in stage.judge(outputs, JudgeContext())}
    assert outcomes["parity.cosine"] is Outcome.FAIL


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_weights_of_other_floats_are_not_quantised(onnx_model: Any, context: Any, dtype: str) -> None:
    signature = Signature(
        inputs=(tensor("x", "batch", 32, dtype=dtype),), outputs=(tensor("y", "batch", 4, dtype=dtype),)
    )
    model = onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((32, 4), dtype)}, signature
    )
    with pytest.raises(StageError, match=r"^nothing was quantised: .* with a constant float32 weight"):
        quantize(model, context)


def test_regression_that_is_far_off_does_not_pass(onnx_model: Any, context: Any) -> None:
    """Answers of one number: cosines of those are 1 whatever they are, as long as the sign is right."""
    one = Signature(inputs=(tensor("x", "batch", 32),), outputs=(tensor("y", "batch", 1),))
    weights = {"w": np.abs(RNG.standard_normal((32, 1))).astype(np.float32), "b": np.full(1, 0.5, np.float32)}
    weights["w"][0] = 3e3  # a range so wide that all others become 0
    weights["mask"] = np.ones((1, 32), np.float32)
    weights["mask"][0, 0] = 0
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Mul", ["a", "mask"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    stage = Int8Dynamic(Options())
    outputs = stage.run(Inputs(model=onnx_model(nodes, weights, one)), context())
    assert outputs.report.metrics["parity.max_rel_error"] > 0.9
    assert {entry.outcome for entry in stage.judge(outputs, JudgeContext())} == {Outcome.FAIL}


def test_dimension_that_no_input_has_is_named(mlp: OnnxModel, dataset: Any, context: Any) -> None:
    with pytest.raises(
        StageError, match=r"^`dimensions` names 'sequence', which varies in no input of the model"
    ):
        quantize(mlp, context, dataset("calibration", x=np.ones((8, 32))), dimensions={"sequence": 4})
