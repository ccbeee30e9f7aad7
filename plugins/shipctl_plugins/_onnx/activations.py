"""What goes through a graph: dtype, shape and magnitude of every tensor while a model answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl_plugins._onnx.graph import MODEL_FILE, save_model
from shipctl_plugins._onnx.plain_graphs import captured, replace_nodes
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Observed:
    """What was seen of one tensor."""

    dtype: str
    """By its numpy name."""
    shape: tuple[int, ...]
    """In the first run."""
    largest: float
    """Largest finite magnitude in all runs; 0 for integers and texts."""

    @property
    def size(self) -> int:
        """How many elements it has in the first run."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def tensors_of(
    model: ModelProto,
    feeds: Iterable[Mapping[str, Array]],
    scratch: Path,
    *,
    names: Iterable[str] | None = None,
    threads: int = 1,
) -> Iterator[dict[str, Array]]:
    """Yield, per feed, tensors of the graph by name: ``names``, or the inputs and all that nodes make.

    For all the model runs unoptimised, so that there is every one; for some only what they need runs. Values
    that are no arrays (sequences) are left out.

    :raises StageError: if it does not run
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    if names is not None:
        wanted = list(names)
        _cut_after(graph, wanted)
        del graph.output[:]
    else:
        there = {value.name for value in graph.output}
        wanted = [name for node in graph.node for name in node.output if name and name not in there]
    # ONNX Runtime finds the types by itself
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    path = save_model(twin, scratch) / MODEL_FILE
    session = open_session(path, threads=threads, optimize=names is not None)
    taken = {value.name for value in session.get_inputs()}
    for feed in feeds:
        found = run_session(session, {name: array for name, array in feed.items() if name in taken})
        if names is None:
            found = dict(feed) | found
        yield {name: array for name, array in found.items() if hasattr(array, "dtype")}


def _cut_after(graph: GraphProto, names: Iterable[str]) -> None:
    """Leave only the nodes that ``names`` depend on."""
    needed = set(names)
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input, captured(node))
            kept.append(node)
    replace_nodes(graph, kept[::-1])


def observe(
    model: ModelProto, feeds: Iterable[Mapping[str, Array]], scratch: Path, *, threads: int = 1
) -> dict[str, Observed]:
    """Return what was seen of every input and every tensor inside of the graph, by name.

    :raises StageError: if the model does not run
    """
    seen: dict[str, Observed] = {}
    for tensors in tensors_of(model, feeds, scratch, threads=threads):
        for name, array in tensors.items():
            largest = largest_of(array)
            before = seen.get(name)
            if before is None:
                seen[name] = Observed(str(array.dtype), array.shape, largest)
            elif largest > before.largest:
                seen[name] = Observed(before.dtype, before.shape, largest)
    return seen


def largest_of(array: Array) -> float:
    """Return the largest finite magnitude of an array of floats; 0 for one of anything else, or an empty one."""
    import numpy as np

    if array.dtype.kind != "f" or not array.size:
        return 0.0
    sizes = np.abs(array)
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes)))
