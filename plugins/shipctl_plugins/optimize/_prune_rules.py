"""What each operator does with the labels of channels (see `_prune_labels`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.graph import opset_of
from shipctl_plugins._onnx.plain_graphs import attribute, captured
from shipctl_plugins.optimize._prune_labels import Axes, Labels
from shipctl_plugins.optimize._prune_reshape import reshaped

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]

_SAME = frozenset({
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
})  # fmt: skip
_BROADCAST = frozenset({
    "Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or", "PRelu", "Pow", "Sub",
    "Sum", "Where", "Xor",
})  # fmt: skip
_POOLS = frozenset({
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
})  # fmt: skip
_ACROSS = frozenset({"Hardmax", "LayerNormalization", "LogSoftmax", "LpNormalization", "Softmax"})
_REDUCES = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
})  # fmt: skip


@dataclass(frozen=True)
class Producer:
    """A layer whose outputs are channels that can be cut."""

    node: str
    weight: str
    axis: int
    """Of the weight: where its output channels are."""
    reduction: int
    """Of the weight: where its input channels are."""


@dataclass
class Tracked:
    """A graph with labels on its channels."""

    model: ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    """Of all activations in one run."""
    weights: Mapping[str, Array]
    labels: Labels = field(default_factory=Labels)
    axes: dict[str, Axes] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    scales: list[tuple[Array, Array]] = field(default_factory=list)
    """Labels of channels with the factors that a normalisation puts on them."""
    groups: list[tuple[str, Array]] = field(default_factory=list)
    """Depthwise convolutions by name, with the labels of their channels: that many groups they have."""
    targets: list[tuple[str, int, Array]] = field(default_factory=list)
    """Reshapes by name with a position in their target and the labels along it."""

    def of(self, name: str) -> Axes:
        """Return the axes of a tensor."""
        return self.axes.get(name) or [None] * len(self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; an empty one for what was not seen."""
        return self.weights[name].shape if name in self.weights else self.shapes.get(name, ())


def track(model: ModelProto, shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Array]) -> Tracked:
    """Label the channels of a plain graph."""
    tracked = Tracked(model, shapes, weights)
    for name, array in weights.items():
        tracked.axes[name] = tracked.labels.fresh_axes(array.shape)
    for node in model.graph.node:
        rule = _RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
        found = rule(tracked, node) if rule else None
        if found is None:
            _leave_alone(tracked, node, f"{node.op_type} {node.name!r} uses it")
            continue
        for name, axes in zip(node.output, found, strict=False):
            if name:
                tracked.axes[name] = axes
    for value in model.graph.output:
        tracked.labels.freeze(tracked.of(value.name), f"it is output {value.name!r}")
    return tracked


Result = list[Axes] | None
"""The axes of a node's outputs; None where the node is one that nothing is known about."""


def _leave_alone(tracked: Tracked, node: NodeProto, why: str) -> None:
    for name in (*node.input, *captured(node)):
        if name in tracked.axes:
            tracked.labels.freeze(tracked.axes[name], why)


def _why(node: NodeProto) -> str:
    return f"{node.op_type} {node.name!r} joins it with what is left alone"


def _same(tracked: Tracked, node: NodeProto) -> Result:
    return [list(tracked.of(node.input[0])) for _ in node.output]


def _broadcast(tracked: Tracked, node: NodeProto) -> Result:
    shape = tracked.shape(node.output[0])
    result: Axes = []
    for axis, size in enumerate(shape):
        sides = []
        for name in node.input:
            own = axis - len(shape) + len(tracked.shape(name))
            if own >= 0 and tracked.shape(name)[own] == size:
                sides.append(tracked.of(name)[own])
        joined = sides[0]
        for side in sides[1:]:
            joined = tracked.labels.join(joined, side, _why(node))
        result.append(joined)
    return [result]


def _conv(tracked: Tracked, node: NodeProto) -> Result:
    data, weight = node.input[0], node.input[1]
    if weight not in tracked.weights:
        return None
    channels = tracked.of(data)[1]
    rows, columns, *_ = tracked.of(weight)
    group = attribute(node, "group", 1)
    count = tracked.shape(data)[1]
    if group == 1:
        tracked.labels.join(channels, columns, _why(node))
        tracked.producers.append(Producer(node.name, weight, axis=0, reduction=1))
    elif group == count and rows is not None:
        import numpy as np

        wanted = None if channels is None else np.repeat(channels, len(rows) // count)
        rows = tracked.labels.join(wanted, rows, _why(node))
        if channels is not None:
            tracked.groups.append((node.name, channels))
    else:
        why = f"Conv {node.name!r} has {group} groups"
        tracked.labels.freeze([channels, rows], why)
    if len(node.input) > 2 and node.input[2]:  # noqa: PLR2004  the bias
        tracked.labels.join(rows, tracked.of(node.input[2])[0], _why(node))
    return [[None, rows, *[None] * (len(tracked.shape(data)) - 2)]]


def _conv_transpose(tracked: Tracked, node: NodeProto) -> Result:
    data, weight = node.input[0], node.input[1]
    if weight not in tracked.weights or attribute(node, "group", 1) != 1:
        return None
    columns, rows, *_ = tracked.of(weight)
    tracked.labels.join(tracked.of(data)[1], columns, _why(node))
    tracked.producers.append(Producer(node.name, weight, axis=1, reduction=0))
    if len(node.input) > 2 and node.input[2]:  # noqa: PLR2004  the bias
        tracked.labels.join(rows, tracked.of(node.input[2])[0], _why(node))
    return [[None, rows, *[None] * (len(tracked.shape(data)) - 2)]]


def _gemm(tracked: Tracked, node: NodeProto) -> Result:
    data, weight = node.input[0], node.input[1]
    if weight not in tracked.weights or attribute(node, "transA", 0):
        return None
    turned = bool(attribute(node, "transB", 0))
    axes = tracked.of(weight)
    columns, rows = (axes[1], axes[0]) if turned else (axes[0], axes[1])
    tracked.labels.join(tracked.of(data)[1], columns, _why(node))
    tracked.producers.append(
        Producer(node.name, weight, axis=0 if turned else 1, reduction=1 if turned else 0)
    )
    bias = node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004
    if bias and tracked.shape(bias) and tracked.shape(bias)[-1] == tracked.shape(node.output[0])[-1]:
        tracked.labels.join(rows, tracked.of(bias)[-1], _why(node))
    return [[tracked.of(data)[0], rows]]


def _matmul(tracked: Tracked, node: NodeProto) -> Result:
    data, weight = node.input[0], node.input[1]
    if weight not in tracked.weights or len(tracked.shape(weight)) != 2 or len(tracked.shape(data)) < 2:  # noqa: PLR2004
        return None
    columns, rows = tracked.of(weight)
    *outer, inner = tracked.of(data)
    tracked.labels.join(inner, columns, _why(node))
    tracked.producers.append(Producer(node.name, weight, axis=1, reduction=0))
    return [[*outer, rows]]


def _normalised(tracked: Tracked, node: NodeProto) -> Result:
    """`BatchNormalization` and `InstanceNormalization`: a parameter per channel."""
    import numpy as np

    axes = tracked.of(node.input[0])
    channels = axes[1]
    for name in node.input[1:]:
        channels = tracked.labels.join(channels, tracked.of(name)[0], _why(node))
    if node.op_type == "BatchNormalization" and channels is not None:
        scale, variance = tracked.weights.get(node.input[1]), tracked.weights.get(node.input[4])
        if scale is not None and variance is not None:
            epsilon = attribute(node, "epsilon", 1e-5)
            tracked.scales.append((channels, np.abs(scale) / np.sqrt(variance + epsilon)))
    others: list[Axes] = [[None] for _ in node.output[1:]]
    return [[axes[0], channels, *axes[2:]], *others]


def _pool(tracked: Tracked, node: NodeProto) -> Result:
    axes = tracked.of(node.input[0])
    return [[axes[0], axes[1], *[None] * (len(axes) - 2)] for _ in node.output]


def _across(tracked: Tracked, node: NodeProto) -> Result:
    """Every value depends on all others along an axis: cutting there would change those that stay."""
    axes = list(tracked.of(node.input[0]))
    old = opset_of(tracked.model) < 13 and node.op_type != "LayerNormalization"  # noqa: PLR2004
    axis = attribute(node, "axis", 1 if old else -1) % len(axes)
    last = axis + 1 if node.op_type == "LpNormalization" else len(axes)
    why = f"{node.op_type} {node.name!r} works across it"
    for index in range(axis, last):
        tracked.labels.freeze(axes[index], why)
    for name in node.input[1:]:
        tracked.labels.freeze(tracked.of(name), why)
    others: list[Axes] = [[None] * len(axes) for _ in node.output[1:]]
    return [axes, *others]


def _reduced(tracked: Tracked, node: NodeProto) -> Result:
    given = attribute(node, "axes")
    if given is None and len(node.input) > 1 and node.input[1]:
        if node.input[1] not in tracked.weights:
            return None
        given = tracked.weights[node.input[1]].tolist()
    axes = tracked.of(node.input[0])
    chosen = {axis % len(axes) for axis in given} if given else set(range(len(axes)))
    keep = attribute(node, "keepdims", 1)
    result: Axes = []
    for index, labels in enumerate(axes):
        if index not in chosen:
            result.append(labels)
            continue
        tracked.labels.freeze(labels, f"{node.op_type} {node.name!r} works across it")
        if keep:
            result.append(None)
    return [result]


def _transpose(tracked: Tracked, node: NodeProto) -> Result:
    axes = tracked.of(node.input[0])
    order = attribute(node, "perm") or range(len(axes))[::-1]
    return [[axes[index] for index in order]]


def _concat(tracked: Tracked, node: NodeProto) -> Result:
    import numpy as np

    rank = len(tracked.shape(node.output[0]))
    axis = attribute(node, "axis") % rank
    result: Axes = list(tracked.of(node.input[0]))
    for name in node.input[1:]:
        for index, labels in enumerate(tracked.of(name)):
            if index != axis:
                result[index] = tracked.labels.join(result[index], labels, _why(node))
    parts = []
    for name in node.input:
        labels = tracked.of(name)[axis]
        if labels is None:
            labels = tracked.labels.fresh(tracked.shape(name)[axis])
            tracked.labels.freeze(labels, "it is no layer's output")
        parts.append(labels)
    result[axis] = np.concatenate(parts)
    return [result]


def _reshape(tracked: Tracked, node: NodeProto) -> Result:
    """`Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`: the same values in the same order."""
    source, made = node.input[0], node.output[0]
    axes = reshaped(tracked.of(source), tracked.shape(source), tracked.shape(made), tracked.labels, node.name)
    if node.op_type == "Reshape":
        target = tracked.weights.get(node.input[1])
        for index, labels in enumerate(axes):
            if labels is None:
                continue
            if target is None:
                tracked.labels.freeze(labels, f"Reshape {node.name!r} goes to a shape that is computed")
            elif target[index] > 0:
                tracked.targets.append((node.name, index, labels))
    return [axes]


def _gather(tracked: Tracked, node: NodeProto) -> Result:
    axes = tracked.of(node.input[0])
    axis = attribute(node, "axis", 0) % len(axes)
    tracked.labels.freeze(axes[axis], f"Gather {node.name!r} chooses from it")
    return [[*axes[:axis], *[None] * len(tracked.shape(node.input[1])), *axes[axis + 1 :]]]


def _shape(tracked: Tracked, node: NodeProto) -> Result:
    axes = tracked.of(node.input[0])
    first, last = attribute(node, "start", 0), attribute(node, "end", len(axes))
    tracked.labels.freeze(axes[first:last], f"Shape {node.name!r} asks for its length")
    return [[None]]


def _partial(tracked: Tracked, node: NodeProto) -> Result:
    """Keep the labels of axes whose length stays; for nodes that then leave the order as it is."""
    axes, before = tracked.of(node.input[0]), tracked.shape(node.input[0])
    results: list[Axes] = []
    for name in node.output:
        after = tracked.shape(name)
        result = list(axes)
        for index, labels in enumerate(axes):
            if before[index] != after[index]:
                tracked.labels.freeze(labels, f"{node.op_type} {node.name!r} takes a part of it")
                result[index] = None
        results.append(result)
    return results


def _slice(tracked: Tracked, node: NodeProto) -> Result:
    steps = tracked.weights.get(node.input[4]) if len(node.input) > 4 else ()  # noqa: PLR2004
    return _partial(tracked, node) if steps is not None and all(step > 0 for step in steps) else None


def _pad(tracked: Tracked, node: NodeProto) -> Result:
    pads = tracked.weights.get(node.input[1]) if len(node.input) > 1 else None
    return _partial(tracked, node) if pads is not None and all(pad >= 0 for pad in pads) else None


def _resize(tracked: Tracked, node: NodeProto) -> Result:
    # a target size would have to change with the channels
    return _partial(tracked, node) if len(node.input) == 3 else None  # noqa: PLR2004


_RULES: dict[str, Callable[[Tracked, NodeProto], Result]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_ACROSS, _across),
    **dict.fromkeys(_REDUCES, _reduced),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "BatchNormalization": _normalised,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gather": _gather,
    "Gemm": _gemm,
    "InstanceNormalization": _normalised,
    "MatMul": _matmul,
    "Pad": _pad,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _partial,
    "Transpose": _transpose,
}
