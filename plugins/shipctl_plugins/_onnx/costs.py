"""What a graph costs: parameters, zeros among them, and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.plain_graphs import attribute

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply activations with weights."""


def layer_weights(model: ModelProto, weights: Mapping[str, Array]) -> dict[str, list[NodeProto]]:
    """Return the float weights of layers by name, each with the nodes that use it."""
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and not node.domain:
            name = node.input[1]
            if name in weights and weights[name].dtype.kind == "f":
                found.setdefault(name, []).append(node)
    return found


def parameters(weights: Mapping[str, Array]) -> int:
    """Return the number of elements of all float weights."""
    return sum(array.size for array in weights.values() if array.dtype.kind == "f")


def flops(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return floating point operations of the layers for tensors of these shapes: two per multiply-accumulate.

    Counted are Conv, ConvTranspose, Gemm and MatMul, zeros included; elsewhere there is little beside them.
    ``shapes`` are those of weights and activations by name.
    """
    return sum(
        2 * _multiplications(node, shapes)
        for node in model.graph.node
        if node.op_type in WEIGHTED and not node.domain
    )


def _multiplications(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    data, weight, result = (shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        # [outputs, inputs of a group, *kernel]
        return math.prod(result) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    inner = data[0] if attribute(node, "transA", 0) else data[-1]
    return math.prod(result) * inner
