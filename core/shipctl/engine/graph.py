"""The graph of a spec: its nodes, a stage with one choice of its matrix each, and what feeds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from shipctl.records import digest_of
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import ReleaseStage, Stage
from shipctl.stages.registry import StageClass

if TYPE_CHECKING:
    from shipctl.spec import StageSpec

Axis = tuple[str, str]
"""A stage's id and the name of one of its matrix axes."""


class Origin(NamedTuple):
    """Where an artifact is made: a node's output, or (with node "") what the spec brings."""

    node: str
    port: str

    def __str__(self) -> str:
        return f"{self.node}.{self.port}" if self.node else self.port


@dataclass
class Node:
    """A stage with one choice of its matrix and its inputs bound."""

    id: str
    index: int
    spec: StageSpec
    cls: StageClass
    variant: dict[Axis, Any]
    bindings: dict[str, tuple[Origin, ...]]
    needs: dict[str, None] = field(default_factory=dict)
    """Nodes that it waits for, in order."""

    @property
    def folder(self) -> str:
        """Name of the folder for its files below that of a run; no other node of the spec has it."""
        return f"{self.spec.id}-{digest_of(self.id)[:8]}"

    @property
    def is_release(self) -> bool:
        """Whether it changes a system outside."""
        return issubclass(self.cls, ReleaseStage)

    @property
    def subject(self) -> Origin | None:
        """For a check, what it looks at."""
        name = self.cls.subject if issubclass(self.cls, Stage) else None
        return self.bindings[name][0] if name is not None and self.bindings.get(name) else None

    @property
    def kind(self) -> str:
        """`release`, `check` or `transform`."""
        if self.is_release:
            return "release"
        return "check" if issubclass(self.cls, Stage) and self.cls.subject is not None else "transform"

    @property
    def matrix(self) -> dict[str, Any]:
        """Axis to value, the node's own axes before those it inherits."""
        own = {axis: value for (stage, axis), value in self.variant.items() if stage == self.spec.id}
        return {axis: value for (_, axis), value in self.variant.items()} | own


@dataclass
class Graph:
    """All nodes in an order in which they can run."""

    nodes: dict[str, Node]
    kinds: dict[Origin, type[Artifact]]

    def lineage(self, origins: Iterator[Origin] | tuple[Origin, ...]) -> set[Origin]:
        """Return the origins and everything that they may be made from."""
        found: set[Origin] = set()
        waiting = list(origins)
        while waiting:
            origin = waiting.pop()
            if origin in found:
                continue
            found.add(origin)
            if origin.node:
                for bound in self.nodes[origin.node].bindings.values():
                    waiting.extend(bound)
        return found

    def checks_of(self, origin: Origin) -> list[Node]:
        """Return the checks whose subject that is."""
        return [node for node in self.nodes.values() if node.subject == origin]


def ancestors(graph: Graph, node: Node) -> set[str]:
    """Return the ids of all nodes that a node waits for, directly or not."""
    found: set[str] = set()
    waiting = list(node.needs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph.nodes[name].needs)
    return found
