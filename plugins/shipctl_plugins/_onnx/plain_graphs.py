"""ONNX graphs in the plainest form that says the same, which is what rewriting them asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl_plugins._onnx.graph import every_graph

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    Array = np.ndarray[Any, np.dtype[Any]]


def plain_graph(model: ModelProto) -> ModelProto:
    """Return the same function as a graph without detours.

    Local functions are inlined, `Constant` nodes become weights, weights are no inputs, nothing is said about
    shapes inside, and every node has a name of its own (its operator's, if it had none).
    """
    import onnx
    import onnx.inliner

    plain = onnx.ModelProto()
    plain.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    graph = plain.graph
    kept = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
    replace_nodes(graph, kept)
    separate_weights(plain)
    graph.ClearField("value_info")
    _name_nodes(graph)
    return plain


def separate_weights(model: ModelProto) -> None:
    """Take weights out of the inputs: before IR version 4 every weight had to be one."""
    graph = model.graph
    model.ir_version = max(model.ir_version, 4)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Give ``graph`` these nodes and no others."""
    import onnx

    # copies first: what is deleted from a message is gone
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _constant(node: NodeProto) -> TensorProto | None:
    """Return the tensor that a `Constant` node stands for; None for other nodes and for sparse or text values."""
    import numpy as np
    import onnx

    if node.op_type != "Constant" or node.domain:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    dtypes = {
        "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
    }  # fmt: skip
    if attribute.name not in dtypes:
        return None
    value = np.asarray(onnx.helper.get_attribute_value(attribute), dtypes[attribute.name])
    return onnx.numpy_helper.from_array(value, node.output[0])


def _name_nodes(graph: GraphProto) -> None:
    taken = Counter(node.name for node in graph.node if node.name)
    for index, node in enumerate(graph.node):
        if node.name and taken[node.name] == 1:
            continue
        name = node.name or node.op_type
        while not name or name in taken:
            name = f"{name}_{index}"
        taken[name] = 1
        node.name = name


def captured(node: NodeProto) -> Iterator[str]:
    """Yield the names of outer tensors that the graphs inside of a node use (some of their own among them)."""
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for graph in every_graph(inner):
                for step in graph.node:
                    yield from step.input
                yield from (value.name for value in graph.output)


def has_bodies(node: NodeProto) -> bool:
    """Whether there are graphs inside of the node, as in `If` and `Loop`."""
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def weights_of(graph: GraphProto) -> dict[str, Array]:
    """Return the values of all weights by name."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, ``default`` where it has none."""
    import onnx

    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def known_nodes(names: Iterable[str], graph: GraphProto, option: str) -> frozenset[str]:
    """Return node names that a spec gives.

    :raises StageError: if the graph has no such node
    """
    there = [node.name for node in graph.node]
    chosen = frozenset(names)
    for name in sorted(chosen.difference(there)):
        near = get_close_matches(name, there, n=3, cutoff=0.3) or there[:3]
        message = (
            f"`{option}` names node {name!r}, which the graph does not have; it has {', '.join(near)}, …"
        )
        raise StageError(message)
    return chosen
