"""After channels were taken out: the layers that read the others are fitted to what the model answered before.

Least squares per layer on real samples, front to back, each on what arrives at it in the pruned graph (He et al.
2017, Channel Pruning for Accelerating Very Deep Neural Networks, the reconstruction step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.activations import tensors_of
from shipctl_plugins._onnx.plain_graphs import attribute, weights_of
from shipctl_plugins.optimize._prune_channels import Cut
from shipctl_plugins.optimize._prune_rules import Producer, Tracked

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]

MOST_COLUMNS = 4608
"""Inputs of a sum up to which a layer is fitted: the normal equations have their square (512 channels, 3 by 3)."""
ROWS = 4096
"""Places of one batch that are looked at, at most."""
RIDGE = 1e-3
"""How much a fitted weight is held to what it was, in parts of the mean square of its inputs."""

Feeds = Callable[[], Iterable[Mapping[str, "Array"]]]


@dataclass(frozen=True)
class _Layer:
    node: NodeProto
    producer: Producer
    bias: str | None
    """Its bias, if that is its alone."""


def fit(tracked: Tracked, cut: Cut, feeds: Feeds, scratch: Path, *, seed: int, threads: int) -> list[str]:
    """Fit the weights of ``cut.model`` in place and return the names of the layers that were.

    :raises StageError: if one of the graphs does not run
    """
    import numpy as np

    fitted: list[str] = []
    for layer in _layers(tracked, cut):
        arriving, wanted = layer.node.input[0], layer.node.output[0]
        before = tensors_of(tracked.model, feeds(), scratch / "before", names=[wanted], threads=threads)
        after = tensors_of(cut.model, feeds(), scratch / "after", names=[arriving], threads=threads)
        pairs = ((new[arriving], old[wanted]) for old, new in zip(before, after, strict=True))
        _refit(cut, layer, pairs, np.random.default_rng([seed, len(fitted)]))
        fitted.append(layer.node.name)
    return fitted


def _layers(tracked: Tracked, cut: Cut) -> Iterator[_Layer]:
    """Yield the layers that lost inputs and that this can fit."""
    uses: dict[str, int] = {}
    for node in cut.model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    producers = {producer.node: producer for producer in tracked.producers}
    for node in cut.model.graph.node:
        producer = producers.get(node.name)
        if producer is None or uses[producer.weight] > 1 or not _fittable(node):
            continue
        shape = tracked.weights[producer.weight].shape
        if len(cut.kept[producer.weight][producer.reduction]) == shape[producer.reduction]:
            continue
        kernel = 1
        for axis, size in enumerate(shape):
            kernel *= size if axis not in {producer.axis, producer.reduction} else 1
        if kernel * len(cut.kept[producer.weight][producer.reduction]) > MOST_COLUMNS:
            continue
        bias = node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004
        yield _Layer(node, producer, bias if bias and uses[bias] == 1 and bias in tracked.weights else None)


def _fittable(node: NodeProto) -> bool:
    if node.op_type == "Conv":
        return attribute(node, "auto_pad", b"NOTSET") in {b"NOTSET", b"VALID"}
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and plain)


def _refit(cut: Cut, layer: _Layer, pairs: Iterable[tuple[Array, Array]], rng: np.random.Generator) -> None:
    """Put new values into the weight of a layer (and its bias)."""
    import numpy as np

    node, producer = layer.node, layer.producer
    weights = weights_of(cut.model.graph)
    weight = weights[producer.weight]
    # [inputs, outputs]; a bias is one more input, which is always 1
    current = _as_matrix(node, weight).astype(np.float64)
    bias = weights[node.input[2]] if len(node.input) > 2 and node.input[2] else None  # noqa: PLR2004
    if layer.bias is not None and bias is not None:
        current = np.vstack([current, np.broadcast_to(bias, current.shape[1])])
    places = cut.kept[producer.weight][producer.axis]
    gram = np.zeros((len(current), len(current)))
    moment = np.zeros(current.shape)
    for arriving, wanted in pairs:
        columns, answers = _columns(node, arriving, weight.shape), _answers(node, wanted)[:, places]
        if len(columns) > ROWS:
            chosen = rng.choice(len(columns), ROWS, replace=False)
            columns, answers = columns[chosen], answers[chosen]
        if layer.bias is not None:
            columns = np.hstack([columns, np.ones((len(columns), 1))])
        elif bias is not None:
            answers = answers - bias
        gram += columns.T @ columns
        moment += columns.T @ (answers - columns @ current)
    hold = RIDGE * float(np.trace(gram)) / len(gram)
    if hold:
        current = current + np.linalg.solve(gram + hold * np.eye(len(gram)), moment)
    if layer.bias is not None and bias is not None:
        _put(cut.model, layer.bias, current[-1].reshape(bias.shape))
        current = current[:-1]
    _put(cut.model, producer.weight, _from_matrix(node, current, weight.shape))


def _put(model: ModelProto, name: str, array: Array) -> None:
    import numpy as np
    from onnx import numpy_helper

    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))


def _as_matrix(node: NodeProto, weight: Array) -> Array:
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1).T
    return weight.T if attribute(node, "transB", 0) else weight


def _from_matrix(node: NodeProto, matrix: Array, shape: tuple[int, ...]) -> Array:
    turned = node.op_type == "Conv" or attribute(node, "transB", 0)
    return (matrix.T if turned else matrix).reshape(shape)


def _answers(node: NodeProto, tensor: Array) -> Array:
    """Return the outputs of a layer as float64 ``[places, outputs]``."""
    import numpy as np

    last = np.moveaxis(tensor, 1, -1) if node.op_type == "Conv" else tensor
    return last.reshape(-1, last.shape[-1]).astype(np.float64)


def _columns(node: NodeProto, tensor: Array, shape: tuple[int, ...]) -> Array:
    """Return what a layer sums up, as float64 ``[places, inputs]``: for a convolution the patches under its kernel."""
    import numpy as np

    if node.op_type != "Conv":
        return tensor.reshape(-1, tensor.shape[-1]).astype(np.float64)
    kernel = shape[2:]
    rank = len(kernel)
    pads = attribute(node, "pads", [0] * 2 * rank)
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    padded = np.pad(tensor, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    windows = windows[(slice(None), slice(None), *steps)]
    # [batch, channels, *places, *kernel] to [batch, *places, channels, *kernel]
    patches = np.moveaxis(windows, 1, 1 + rank)
    return patches.reshape(-1, shape[1] * int(np.prod(kernel))).astype(np.float64)
