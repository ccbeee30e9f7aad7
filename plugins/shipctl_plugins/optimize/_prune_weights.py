"""Unstructured pruning: single weights become zero, the shapes stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.plain_graphs import attribute
from shipctl_plugins.optimize._prune_channels import Ratio

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]

GROUP, KEPT = 4, 2
"""Of four neighbours along the reduction two stay: what sparse tensor cores take."""


def smallest_per_layer(
    weights: Mapping[str, Array], layers: Mapping[str, str], ratio: Ratio
) -> dict[str, Array]:
    """Return the weights with the smallest magnitudes of each set to zero; ``layers`` says whose they are."""
    pruned: dict[str, Array] = {}
    for name, layer in layers.items():
        share = ratio(layer)
        if share is not None:
            pruned[name] = _without_smallest(weights[name], int(share * weights[name].size))
    return pruned


def smallest_of_all(
    weights: Mapping[str, Array], layers: Mapping[str, str], share: float
) -> dict[str, Array]:
    """Return the weights with the smallest magnitudes of all together set to zero."""
    import numpy as np

    if not layers:
        return {}
    together = np.concatenate([weights[name].reshape(-1) for name in layers])
    left = _without_smallest(together, int(share * together.size))
    pruned: dict[str, Array] = {}
    start = 0
    for name in layers:
        array = weights[name]
        pruned[name] = left[start : start + array.size].reshape(array.shape)
        start += array.size
    return pruned


def _without_smallest(array: Array, count: int) -> Array:
    import numpy as np

    flat = array.reshape(-1).copy()
    # of equals the first ones, so that the same weights always give the same bytes
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0
    return flat.reshape(array.shape)


def two_of_four(array: Array, axis: int) -> Array | None:
    """Return a weight with the two smallest of every four neighbours along ``axis`` set to zero.

    None where its length is no multiple of four, which sparse tensor cores do not take.
    """
    import numpy as np

    moved = np.moveaxis(array, axis, -1)
    if moved.shape[-1] % GROUP:
        return None
    fours = np.ascontiguousarray(moved).reshape(-1, GROUP).copy()
    order = np.argsort(np.abs(fours), axis=1, kind="stable")
    np.put_along_axis(fours, order[:, : GROUP - KEPT], 0, axis=1)
    return np.ascontiguousarray(np.moveaxis(fours.reshape(moved.shape), -1, axis))


def is_two_of_four(array: Array, axis: int) -> bool:
    """Whether of every four neighbours along ``axis`` at most two are not zero."""
    import numpy as np

    moved = np.moveaxis(array, axis, -1)
    if moved.shape[-1] % GROUP:
        return False
    return bool((np.count_nonzero(moved.reshape(-1, GROUP), axis=1) <= KEPT).all())


def reduction_axis(node: NodeProto) -> int | None:
    """Return the axis of a layer's weight that is summed over, None where tensor cores do not take the layer.

    For a convolution it is the input channels: TensorRT asks for the pattern at every place of the kernel.
    """
    if node.op_type == "Conv":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return -2 if node.op_type == "MatMul" else None
