"""Names and order inside of an ONNX graph that depend on nothing but what it computes, and on its signature.

Converters number what they make through a whole process, and go through sets: the same conversion gives other names,
and nodes in another order, the second time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl_plugins._onnx.graph import every_graph

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_COUNTER = re.compile(r"__\d+")
"""What tf2onnx appends to make a name unique in its process."""


def name_as_declared(model: ModelProto, signature: Signature) -> None:
    """Give inputs and outputs, which come in the signature's order, its names, and the rest names of its own.

    Nodes are put in the order in which the outputs need them. Tensors and nodes keep the names that they have from
    the source model; one with a counter in it is named after what it is or what takes it.

    :raises StageError: if the graph has another number of inputs or outputs, or two are to have the same name
    """
    _require_as_many(model.graph, signature)
    values = (*model.graph.input, *model.graph.output)
    specs = (*signature.inputs, *signature.outputs)
    for graph in every_graph(model.graph):
        _sort(graph)
    names = {value.name: spec.name for value, spec in zip(values, specs, strict=True)}
    if len(set(names.values())) < len(values):
        message = (
            f"the inputs are {_listed(signature.inputs)} and the outputs {_listed(signature.outputs)}, and each "
            "tensor needs a name of its own; rename one"
        )
        raise StageError(message)
    taken = set(names.values())
    for graph in every_graph(model.graph):
        _choose_names(graph, names, taken)
    for graph in every_graph(model.graph):
        _rename(graph, names)


def _require_as_many(graph: GraphProto, signature: Signature) -> None:
    sides = (("inputs", graph.input, signature.inputs), ("outputs", graph.output, signature.outputs))
    for side, values, specs in sides:
        if len(values) != len(specs):
            there = ", ".join(value.name for value in values)
            message = f"the graph has {len(values)} {side} ({there}), declared are {_listed(specs)}"
            raise StageError(message)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def _sort(graph: GraphProto) -> None:
    """Put nodes in the order in which a walk from the outputs, in their order, needs them; leave unneeded ones out."""
    made_by = {name: node for node in graph.node for name in node.output if name}
    ordered: dict[int, NodeProto] = {}
    todo = [made_by[value.name] for value in reversed(graph.output) if value.name in made_by]
    while todo:
        node = todo[-1]
        waiting = [
            made_by[name] for name in _needed(node) if name in made_by and id(made_by[name]) not in ordered
        ]
        if waiting:
            todo.extend(reversed(waiting))
            continue
        ordered.setdefault(id(node), node)
        todo.pop()
    nodes = list(ordered.values())
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _needed(node: NodeProto) -> Iterator[str]:
    """Yield what a node takes: its inputs, and what the graphs inside of it take from outside."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for inside in inner.node:
                yield from _needed(inside)
            yield from (value.name for value in inner.output)


def _choose_names(graph: GraphProto, names: dict[str, str], taken: set[str]) -> None:
    """Add, for each tensor of ``graph``, old name to new name, and give its nodes theirs."""
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        _choose(value.name, value.name, names, taken)
    nodes: set[str] = set()
    for node in graph.node:
        node.name = _free(_COUNTER.sub("", node.name) or node.op_type, nodes)
        for index, name in enumerate(node.input):
            if name in constants:
                made_up = _COUNTER.search(name) or not name
                _choose(name, f"{node.name}/input_{index}" if made_up else name, names, taken)
        for name in node.output:
            _choose(name, name, names, taken)
    # last, those that only a graph inside takes
    for name in sorted(constants):
        _choose(name, name, names, taken)


def _choose(name: str, wish: str, names: dict[str, str], taken: set[str]) -> None:
    if name and name not in names:
        names[name] = _free(_COUNTER.sub("", wish) or "tensor", taken)


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = names.get(item.name, item.name)
    constants = sorted(graph.initializer, key=lambda tensor: tensor.name)
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
    del graph.initializer[:]
    graph.initializer.extend(copies)
