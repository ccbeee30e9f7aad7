"""Layers of a rewritten graph: which there are, and how much each of them is off by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx import graph
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]

_TWIN = "rewritten/"
"""What names in the rewritten graph begin with when both graphs are in one."""


@dataclass(frozen=True)
class Layer:
    """A node that may be computed in lower precision, or not."""

    name: str
    op_type: str
    output: str
    """The tensor that it makes."""
    rewritten: str
    """What that tensor is called in the rewritten graph: an activation that a quantiser dropped leaves its name."""


class _Parts:
    """The nodes of a rewritten graph that stand for one node of the graph before."""

    def __init__(self, before: ModelProto, after: ModelProto) -> None:
        self.nodes = after.graph.node
        self.constants = {tensor.name: tensor for tensor in after.graph.initializer}
        self._known = {value.name for value in before.graph.input}
        self._known |= {name for node in before.graph.node for name in node.output}
        self._makers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}

    def of(self, tensor: str) -> list[int]:
        """Return the nodes from what both graphs have to ``tensor``, in the order of the graph."""
        found: set[int] = set()
        waiting = [tensor]
        while waiting:
            index = self._makers.get(waiting.pop())
            if index is None or index in found:
                continue
            found.add(index)
            waiting += [name for name in self.nodes[index].input if not self.is_shared(name)]
        return sorted(found)

    def makes(self, tensor: str) -> bool:
        """Whether the rewritten graph has a tensor, too."""
        return tensor in self._makers

    def is_shared(self, name: str) -> bool:
        """Whether a tensor, given or computed, is in both graphs (or there is none)."""
        return not name or name in self._known


def quantized_layers(before: ModelProto, after: ModelProto) -> tuple[Layer, ...]:
    """Return the nodes of ``before`` that have a weight of 8 bits or less in ``after``, in the order of the graph.

    Rounding activations alone does not count. ``before`` has names for its nodes, and ``after`` its tensors' names.
    """
    from onnx import TensorProto

    narrow = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}
    parts = _Parts(before, after)
    old = {tensor.name for tensor in before.graph.initializer}
    # a zero point of activations has no dimensions
    weights = {
        name
        for name, tensor in parts.constants.items()
        if tensor.data_type in narrow and tensor.dims and name not in old
    }
    readers: dict[str, list[NodeProto]] = {}
    for node in before.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[Layer] = []
    for node in before.graph.node:
        if not old.intersection(node.input):
            continue
        output = rewritten = next(name for name in node.output if name)
        while not parts.makes(rewritten) and len(readers.get(rewritten, ())) == 1:
            rewritten = readers[rewritten][0].output[0]
        if any(weights.intersection(parts.nodes[index].input) for index in parts.of(rewritten)):
            found.append(Layer(node.name, node.op_type, output, rewritten))
    return tuple(found)


def own_noise(
    before: ModelProto,
    after: ModelProto,
    layers: Sequence[Layer],
    feeds: Iterable[Mapping[str, Array]],
    scratch: Path,
    *,
    threads: int = 1,
) -> dict[str, float]:
    """Return per layer the power of its error by that of its output, ``Σ(y - y')² / Σy²`` over all ``feeds``.

    Each layer of ``after`` gets what the layer of ``before`` gets, so that the noise is its own, not that of those
    before it. Both graphs run as one, once for all layers: SmoothQuant's and SQNR's per-layer error, without a run
    per layer. Infinity for a layer that gives something where there was nothing, or no numbers.

    :raises StageError: if the two do not run together
    """
    path = graph.save_model(_together(before, after, layers), scratch) / graph.MODEL_FILE
    session = open_session(path, threads=threads)
    powers = {layer.name: [0.0, 0.0] for layer in layers}
    for feed in feeds:
        outputs = run_session(session, feed)
        for index, layer in enumerate(layers):
            powers[layer.name][0] += float(outputs[f"noise/{index}"])
            powers[layer.name][1] += float(outputs[f"signal/{index}"])
    return {name: _ratio(noise, signal) for name, (noise, signal) in powers.items()}


def _ratio(noise: float, signal: float) -> float:
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.inf
    if not signal:
        return math.inf if noise else 0.0
    return noise / signal


def _together(before: ModelProto, after: ModelProto, layers: Sequence[Layer]) -> ModelProto:
    """Return ``before`` with the layers of ``after`` beside it, and the powers of signal and noise as outputs."""
    import onnx
    from onnx import TensorProto, helper

    parts, halves = _Parts(before, after), _halves(after)
    twin = onnx.ModelProto()
    twin.CopyFrom(before)
    versions = {entry.domain: entry.version for entry in (*before.opset_import, *after.opset_import)}
    del twin.opset_import[:]
    twin.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    twin.ir_version = max(before.ir_version, after.ir_version)
    chosen = [parts.nodes[i] for i in sorted({i for layer in layers for i in parts.of(layer.rewritten)})]
    used = dict.fromkeys(name for node in chosen for name in node.input)
    for name in used:
        if name in parts.constants:
            twin.graph.initializer.add().CopyFrom(parts.constants[name])
            twin.graph.initializer[-1].name = _TWIN + name
    narrowed = {name: f"{_TWIN}narrow/{name}" for name in used if name in halves and parts.is_shared(name)}
    twin.graph.node.extend(
        helper.make_node("Cast", [name], [other], to=halves[name]) for name, other in narrowed.items()
    )
    for index, node in enumerate(chosen):
        copy = twin.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{_TWIN}{index}"
        copy.input[:] = [
            narrowed.get(name, name) if parts.is_shared(name) else _TWIN + name for name in node.input
        ]
        copy.output[:] = [_TWIN + name if name else "" for name in node.output]
    del twin.graph.output[:]
    for index, layer in enumerate(layers):
        other, error = _TWIN + layer.rewritten, f"error/{index}"
        if layer.rewritten in halves:
            other = f"{_TWIN}wide/{index}"
            twin.graph.node.append(
                helper.make_node("Cast", [_TWIN + layer.rewritten], [other], to=TensorProto.FLOAT)
            )
        twin.graph.node.append(helper.make_node("Sub", [layer.output, other], [error]))
        for what, tensor in (("noise", error), ("signal", layer.output)):
            name = f"{what}/{index}"
            twin.graph.node.append(helper.make_node("ReduceSumSquare", [tensor], [name], keepdims=0))
            twin.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ()))
    return twin


def _halves(model: ModelProto) -> dict[str, int]:
    """Return the tensors of 16-bit floats, with their type; none is looked for without weights of such."""
    import onnx

    types = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if not any(tensor.data_type in types for tensor in model.graph.initializer):
        return {}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type in types
    }
