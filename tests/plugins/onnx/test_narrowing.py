"""Graphs of 16 bits: what is converted, where casts stand, and that the emulation rounds as the type does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shipctl.signature import Signature, TensorSpec
from shipctl_plugins._onnx import graph
from shipctl_plugins._onnx.activations import observe
from shipctl_plugins._onnx.emulation import emulated
from shipctl_plugins._onnx.narrowing import Narrow, Narrowed, narrow
from shipctl_plugins._onnx.plain_graphs import plain_graph, weights_of
from shipctl_plugins._onnx.session import open_session, run_session

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)
X = np.array([[1.0, -2.5, 0.1, 3.14159], [1e-3, 7.0, -0.3333, 100.0]], np.float32)


@pytest.fixture
def convert(onnx_model: Any, tmp_path: Path) -> Any:
    """Narrow a model of nodes and weights, check the result, and return it with answers of it and its twin."""

    def make(
        nodes: list[onnx.NodeProto],
        weights: dict[str, Any],
        dtype: Narrow = "float16",
        x: Any = X,
        signature: Signature = SIGNATURE,
        **options: Any,
    ) -> tuple[Narrowed, dict[str, Any], dict[str, Any]]:
        model = plain_graph(graph.load_model(onnx_model(nodes, weights, signature, opset=22).path))
        feed = {"x": x}
        types = {name: seen.dtype for name, seen in observe(model, [feed], tmp_path / "seen").items()}
        types |= {name: str(array.dtype) for name, array in weights_of(model.graph).items()}
        narrowed = narrow(model, types, dtype, **options)
        path = graph.save_model(narrowed.model, tmp_path / "made") / graph.MODEL_FILE
        graph.check_model(path)
        twin = graph.save_model(emulated(narrowed, dtype), tmp_path / "twin") / graph.MODEL_FILE
        graph.check_model(twin)
        answers = run_session(open_session(twin, optimize=False), feed)
        real: dict[str, Any] = {}
        if dtype == "float16":
            session = open_session(path)
            own = x.astype(np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32)
            real = run_session(session, {"x": own})
        return narrowed, answers, real

    return make


def operators(narrowed: Narrowed) -> list[str]:
    return [node.op_type for node in narrowed.model.graph.node]


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_twin_rounds_every_tensor_as_the_type_does(convert: Any, dtype: Narrow, numpy_dtype: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "h"], ["y"])]

    def rounded(array: Any) -> Any:
        return array.astype(numpy_dtype).astype(np.float32)

    narrowed, answers, _ = convert(nodes, {"w": weight}, dtype)
    hidden = rounded(rounded(X) @ rounded(weight))
    np.testing.assert_allclose(answers["y"], rounded(hidden * hidden), rtol=1e-7)
    assert narrowed.converted == Counter(MatMul=1, Mul=1)
    assert operators(narrowed) == ["Cast", "MatMul", "Mul", "Cast"]


def test_value_between_two_kept_nodes_is_not_rounded(convert: Any) -> None:
    """What onnxconverter-common gets wrong: a large value between neighbours in float32 becomes infinite."""
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["t"], "a"),
        helper.make_node("Mul", ["t", "small"], ["u"], "b"),
        helper.make_node("Mul", ["t", "small"], ["v"], "c"),
        helper.make_node("Add", ["u", "v"], ["y"], "d"),
    ]
    weights = {"large": np.full(4, 1e6, np.float32), "small": np.full(4, 1e-6, np.float32)}
    narrowed, answers, real = convert(nodes, weights, keep=frozenset("abc"))
    np.testing.assert_allclose(answers["y"], 2 * X, rtol=1e-3)
    np.testing.assert_allclose(real["y"], 2 * X, rtol=1e-3)
    assert operators(narrowed) == ["Mul", "Mul", "Cast", "Mul", "Cast", "Add", "Cast"]


def test_output_that_is_used_inside_too_stays_valid(convert: Any) -> None:
    signature = Signature(
        inputs=SIGNATURE.inputs,
        outputs=(TensorSpec(name="h", dtype="float32", shape=("batch", 4)), *SIGNATURE.outputs),
    )
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    _, answers, real = convert(nodes, {}, signature=signature)
    np.testing.assert_allclose(answers["y"], -np.maximum(X, 0), rtol=1e-3)
    np.testing.assert_array_equal(real["h"], -real["y"])


def test_inputs_and_outputs_can_be_narrow_too(convert: Any) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"], "a"), helper.make_node("Neg", ["h"], ["y"], "b")]
    narrowed, answers, real = convert(nodes, {}, keep=frozenset("b"), keep_io=False)
    ends = [*narrowed.model.graph.input, *narrowed.model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT16}
    assert [value.name for value in ends] == ["x", "y"]
    assert real["y"].dtype == np.float16
    np.testing.assert_array_equal(answers["y"], real["y"].astype(np.float32))


def test_twin_rounds_what_comes_in_where_inputs_are_narrow(convert: Any) -> None:
    narrowed, answers, _ = convert([helper.make_node("Mul", ["x", "x"], ["y"])], {}, keep_io=False)
    own = X.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(answers["y"], (own * own).astype(np.float16).astype(np.float32))
    assert operators(narrowed) == ["Mul"]


def test_weight_of_a_kept_and_a_converted_node_is_there_twice(convert: Any) -> None:
    nodes = [helper.make_node("Mul", ["x", "w"], ["h"], "a"), helper.make_node("Add", ["h", "w"], ["y"], "b")]
    narrowed, _, _ = convert(nodes, {"w": np.ones(4, np.float32)}, keep=frozenset("a"))
    assert {tensor.name: tensor.data_type for tensor in narrowed.model.graph.initializer} == {
        "w": TensorProto.FLOAT, "w/float16": TensorProto.FLOAT16,
    }  # fmt: skip


def test_parameters_that_are_float32_by_definition_stay(convert: Any) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1, 2, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 1, 4, 4)),),
    )
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    weights = {"scales": np.array([1, 1, 2, 2], np.float32)}
    narrowed, answers, real = convert(nodes, weights, signature=signature, x=X.reshape(2, 1, 2, 2))
    assert narrowed.converted == Counter(Resize=1)
    assert [tensor.data_type for tensor in narrowed.model.graph.initializer] == [TensorProto.FLOAT]
    np.testing.assert_array_equal(answers["y"][:, :, ::2, ::2], X.reshape(2, 1, 2, 2).astype(np.float16))
    np.testing.assert_allclose(real["y"], answers["y"], rtol=1e-3)


def test_integers_casts_and_constants_are_treated_by_their_meaning(convert: Any) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], "to-integer", to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["back"], "to-float", to=TensorProto.FLOAT),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node(
            "ConstantOfShape",
            ["shape"],
            ["half"],
            value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5]),
        ),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Add", ["back", "half"], ["sum"]),
        helper.make_node("Add", ["sum", "one"], ["y"]),
    ]
    narrowed, answers, real = convert(nodes, {}, x=X * 100)
    np.testing.assert_allclose(answers["y"], np.trunc(X * 100) + 1.5, rtol=2e-3)
    # ONNX Runtime's CPU does not round between the two additions
    np.testing.assert_allclose(answers["y"], real["y"], rtol=2e-3)
    assert narrowed.converted == Counter(Add=2, Cast=1, ConstantOfShape=1)
    exact = next(node for node in narrowed.model.graph.node if node.name == "to-integer")
    assert list(exact.input) == ["x"]


@pytest.mark.parametrize("keep_io", [True, False])
def test_graphs_inside_of_nodes_stay_in_float32(convert: Any, *, keep_io: bool) -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x", "h"], [f"{op}_y"])], op, [], [out])

    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node(
            "If", ["yes"], ["z"], "choice", then_branch=branch("Add"), else_branch=branch("Sub")
        ),
        helper.make_node("Neg", ["z"], ["y"]),
    ]
    narrowed, answers, real = convert(nodes, {"yes": np.array(True)}, keep_io=keep_io)
    np.testing.assert_allclose(answers["y"], -(X + np.maximum(X, 0)), rtol=2e-3)
    np.testing.assert_allclose(real["y"].astype(np.float32), answers["y"], rtol=2e-3)
    assert narrowed.unable == ["choice"]


def test_operators_of_onnx_runtime_are_known() -> None:
    """Their definitions come from ONNX Runtime, since ONNX has none."""
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], "conv", domain="com.microsoft")
    model = helper.make_model(
        helper.make_graph(
            [node],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
            [onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    types = dict.fromkeys(("x", "y", "w"), "float32")
    assert narrow(model, types, "float16").converted == Counter(FusedConv=1)
    assert narrow(model, types, "bfloat16").unable == ["conv"]


def test_local_functions_and_old_weights_are_made_plain() -> None:
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 22)],
    )
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Twice", ["x"], ["t"], domain="local"),
                helper.make_node("Add", ["t", "w"], ["y"]),
            ],
            "test",
            [value("x", TensorProto.FLOAT, ["batch", 4]), value("w", TensorProto.FLOAT, [4])],
            [value("y", TensorProto.FLOAT, ["batch", 4])],
            [onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("local", 1)],
        functions=[function],
        ir_version=3,
    )
    plain = plain_graph(model)
    assert [node.op_type for node in plain.graph.node] == ["Add", "Add"]
    assert len({node.name for node in plain.graph.node}) == 2
    assert [value.name for value in plain.graph.input] == ["x"]
    assert plain.ir_version >= 4
