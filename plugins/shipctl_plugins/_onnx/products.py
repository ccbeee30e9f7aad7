"""Gemm as MatMul and Add: quantisers of weights know the one and not the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.plain_graphs import attribute, captured, replace_nodes, weights_of

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]


def split_gemms(model: ModelProto) -> frozenset[str]:
    """Write each Gemm with a constant matrix in a plain graph as MatMul and Add; return the names of the MatMuls.

    A MatMul has its Gemm's name. `Y = alpha·A'·B' + beta·C` becomes `MatMul(A', alpha·B') + beta·C`, where what is
    constant is computed here. Weights that nothing reads any more are taken out.
    """
    from onnx import numpy_helper

    writer = _Writer(weights_of(model.graph))
    split: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Gemm" and not node.domain and node.input[1] in writer.weights:
            writer.split(node)
            split.add(node.name)
        else:
            writer.nodes.append(node)
    if split:
        replace_nodes(model.graph, writer.nodes)
        for name, value in writer.made.items():
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        drop_unused_weights(model)
    return frozenset(split)


def drop_unused_weights(model: ModelProto) -> None:
    """Take out the weights of the main graph that no node reads, inner graphs included."""
    used = {value.name for value in model.graph.output}
    for node in model.graph.node:
        used.update(node.input)
        used.update(captured(node))
    weights = model.graph.initializer
    for index in reversed(range(len(weights))):
        if weights[index].name not in used:
            del weights[index]


class _Writer:
    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = weights
        self.made: dict[str, Array] = {}
        self.nodes: list[NodeProto] = []

    def split(self, node: NodeProto) -> None:
        """Append what a Gemm stands for."""
        from onnx import helper

        left, right = node.input[0], self._matrix(node)
        if attribute(node, "transA", 0):
            turned = f"{node.name}/{left}"
            self.nodes.append(helper.make_node("Transpose", [left], [turned], f"{node.name}/transpose"))
            left = turned
        bias, output = self._bias(node), node.output[0]
        product = f"{output}/product" if bias else output
        self.nodes.append(helper.make_node("MatMul", [left, right], [product], node.name))
        if bias:
            self.nodes.append(helper.make_node("Add", [product, bias], [output], f"{node.name}/bias"))

    def _matrix(self, node: NodeProto) -> str:
        name, alpha = node.input[1], attribute(node, "alpha", 1.0)
        value = self.weights[name]
        if attribute(node, "transB", 0):
            name, value = f"{name}/transposed", value.T
        if alpha != 1:
            name, value = f"{name}/{alpha:g}", value * value.dtype.type(alpha)
        return self._constant(name, value)

    def _bias(self, node: NodeProto) -> str:
        from onnx import helper

        name, beta = node.input[2] if len(node.input) > len("AB") else "", attribute(node, "beta", 1.0)
        if not name or beta == 1:
            return name
        value = self.weights.get(name)
        if value is not None:
            return self._constant(f"{name}/{beta:g}", value * value.dtype.type(beta))
        factor = self._constant(f"{node.name}/beta", self.weights[node.input[1]].dtype.type(beta))
        scaled = f"{node.name}/{name}"
        self.nodes.append(helper.make_node("Mul", [name, factor], [scaled], f"{node.name}/scale"))
        return scaled

    def _constant(self, name: str, value: Any) -> str:
        import numpy as np

        if name not in self.weights and name not in self.made:
            self.made[name] = np.array(value, order="C")
        return name
