"""Labels of channels through a reshape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shipctl_plugins.optimize._prune_labels import Axes, Labels

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def reshaped(axes: Axes, before: Sequence[int], after: Sequence[int], labels: Labels, node: str) -> Axes:
    """Return the axes of a tensor of shape ``after`` that has the values of one of shape ``before``.

    Axes that are merged into one hand their labels on (a channel of 2 by 2 places is four entries); an axis that
    is split, and a merge of two labelled axes, are left alone.
    """
    result: Axes = [None] * len(after)
    for sources, targets in blocks(before, after):
        labelled = [index for index in sources if axes[index] is not None and before[index] > 1]
        wide = [index for index in targets if after[index] > 1]
        if len(labelled) == 1 and len(wide) == 1:
            result[wide[0]] = _merged(axes[labelled[0]], labelled[0], sources, before)
            continue
        for index in labelled:
            labels.freeze(axes[index], f"Reshape {node!r} splits it or merges it with others")
    return result


def _merged(labels: Array | None, axis: int, sources: Sequence[int], before: Sequence[int]) -> Array:
    """Return the label of every entry of the axis that ``sources`` become, of which one is labelled."""
    import numpy as np

    shape = [before[index] for index in sources]
    own = [size if index == axis else 1 for index, size in zip(sources, shape, strict=True)]
    return np.broadcast_to(np.asarray(labels).reshape(own), shape).reshape(-1)


def blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of axes, before and after, that hold the same values.

    Axes of size 1 go with the run before them. There is one run with everything where the sizes are zero.
    """
    if 0 in before or 0 in after:
        yield list(range(len(before))), list(range(len(after)))
        return
    first = second = 0
    while first < len(before) or second < len(after):
        sources, targets = [first] if first < len(before) else [], [second] if second < len(after) else []
        first, second = first + len(sources), second + len(targets)
        while _size(before, sources) != _size(after, targets):
            if _size(before, sources) < _size(after, targets):
                sources.append(first)
                first += 1
            else:
                targets.append(second)
                second += 1
        while first < len(before) and before[first] == 1:
            sources.append(first)
            first += 1
        while second < len(after) and after[second] == 1:
            targets.append(second)
            second += 1
        yield sources, targets


def _size(shape: Sequence[int], indices: Sequence[int]) -> int:
    return math.prod(shape[index] for index in indices)
