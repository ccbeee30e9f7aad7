"""Graphs of 16 bits as graphs in float32 that round every tensor: what they compute on hardware that has the type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipctl_plugins._onnx.narrowing import Narrow, Narrowed
from shipctl_plugins._onnx.plain_graphs import replace_nodes

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def emulated(narrowed: Narrowed, dtype: Narrow) -> ModelProto:
    """Return a float32 twin of a graph in ``dtype`` that rounds every tensor which has that type there.

    It is for runtimes that leave no cast out (`open_session(…, optimize=False)`). It answers what hardware does
    that keeps the sums inside of a node in float32. ONNX Runtime on a CPU is no measure for it: it has kernels
    of 16 bits for few operators, and between the others it leaves out the rounding to them.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(narrowed.model)
    graph, inside = model.graph, narrowed.tensors
    _widen_weights_and_ends(graph, inside)
    number = onnx.TensorProto.DataType.Value(dtype.upper())
    nodes: list[NodeProto] = []
    # a caller's float32 becomes a rounded one first
    arriving = {value.name: f"{value.name}/rounded" for value in graph.input if value.name in inside}
    for name, within in arriving.items():
        nodes += _rounding(name, within, number)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = arriving.get(name, name)
        made = [name for name in node.output if name in inside]
        if made:
            _widen_attributes(node)
        for index, name in enumerate(node.output):
            if name in inside:
                node.output[index] = f"{name}/exact"
        nodes.append(node)
        for name in made:
            nodes += _rounding(f"{name}/exact", name, number)
    replace_nodes(graph, nodes)
    return model


def _rounding(source: str, target: str, number: int) -> list[NodeProto]:
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [source], [f"{target}/16"], to=number),
        helper.make_node("Cast", [f"{target}/16"], [target], to=TensorProto.FLOAT),
    ]


def _widen_weights_and_ends(graph: GraphProto, inside: frozenset[str]) -> None:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in graph.initializer:
        if tensor.name in inside:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in (*graph.input, *graph.output):
        if value.name in inside:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen_attributes(node: NodeProto) -> None:
    """Let a cast or constant that made the narrow type make float32."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for entry in node.attribute if node.op_type in {"Cast", "ConstantOfShape"} else ():
        if entry.name == "to":
            entry.i = TensorProto.FLOAT
        elif entry.name == "value":
            wide = numpy_helper.to_array(entry.t).astype(np.float32)
            entry.t.CopyFrom(numpy_helper.from_array(wide, "value"))
