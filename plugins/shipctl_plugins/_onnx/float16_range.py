"""Which nodes of a graph float16 cannot carry: magnitudes from 6·10⁻⁵ to 65504, eleven bits.

The limits are those of IEEE 754 binary16: largest finite number 65504, smallest normal one 2⁻¹⁴, and below that
ever fewer bits down to 2⁻²⁴.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.activations import Observed, largest_of
from shipctl_plugins._onnx.narrowing import rounded
from shipctl_plugins._onnx.plain_graphs import weights_of

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
LOST = 2.0**-8
"""Normwise error of a rounded weight above which small values were lost; ordinary rounding stays below 2⁻¹¹."""
_SUMS = {"GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"}
"""Operators that add up, and may do so in float16, more than their result shows."""
_SQUARES = {"GlobalLpPool", "ReduceL2", "ReduceSumSquare"}


def unsafe_nodes(model: ModelProto, seen: Mapping[str, Observed], margin: float) -> dict[str, str]:
    """Return names of nodes that have to stay in float32, each with the reason.

    ``seen`` are the activations (see `observe`); ``margin`` is the part of float16's range that may be used.
    """
    limit = LARGEST * margin
    weights: dict[str, str] = {}
    for name, array in weights_of(model.graph).items():
        fault = _weight_fault(array, limit)
        if fault:
            weights[name] = f"weight {name!r} {fault}"
    found: dict[str, str] = {}
    for node in model.graph.node:
        reason = next((weights[name] for name in node.input if name in weights), None)
        reason = reason or _activation_fault(node, seen, limit) or _sum_fault(node, seen, limit)
        if reason:
            found[node.name] = reason
    return found


def _weight_fault(array: Array, limit: float) -> str | None:
    import numpy as np

    largest = largest_of(array) if array.dtype == np.float32 else 0.0
    if not largest:
        return None
    if largest > limit:
        return f"reaches {largest:.3g}"
    values = np.where(np.isfinite(array), array, 0).astype(np.float64)
    lost = np.linalg.norm(values - rounded(values.astype(np.float32), "float16").astype(np.float64))
    share = float(lost / np.linalg.norm(values))
    return f"is too small: {share:.1%} of it is lost" if share > LOST else None


def _activation_fault(node: NodeProto, seen: Mapping[str, Observed], limit: float) -> str | None:
    for kind, names in (("output", node.output), ("input", node.input)):
        for name in names:
            observed = seen.get(name)
            if observed is None or observed.dtype != "float32" or not observed.largest:
                continue
            if observed.largest > limit:
                return f"{kind} {name!r} reaches {observed.largest:.3g}"
            if observed.largest < SMALLEST_NORMAL:
                return f"{kind} {name!r} is at most {observed.largest:.3g}"
    return None


def _sum_fault(node: NodeProto, seen: Mapping[str, Observed], limit: float) -> str | None:
    """Bound a sum by its number of terms times the largest; nobody says that it is kept in float32."""
    if node.op_type not in _SUMS | _SQUARES or node.input[0] not in seen or node.output[0] not in seen:
        return None
    source, result = seen[node.input[0]], seen[node.output[0]]
    term = source.largest**2 if node.op_type in _SQUARES else source.largest
    bound = term * source.size / max(result.size, 1)
    return f"sums may reach {bound:.3g}" if bound > limit else None
