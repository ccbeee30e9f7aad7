"""Gemm as MatMul and Add."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from shipctl.signature import Signature, TensorSpec
from shipctl_plugins._onnx.plain_graphs import plain_graph
from shipctl_plugins._onnx.products import split_gemms

RNG = np.random.default_rng(0)
X, C = (
    TensorSpec(name="x", dtype="float32", shape=(4, 4)),
    TensorSpec(name="c", dtype="float32", shape=(4, 3)),
)
Y = TensorSpec(name="y", dtype="float32", shape=(4, 3))
WEIGHTS = {
    "w": RNG.standard_normal((4, 3)).astype(np.float32), "t": RNG.standard_normal((3, 4)).astype(np.float32),
    "b": RNG.standard_normal(3).astype(np.float32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "attributes", "operators"),
    [
        (["x", "w", "b"], {}, ["MatMul", "Add"]),
        (["x", "t", "b"], {"transB": 1}, ["MatMul", "Add"]),
        (["x", "w"], {"alpha": 0.5}, ["MatMul"]),
        (["x", "w", ""], {}, ["MatMul"]),
        (["x", "w", "b"], {"alpha": 2.0, "beta": 0.25}, ["MatMul", "Add"]),
        (["x", "w", "c"], {"beta": 3.0}, ["Mul", "MatMul", "Add"]),
        (["x", "t", "b"], {"transA": 1, "transB": 1, "alpha": -1.0}, ["Transpose", "MatMul", "Add"]),
    ],
)
def test_the_answers_stay(
    onnx_model: Any, inputs: list[str], attributes: dict[str, Any], operators: list[str]
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs the cpu extra")
    signature = Signature(inputs=(X, C), outputs=(Y,))
    node = helper.make_node("Gemm", inputs, ["y"], name="g", **attributes)
    model = plain_graph(onnx.load(onnx_model([node], WEIGHTS, signature).path))
    feed = {"x": RNG.standard_normal((4, 4)).astype(np.float32), "c": np.ones((4, 3), np.float32)}
    before = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    assert split_gemms(model) == {"g"}
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == operators
    assert [node.name for node in model.graph.node if node.op_type == "MatMul"] == ["g"]
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    after = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_product_of_two_inputs_stays(onnx_model: Any) -> None:
    signature = Signature(inputs=(X, C), outputs=(Y,))
    node = helper.make_node("Gemm", ["x", "c"], ["y"], name="g")
    model = plain_graph(onnx.load(onnx_model([node], {}, signature).path))
    assert split_gemms(model) == frozenset()
    assert [node.op_type for node in model.graph.node] == ["Gemm"]


def test_weight_in_common_stays_in_common(onnx_model: Any) -> None:
    signature = Signature(inputs=(X,), outputs=(Y,))
    nodes = [
        helper.make_node("Gemm", ["x", "t"], ["h"], name="one", transB=1),
        helper.make_node("Gemm", ["x", "t"], ["i"], name="two", transB=1),
        helper.make_node("Add", ["h", "i"], ["y"]),
    ]
    model = plain_graph(onnx.load(onnx_model(nodes, {"t": WEIGHTS["t"]}, signature).path))
    split_gemms(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["t/transposed"]
