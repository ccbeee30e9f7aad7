"""Which places along the axes of weights and activations have to be cut together.

Every place along an axis of a weight gets a label. Operators pass labels on, and say which ones belong together:
the input channels of a convolution to the channels that arrive, the two sides of an addition to each other. Labels
that belong together are one class, and a class is cut everywhere or nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

Axes = list["Array | None"]
"""Per axis of a tensor the labels of its places, None where nothing is ever cut."""


class Labels:
    """All labels, what belongs together, and what must not be cut."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[tuple[Array, Array]] = []
        self._frozen: list[tuple[Array, str]] = []

    def fresh(self, size: int) -> Array:
        """Return labels (int64 ``[size]``) that nothing else has."""
        import numpy as np

        self.count += size
        return np.arange(self.count - size, self.count)

    def fresh_axes(self, shape: Sequence[int]) -> Axes:
        """Return fresh labels for every axis of a weight."""
        return [self.fresh(size) for size in shape]

    def freeze(self, axes: Array | Axes | None, why: str) -> None:
        """Forbid cutting; ``why`` ends the sentence `it is left alone because …`."""
        for labels in axes if isinstance(axes, list) else [axes]:
            if labels is not None and len(labels):
                self._frozen.append((labels, why))

    def join(self, first: Array | None, second: Array | None, why: str) -> Array | None:
        """Let the places of two axes belong together, one by one; ``why`` is said where one is unknown."""
        if first is None or second is None or len(first) != len(second):
            self.freeze([first, second], why)
            return None
        self._pairs.append((first, second))
        return first

    def resolve(self) -> tuple[Array, dict[int, str]]:
        """Return the class of every label (int64 ``[count]``, the smallest label in it), and the frozen classes.

        Each frozen class comes with the first reason given.
        """
        import numpy as np

        classes = np.arange(self.count)
        if self._pairs:
            left = np.concatenate([pair[0] for pair in self._pairs])
            right = np.concatenate([pair[1] for pair in self._pairs])
            while True:
                smaller = np.minimum(classes[left], classes[right])
                after = classes.copy()
                # not only the labels themselves but what they stand for, or long chains would take as many rounds
                for side in (left, right):
                    np.minimum.at(after, classes[side], smaller)
                    np.minimum.at(after, side, smaller)
                after = after[after]
                if (after == classes).all():
                    break
                classes = after
        frozen: dict[int, str] = {}
        for labels, why in self._frozen:
            for number in np.unique(classes[labels]).tolist():
                frozen.setdefault(number, why)
        return classes, frozen
