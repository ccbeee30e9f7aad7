"""Graphs from float32 to a type of 16 bits, node by node, with casts only where the type changes.

onnxconverter-common has a converter to float16 as well. It rounds between two neighbours that are both kept in
float32 (a value that overflows there overflows still), makes an invalid graph where an output is used inside too,
cuts weights at 10⁴, goes by a fixed list of operators, and knows no bfloat16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shipctl_plugins._onnx.operators import Slots, slots, uses_value, versions_of
from shipctl_plugins._onnx.plain_graphs import captured, has_bodies, replace_nodes

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto, TensorProto

    Array = np.ndarray[Any, np.dtype[Any]]

Narrow = Literal["float16", "bfloat16"]


@dataclass
class Narrowed:
    """A graph that computes in 16 bits where it can."""

    model: ModelProto
    tensors: frozenset[str]
    """Names of all tensors that have the narrow type now."""
    converted: Counter[str] = field(default_factory=Counter)
    """Converted nodes by operator; those that only pass integers on do not count."""
    unable: list[str] = field(default_factory=list)
    """Names of nodes that compute in float32 because their operator takes nothing else."""


def rounded(array: Array, dtype: Narrow) -> Array:
    """Return float32 values rounded to ``dtype``, in ``dtype``; what is too large becomes infinite."""
    import ml_dtypes
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        return array.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)


def narrow(
    model: ModelProto,
    types: Mapping[str, str],
    dtype: Narrow,
    *,
    keep: frozenset[str] = frozenset(),
    keep_io: bool = True,
) -> Narrowed:
    """Return a plain graph (see `plain_graph`) with everything in ``dtype`` that its operators allow.

    ``types`` are the dtypes of all tensors by name, ``keep`` names nodes that stay in float32; without
    ``keep_io`` float32 inputs and outputs of the graph become ``dtype`` too.
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return _Narrowing(twin, types, dtype, keep, keep_io=keep_io).done()


class _Narrowing:
    def __init__(
        self,
        model: ModelProto,
        types: Mapping[str, str],
        dtype: Narrow,
        keep: frozenset[str],
        *,
        keep_io: bool,
    ) -> None:
        import onnx

        self.model, self.types, self.dtype = model, types, dtype
        self.number = onnx.TensorProto.DataType.Value(dtype.upper())
        graph = model.graph
        values = [*graph.input, *graph.output]
        self.ends = {value.name for value in values if types.get(value.name) == "float32"}
        self.keep_io = keep_io
        versions = versions_of(model)
        self.slots = {
            node.name: Slots() if node.name in keep else slots(node, types, versions, dtype)
            for node in graph.node
        }
        self.wide_wanted: set[str] = set()
        self.narrow_wanted: set[str] = set()
        self.made: set[str] = set()

    def done(self) -> Narrowed:
        graph = self.model.graph
        self._ask()
        nodes: list[NodeProto] = []
        for value in graph.input:
            nodes += self._other_version(value.name, have_narrow=not self.keep_io)
        self._weights()
        converted: Counter[str] = Counter()
        unable = []
        for node in graph.node:
            chosen = self.slots[node.name]
            if chosen:
                converted[node.op_type] += 1
            elif self._computes(node):
                unable.append(node.name)
            nodes += self._rewritten(node, chosen)
        replace_nodes(graph, nodes)
        for value in (*graph.input, *graph.output):
            if value.name in self.ends and not self.keep_io:
                value.type.tensor_type.elem_type = self.number
                self.made.add(value.name)
        return Narrowed(self.model, frozenset(self.made), converted, unable)

    def _computes(self, node: NodeProto) -> bool:
        return any(self._is_float(name) for name in node.output)

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == "float32"

    def wide(self, name: str) -> str:
        """Return the name of a tensor's float32 version."""
        return f"{name}/float32" if name in self.ends and not self.keep_io else name

    def narrow(self, name: str) -> str:
        """Return the name of a tensor's narrow version."""
        return name if name in self.ends and not self.keep_io else f"{name}/{self.dtype}"

    def _ask(self) -> None:
        """Find out which versions of every tensor somebody needs."""
        graph = self.model.graph
        for node in graph.node:
            for index, name in enumerate(node.input):
                if self._is_float(name):
                    wanted = self.narrow_wanted if index in self.slots[node.name].inputs else self.wide_wanted
                    wanted.add(name)
            self.wide_wanted.update(name for name in captured(node) if self._is_float(name))
        for value in graph.output:
            if value.name in self.ends:
                (self.wide_wanted if self.keep_io else self.narrow_wanted).add(value.name)

    def _weights(self) -> None:
        import onnx

        graph = self.model.graph
        kept = []
        for tensor in graph.initializer:
            if not self._is_float(tensor.name):
                kept.append(tensor)
                continue
            if tensor.name in self.narrow_wanted:
                kept.append(self._narrow_weight(tensor))
            if tensor.name in self.wide_wanted:
                same = onnx.TensorProto()
                same.CopyFrom(tensor)
                same.name = self.wide(tensor.name)
                kept.append(same)
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)

    def _narrow_weight(self, tensor: TensorProto) -> TensorProto:
        import onnx
        from onnx import numpy_helper

        name = self.narrow(tensor.name)
        self.made.add(name)
        data = rounded(numpy_helper.to_array(tensor), self.dtype)
        return onnx.TensorProto(name=name, data_type=self.number, dims=data.shape, raw_data=data.tobytes())

    def _rewritten(self, node: NodeProto, chosen: Slots) -> list[NodeProto]:
        """Return the node with its tensors renamed, and casts of its outputs to the versions that others need."""
        import onnx

        before = list(node.output)
        for index, name in enumerate(node.input):
            if self._is_float(name):
                node.input[index] = self.narrow(name) if index in chosen.inputs else self.wide(name)
        if has_bodies(node):
            _rename_captured(node, {name: self.wide(name) for name in self.ends})
        for index, name in enumerate(node.output):
            if self._is_float(name):
                node.output[index] = self.narrow(name) if index in chosen.outputs else self.wide(name)
        if chosen and uses_value(node):
            self._retype(node)
        nodes = [onnx.NodeProto.FromString(node.SerializeToString())]
        for index, name in enumerate(before):
            if self._is_float(name):
                if index in chosen.outputs:
                    self.made.add(self.narrow(name))
                nodes += self._other_version(name, have_narrow=index in chosen.outputs)
        return nodes

    def _retype(self, node: NodeProto) -> None:
        from onnx import helper, numpy_helper

        if node.op_type == "Cast":
            next(entry for entry in node.attribute if entry.name == "to").i = self.number
            return
        value = next((entry for entry in node.attribute if entry.name == "value"), None)
        zero = helper.make_tensor("value", 1, [1], [0.0])
        tensor = zero if value is None else value.t
        data = rounded(numpy_helper.to_array(tensor), self.dtype)
        del node.attribute[:]
        node.attribute.append(
            helper.make_attribute(
                "value", helper.make_tensor("value", self.number, [1], data.tobytes(), raw=True)
            )
        )

    def _other_version(self, name: str, *, have_narrow: bool) -> list[NodeProto]:
        """Return the cast that makes the version of a tensor that its producer does not give, if it is needed."""
        from onnx import TensorProto, helper

        if not self._is_float(name):
            return []
        if have_narrow and name in self.wide_wanted:
            return [
                helper.make_node(
                    "Cast", [self.narrow(name)], [self.wide(name)], f"{name}/to-float32", to=TensorProto.FLOAT
                )
            ]
        if not have_narrow and name in self.narrow_wanted:
            self.made.add(self.narrow(name))
            return [
                helper.make_node(
                    "Cast", [self.wide(name)], [self.narrow(name)], f"{name}/to-{self.dtype}", to=self.number
                )
            ]
        return []


def _rename_captured(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename outer tensors in the graphs inside of a node."""
    from shipctl_plugins._onnx.graph import every_graph

    for entry in node.attribute:
        for inner in (entry.g, *entry.graphs):
            for graph in every_graph(inner):
                for step in graph.node:
                    for index, name in enumerate(step.input):
                        step.input[index] = names.get(name, name)
