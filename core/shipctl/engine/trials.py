"""What is not tried: candidates beyond the number that a stage takes of a list, and what is only for their sake.

It is decided when the plan is made, from the options alone, so that the plan shows it, a plan file pins it, and every
run of the spec leaves out the same. (A limit in time could not do that: a second run would find the first candidates
in the store and go on to others, and might ship another model.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shipctl.engine.graph import Graph, Node, Origin
from shipctl.engine.options import PlannedOptions
from shipctl.stages.base import Stage

NOT_TRIED = "not tried: "
"""How the message of a node begins that is left out."""


def left_out(graph: Graph, options: Mapping[str, PlannedOptions]) -> dict[str, str]:
    """Return the nodes that are not to run, and why, by id."""
    found: dict[str, str] = {}
    for node in graph.nodes.values():
        value = options[node.id].value
        if not issubclass(node.cls, Stage) or value is None:
            continue
        for port, limit in node.cls(value).limits().items():
            bound = node.bindings.get(port, ())
            surplus = bound[limit:]
            why = f"{NOT_TRIED}{node.id} takes {limit} of {len(bound)} candidates"
            found.update(dict.fromkeys(_only_for(graph, node, surplus, bound[:limit]), why))
    return found


def _only_for(graph: Graph, taker: Node, surplus: Iterable[Origin], kept: Iterable[Origin]) -> list[str]:
    """Return the nodes that make the surplus, or look at it, and that nothing else needs."""
    dependents: dict[str, set[str]] = {name: set() for name in graph.nodes}
    for node in graph.nodes.values():
        for need in node.needs:
            if need in dependents:
                dependents[need].add(node.id)
    surplus = set(surplus)
    made_by = {origin.node for origin in surplus if origin.node} - {origin.node for origin in kept}
    checks = {check.id for origin in surplus for check in graph.checks_of(origin)}
    out = made_by | checks
    while True:
        before = set(out)
        out = {
            name for name in out if all(_may_miss(graph, taker, name, user, out) for user in dependents[name])
        }
        out |= {
            need
            for name in out
            for need in graph.nodes[name].needs
            if need not in before and dependents[need] <= out and need in graph.nodes
        }
        if out == before:
            return [name for name in graph.nodes if name in out]


def _may_miss(graph: Graph, taker: Node, name: str, user: str, out: set[str]) -> bool:
    """Whether a node that needs another one can do without it."""
    node = graph.nodes[user]
    if user in out or user == taker.id:
        return True
    # a release waits for the gates of what it may be made from, and heeds those of what was selected
    feeds = {origin.node for bound in node.bindings.values() for origin in bound}
    return node.is_release and name not in feeds and graph.nodes[name].subject is not None
