"""What TensorRT does not take of ONNX Runtime's way to quantise, and which option of int8-calibration changes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shipctl_plugins._onnx.graph import is_external
from shipctl_plugins._onnx.quantized import GraphTypes

if TYPE_CHECKING:
    from onnx import NodeProto

_ZERO = 2
"""Where the zero point stands among the inputs of a quantiser."""
_SHOWN = 5
"""Nodes that a message names."""


def refused(types: GraphTypes) -> Iterator[str]:
    """Say, a line each, what TensorRT does not take, and what to set for it."""
    quantizers = types.quantizers()
    biases = [
        node
        for node in quantizers
        if node.op_type == "DequantizeLinear" and types.types.get(node.input[0]) == "int32"
    ]
    if biases:
        yield f"INT32 biases are dequantised ({_names(biases)}): set `quantize_bias: false` on int8-calibration"
    # one node per tensor is enough: who quantises it, or who takes it as it is stored
    quantizers = [
        node for node in quantizers if node.op_type == "QuantizeLinear" or node.input[0] in types.constants
    ]
    unsigned = [node for node in quantizers if _zero_type(types, node) == "uint8"]
    if unsigned:
        yield (
            f"activations are UINT8 ({_names(unsigned)}): set `activation_type: qint8` and `symmetric: true` on "
            "int8-calibration"
        )
    shifted = [node for node in quantizers if node not in unsigned and _is_shifted(types, node)]
    if shifted:
        yield f"zero points are not 0 ({_names(shifted)}): set `symmetric: true` on int8-calibration"


def _zero_type(types: GraphTypes, node: NodeProto) -> str | None:
    return types.types.get(node.input[_ZERO]) if len(node.input) > _ZERO else None


def _is_shifted(types: GraphTypes, node: NodeProto) -> bool:
    from onnx import numpy_helper

    zero = types.constants.get(node.input[_ZERO]) if len(node.input) > _ZERO else None
    if zero is None or is_external(zero) or _zero_type(types, node) != "int8":
        return False
    return bool(numpy_helper.to_array(zero).any())


def _names(nodes: list[NodeProto]) -> str:
    names = [node.name or f"node_of_{node.output[0]}" for node in nodes]
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
