"""What an ONNX graph says about precision: in which types its products are to be done, and what is quantised."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shipctl.stages.artifacts import OnnxModel

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"})
"""Operators that the arithmetic of a model is spent in, and that have kernels for low precision."""
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"})
_TYPES = {
    "FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64", "INT8": "int8", "UINT8": "uint8",
    "INT4": "int4", "UINT4": "uint4", "FLOAT8E4M3FN": "fp8", "FLOAT8E5M2": "fp8", "FLOAT4E2M1": "fp4",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """One product of the graph and what it is asked to be done in."""

    name: str
    """The node's name as TensorRT's parser has it, or `node_of_` and its first output."""
    op_type: str
    compute: str
    """fp32, fp16, bf16, int8, fp8, … of the activations that it takes."""
    weights: str | None = None
    """Type that only the weights are stored in (int4, int8, fp8), where the arithmetic is done in `compute`."""
    storage: str = ""
    """The node that dequantises those weights, which may become a layer of its own."""

    @property
    def wanted(self) -> str:
        """Short for reports."""
        return f"{self.compute}, {self.weights} weights" if self.weights else self.compute


def type_name(number: int) -> str:
    """Return the short name of an ONNX element type."""
    import onnx

    name = onnx.TensorProto.DataType.Name(number)
    return _TYPES.get(name) or str(name).lower()


def _inferred(model: ModelProto) -> ModelProto:
    """Return the model with the types of its inner tensors, as far as ONNX knows its operators."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return model


class GraphTypes:
    """Element types of all tensors of a graph, and who makes them."""

    def __init__(self, model: ModelProto) -> None:
        self.model = _inferred(model)
        graph = self.model.graph
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.types: dict[str, str] = {
            value.name: type_name(value.type.tensor_type.elem_type)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.types |= {name: type_name(tensor.data_type) for name, tensor in self.constants.items()}
        self.maker: dict[str, NodeProto] = {}
        for node in graph.node:
            for output in node.output:
                self.maker[output] = node
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.types[node.output[0]] = type_name(node.attribute[0].t.data_type)

    def products(self) -> list[Product]:
        """Return the products of the main graph in its order."""
        return [self._product(node) for node in self.model.graph.node if node.op_type in PRODUCTS]

    def _product(self, node: NodeProto) -> Product:
        left, right = node.input[0], node.input[1] if len(node.input) > 1 else node.input[0]
        name = self._name(node)
        plain = self.types.get(node.output[0]) or self.types.get(left, "fp32")
        quantized = [self.quantized_type(side) for side in (left, right)]
        if quantized[0] and quantized[1]:
            return Product(name, node.op_type, quantized[0])
        if right == left or quantized[1] is None or not self._is_constant(right):
            return Product(name, node.op_type, plain)
        return Product(name, node.op_type, plain, quantized[1], self._name(self._behind_moves(right)))

    @staticmethod
    def _name(node: NodeProto | None) -> str:
        return "" if node is None else node.name or f"node_of_{node.output[0]}"

    def quantized_type(self, tensor: str) -> str | None:
        """Return the type that ``tensor`` is dequantised from, None for one that is not."""
        node = self._behind_moves(tensor)
        return (
            self.types.get(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else None
        )

    def _is_constant(self, tensor: str) -> bool:
        node = self._behind_moves(tensor)
        while node is not None and node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            tensor, node = node.input[0], self._behind_moves(node.input[0])
        return tensor in self.constants or (node is not None and node.op_type == "Constant")

    def _behind_moves(self, tensor: str) -> NodeProto | None:
        node = self.maker.get(tensor)
        while node is not None and node.op_type in _MOVES:
            node = self.maker.get(node.input[0])
        return node

    def quantizers(self) -> list[NodeProto]:
        """Return all nodes that quantise or dequantise."""
        return [node for node in self.model.graph.node if node.op_type in QUANTIZERS]


def precision_of(model: OnnxModel) -> str:
    """Return what most products of ``model`` are done in: what the stage says that made it, else what the graph says.

    :raises StageError: if the graph cannot be read
    """
    from shipctl_plugins._onnx.graph import load_model

    if model.opset is not None:
        return model.precision
    types = GraphTypes(load_model(model.path, external=False))
    found = Counter((item.weights or item.compute).replace("uint", "int") for item in types.products())
    return found.most_common(1)[0][0] if found else model.precision


def count_quantized(model: ModelProto) -> Counter[str]:
    """Return, by type, how many operators take a quantised weight.

    An operator counts when one of its inputs is dequantised from a constant, stored as integers or quantised on the
    way: activations alone buy nothing.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    constants |= {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in constants
    }
    weights = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return Counter(
        node.op_type
        for node in model.graph.node
        if node.op_type not in QUANTIZERS and weights & set(node.input)
    )
