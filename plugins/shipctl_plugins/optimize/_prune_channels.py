"""Structured pruning: channels are taken out of a graph with everything that depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from shipctl.errors import StageError
from shipctl_plugins.optimize._prune_rules import Producer, Tracked

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto

    Array = np.ndarray[Any, np.dtype[Any]]

Norm = Literal["l1", "l2"]
Ratio = Callable[[str], float | None]
"""Returns the fraction to take out of the layer of a name, None for one that is left alone."""


@dataclass
class Group:
    """Layers whose output channels are cut together, such as the two sides of a residual addition."""

    producers: list[Producer]
    classes: Array
    """Their channels as classes of labels that may be cut, in order."""
    total: int
    """How many channels they have, those included that may not."""
    why: str = ""
    """Why some may not be cut."""


@dataclass
class Cut:
    """A graph with channels taken out."""

    model: ModelProto
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Per layer: channels before and after, and why they stayed."""
    removed: int = 0
    """Channels taken out, of all layers."""
    kept: dict[str, list[Array]] = field(default_factory=dict)
    """Per weight and axis, the places that are still there."""


def cut_channels(tracked: Tracked, ratio: Ratio, norm: Norm, multiple_of: int) -> Cut:
    """Take the least important channels out of every layer.

    The importance of a channel is the norm of its weights, times what a batch normalisation right after makes of
    it, relative to the layer's mean; where layers are cut together, the sum over them (Li et al. 2017; groups as
    in DepGraph, Fang et al. 2023).

    :raises StageError: if layers that are cut together were given different ratios
    """
    import numpy as np

    classes, frozen = tracked.labels.resolve()
    gone = np.zeros(tracked.labels.count, bool)
    importance = _importance(tracked, classes, norm)
    groups = _groups(tracked, classes, frozen)
    for group in groups:
        chosen = _ratio_of(group, ratio)
        if chosen is not None:
            count = _count(len(group.classes), group.total, chosen, multiple_of)
            gone[_least(tracked, classes, group, importance, count)] = True
    cut = _apply(tracked, ~gone[classes])
    for group in groups:
        cut.rows += [_row(tracked, cut, producer, group, ratio) for producer in group.producers]
    order = {node.name: index for index, node in enumerate(tracked.model.graph.node)}
    cut.rows.sort(key=lambda row: order[row["layer"]])
    cut.removed = sum(row["before"] - row["after"] for row in cut.rows)
    return cut


def _groups(tracked: Tracked, classes: Array, frozen: Mapping[int, str]) -> list[Group]:
    """Return the layers, together where they share a channel."""
    import numpy as np

    members: list[tuple[list[Producer], set[int]]] = []
    for producer in tracked.producers:
        own = set(classes[_rows(tracked, producer)].tolist())
        together, rest = [producer], []
        for others, theirs in members:
            if own & theirs:
                together = others + together
                own |= theirs
            else:
                rest.append((others, theirs))
        members = [*rest, (together, own)]
    groups = []
    for producers, own in members:
        free = sorted(own.difference(frozen))
        why = next((frozen[number] for number in sorted(own) if number in frozen), "")
        groups.append(Group(producers, np.array(free, dtype=np.int64), len(own), why))
    return groups


def _rows(tracked: Tracked, producer: Producer) -> Array:
    labels = tracked.of(producer.weight)[producer.axis]
    assert labels is not None  # noqa: S101  weights have labels on every axis
    return labels


def _ratio_of(group: Group, ratio: Ratio) -> float | None:
    given = {producer.node: ratio(producer.node) for producer in group.producers}
    if len(set(given.values())) > 1:
        shown = ", ".join(
            f"{name}: {value if value is not None else 'left alone'}" for name, value in given.items()
        )
        message = (
            f"these layers are added up, so they lose the same channels; give them the same ratio ({shown})"
        )
        raise StageError(message)
    return next(iter(given.values()))


def _count(free: int, total: int, ratio: float, multiple_of: int) -> int:
    """Return how many of ``free`` channels go, so that a multiple of ``multiple_of`` is left of all."""
    left = total - int(ratio * free)
    left = -(-left // multiple_of) * multiple_of
    return max(total - left, 0)


def _importance(tracked: Tracked, classes: Array, norm: Norm) -> Array:
    """Return the importance per class (float64, indexed by the class's label)."""
    import numpy as np

    factors = np.ones(tracked.labels.count)
    for labels, scale in tracked.scales:
        factors[labels] *= scale
    importance = np.zeros(tracked.labels.count)
    for producer in tracked.producers:
        array = np.moveaxis(tracked.weights[producer.weight], producer.axis, 0).astype(np.float64)
        flat = array.reshape(len(array), -1)
        sizes = np.abs(flat).sum(1) if norm == "l1" else np.linalg.norm(flat, axis=1)
        labels = _rows(tracked, producer)
        sizes *= factors[labels]
        mean = float(sizes.mean())
        np.add.at(importance, classes[labels], sizes / mean if mean else sizes)
    return importance


def _least(tracked: Tracked, classes: Array, group: Group, importance: Array, count: int) -> list[int]:
    """Return the ``count`` least important classes, fewer where a layer would lose all of its channels."""
    import numpy as np

    left = {
        producer.weight: dict(
            zip(*np.unique(classes[_rows(tracked, producer)], return_counts=True), strict=True)
        )
        for producer in group.producers
    }
    remaining = {name: sum(int(number) for number in counts.values()) for name, counts in left.items()}
    chosen: list[int] = []
    for number in group.classes[np.argsort(importance[group.classes], kind="stable")].tolist():
        if len(chosen) == count:
            break
        losses = {name: int(counts.get(number, 0)) for name, counts in left.items()}
        if any(loss and remaining[name] <= loss for name, loss in losses.items()):
            continue
        for name, loss in losses.items():
            remaining[name] -= loss
        chosen.append(number)
    return chosen


def _apply(tracked: Tracked, stays: Array) -> Cut:
    """Cut every weight along every axis, and what the graph says about lengths."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    cut = Cut(onnx.ModelProto())
    cut.model.CopyFrom(tracked.model)
    graph = cut.model.graph
    for tensor in graph.initializer:
        axes = tracked.of(tensor.name)
        kept = [np.flatnonzero(stays[labels]) for labels in axes if labels is not None]
        if any(
            len(places) < len(labels) for places, labels in zip(kept, axes, strict=True) if labels is not None
        ):
            array = tracked.weights[tensor.name]
            for axis, places in enumerate(kept):
                array = np.take(array, places, axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        cut.kept[tensor.name] = kept
    by_name = {node.name: node for node in graph.node}
    for name, labels in tracked.groups:
        next(entry for entry in by_name[name].attribute if entry.name == "group").i = int(stays[labels].sum())
    for name in dict.fromkeys(name for name, _, _ in tracked.targets):
        changes = {place: int(stays[labels].sum()) for node, place, labels in tracked.targets if node == name}
        _retarget(graph, by_name[name], changes, tracked.weights)
    return cut


def _retarget(graph: GraphProto, node: Any, changes: Mapping[int, int], weights: Mapping[str, Array]) -> None:
    """Give a reshape a target of its own, since others may have the same one."""
    from onnx import numpy_helper

    target = weights[node.input[1]].copy()
    for place, size in changes.items():
        target[place] = size
    if (target != weights[node.input[1]]).any():
        node.input[1] = f"{node.input[1]}/{node.name}"
        graph.initializer.append(numpy_helper.from_array(target, node.input[1]))


def _row(tracked: Tracked, cut: Cut, producer: Producer, group: Group, ratio: Ratio) -> dict[str, Any]:
    before = len(_rows(tracked, producer))
    after = len(cut.kept[producer.weight][producer.axis])
    why = ""
    if before == after:
        if ratio(producer.node) is None:
            why = "it was not asked for"
        else:
            why = group.why or "the ratio takes less than one channel, or than multiple_of asks for"
    return {"layer": producer.node, "before": before, "after": after, "why": why}


def matching(patterns: Mapping[str, float], default: float | None, exclude: Sequence[str]) -> Ratio:
    """Return a ratio per layer: that of the first pattern (as in a shell) that fits its name, else ``default``."""

    def ratio(name: str) -> float | None:
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            return None
        return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), default)

    return ratio


def unused(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the patterns that fit no name."""
    return [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
