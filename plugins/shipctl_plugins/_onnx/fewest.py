"""The search for the fewest layers that have to be kept, when asking costs an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Drop = Callable[[frozenset[str]], float]
"""How much is lost with these layers kept. May raise :class:`OutOfEvaluationsError`."""


class OutOfEvaluationsError(Exception):
    """There may be no further evaluation."""


def fewest(ranking: Sequence[str], most: int, drop: Drop, budget: float) -> frozenset[str] | None:
    """Return as few layers of ``ranking`` (the most harmful first) as it takes; None if none were found.

    First the 1, 2, 4, … most harmful are tried until the budget holds, then a binary search between the last two
    counts. Where not even ``most`` do, the ranking is made anew from what each layer costs when it alone is not kept,
    and tried once more. Then what can be left out again is: halves, quarters, …, single layers, the least harmful
    first (the minimisation of delta debugging, Zeller and Hildebrandt 2002). With evaluations enough, no layer of
    the result can be left out alone; when they run out it is the smallest set that was found to hold.
    """
    search = _Search(drop, budget, most)
    try:
        kept = search.shrink(ranking, most)
        if not kept and most:
            every = frozenset(ranking)
            kept = search.shrink(sorted(ranking, key=lambda name: -search.drop(every - {name})), most)
        size = len(kept) // 2
        while size:
            kept, less = search.without(kept, size)
            size = min(size, len(kept) // 2) if less else size // 2
    except OutOfEvaluationsError:
        pass
    return search.best


class _Search:
    def __init__(self, drop: Drop, budget: float, most: int) -> None:
        self._drop, self._budget, self._most = drop, budget, most
        self._known: dict[frozenset[str], float] = {}
        self.best: frozenset[str] | None = None

    def drop(self, kept: frozenset[str]) -> float:
        """Return what is lost with these kept; each set is asked for once."""
        if kept not in self._known:
            self._known[kept] = self._drop(kept)
            fewer = len(kept) <= self._most if self.best is None else len(kept) < len(self.best)
            if fewer and self._known[kept] <= self._budget:
                self.best = kept
        return self._known[kept]

    def holds(self, kept: Sequence[str]) -> bool:
        """Whether the budget holds with these kept."""
        return self.drop(frozenset(kept)) <= self._budget

    def shrink(self, ranking: Sequence[str], most: int) -> list[str]:
        """Return the shortest beginning of ``ranking`` that holds, as far as doubling and halving find it."""
        low, high = 0, min(1, most)
        while high and not self.holds(ranking[:high]):
            low, high = high, min(2 * high, most)
            if low == high:
                return []
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.holds(ranking[:middle]) else (middle, high)
        return list(ranking[:high])

    def without(self, kept: list[str], size: int) -> tuple[list[str], bool]:
        """Leave out parts of ``size`` layers, from the end on; return what is left, and whether it is less."""
        less, end = False, len(kept)
        while end > 0:
            start = max(0, end - size)
            rest = kept[:start] + kept[end:]
            if rest and self.holds(rest):
                kept, less = rest, True
            end = start
        return kept, less
