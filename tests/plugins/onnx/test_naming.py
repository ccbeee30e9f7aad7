"""Names and order inside of converted graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl_plugins._onnx.naming import name_as_declared

X = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
Y = TensorSpec(name="y", dtype="float32", shape=("batch", 2))
PLAIN = Signature(inputs=(X,), outputs=(Y,))


def model_of(nodes: list[onnx.NodeProto], **weights: float) -> onnx.ModelProto:
    """A graph from `in__3` to `out:0`, both float32 [?, 2]."""
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 2]) for name in ("in__3", "out:0")
    ]
    constants = [
        numpy_helper.from_array(np.array(value, np.float32), name) for name, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def answer(model: onnx.ModelProto, **feed: float) -> list[float]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = {name: np.full((1, 2), value, np.float32) for name, value in feed.items()}
    return [float(array[0, 0]) for array in session.run(None, arrays)]


def counted(number: int, *, swapped: bool = False) -> onnx.ModelProto:
    """3x + 2 with the counters that a process is at, and independent nodes in either order."""
    node = helper.make_node
    parts = [
        node(
            "Mul", ["in__3", f"c__{number}"], [f"layer/mul__{number + 1}:0"], name=f"layer/mul__{number + 1}"
        ),
        node("Neg", [f"c__{number + 2}"], [f"Neg__{number + 3}:0"], name=f"Neg__{number + 3}"),
    ]
    nodes = [
        *(reversed(parts) if swapped else parts),
        node("Sub", [f"layer/mul__{number + 1}:0", f"Neg__{number + 3}:0"], ["out:0"], name="layer/sub"),
        node("Abs", ["in__3"], ["unused"]),
    ]
    return model_of(nodes, **{f"c__{number}": 3.0, f"c__{number + 2}": 2.0})


def test_counters_and_order_of_a_process_do_not_matter() -> None:
    models = [counted(7), counted(98, swapped=True)]
    for model in models:
        name_as_declared(model, PLAIN)
    assert models[0] == models[1]
    assert [node.name for node in models[0].graph.node] == ["layer/mul", "Neg", "layer/sub"]
    assert [tensor.name for tensor in models[0].graph.initializer] == ["Neg/input_0", "layer/mul/input_1"]
    onnx.checker.check_model(models[0], full_check=True)
    assert answer(models[0], x=4) == [14]


def test_declared_name_that_an_inner_tensor_has_goes_to_the_output() -> None:
    nodes = [helper.make_node("Abs", ["in__3"], ["y"]), helper.make_node("Neg", ["y"], ["out:0"])]
    model = model_of(nodes)
    name_as_declared(model, PLAIN)
    assert [(list(node.input), list(node.output)) for node in model.graph.node] == [
        (["x"], ["y_2"]),
        (["y_2"], ["y"]),
    ]
    assert answer(model, x=-3) == [-3]


def test_graphs_inside_of_nodes_follow() -> None:
    def branch(factor: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("inner__9", onnx.TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Mul", ["mid__5", factor], ["inner__9"])], "b", [], [out])

    nodes = [
        helper.make_node("Abs", ["in__3"], ["mid__5"]),
        helper.make_node("ReduceSum", ["in__3"], ["sum__6"], keepdims=0),
        helper.make_node("Greater", ["sum__6", "zero"], ["positive__7"]),
        helper.make_node(
            "If", ["positive__7"], ["out:0"], then_branch=branch("two"), else_branch=branch("three")
        ),
    ]
    model = model_of(nodes, zero=0.0, two=2.0, three=3.0)
    name_as_declared(model, PLAIN)
    onnx.checker.check_model(model)
    assert (answer(model, x=4), answer(model, x=-4)) == ([8], [12])
    assert "__" not in str(model)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (
            Signature(inputs=(X, Y), outputs=(Y,)),
            "the graph has 1 inputs (in__3), declared are x, y",
        ),
        (
            Signature(inputs=(X,), outputs=(X,)),
            "the inputs are x and the outputs x, and each tensor needs a name of its own; rename one",
        ),
    ],
)
def test_signature_that_cannot_be_is_refused(signature: Signature, message: str) -> None:
    with pytest.raises(StageError) as caught:
        name_as_declared(model_of([helper.make_node("Abs", ["in__3"], ["out:0"])]), signature)
    assert str(caught.value) == message
