"""From stages to nodes: a node per matrix variant.

A single input fed by a matrix multiplies the node; a list takes all variants. What feeds an input: see
:mod:`shipctl.engine.matching`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from shipctl.engine.graph import Axis, Graph, Node, Origin, ancestors
from shipctl.engine.matching import Matcher, Offer
from shipctl.engine.ports import Port, input_ports, output_ports
from shipctl.errors import SpecError
from shipctl.spec import evaluate, has_expression, near, stage_dependencies
from shipctl.stages.artifacts import Artifact
from shipctl.stages.registry import Registry, StageClass

if TYPE_CHECKING:
    from shipctl.spec import LoadedSpec, Problems, StageSpec


class GraphBuilder:
    """Builds the graph of a spec and collects what does not fit."""

    def __init__(
        self,
        loaded: LoadedSpec,
        registry: Registry,
        sources: Mapping[str, type[Artifact]],
        problems: Problems,
    ) -> None:
        self._loaded = loaded
        self._registry = registry
        self._problems = problems
        self._matcher = Matcher(loaded, sources, problems)
        self._by_stage, self._kinds = self._matcher.by_stage, self._matcher.kinds

    def build(self) -> Graph:
        """Return the graph; problems may have been added, and then it is not whole.

        :raises PluginError: if a plugin does not import
        """
        stages = self._loaded.spec.stages
        classes: dict[str, StageClass] = {}
        for index, stage in enumerate(stages):
            try:
                classes[stage.id] = self._registry.load(stage.uses)
            except SpecError as exc:
                self._problems.add(("stages", index, "uses"), str(exc))
        nodes: dict[str, Node] = {}
        for index, needs in _ordered(self._loaded):
            stage = stages[index]
            if stage.id not in classes or any(need not in self._by_stage for need in needs.all):
                continue  # said already, or a consequence of it
            made = list(self._nodes(index, stage, classes[stage.id], needs))
            self._by_stage[stage.id] = made
            nodes.update({node.id: node for node in made})
        graph = Graph(nodes, self._kinds)
        for node in nodes.values():
            if node.is_release:
                _wait_for_gates(graph, node)
        graph.nodes = {
            name: nodes[name] for name in _sorted({node.id: node.needs for node in nodes.values()})
        }
        return graph

    # -- one stage -----------------------------------------------------------------------------------------

    def _nodes(self, index: int, stage: StageSpec, cls: StageClass, needs: _Needs) -> Iterator[Node]:
        ports = input_ports(cls)
        where = ("stages", index)
        for name in stage.inputs:
            if name not in ports:
                hint = near(name, ports) or f"; it has {', '.join(ports) or 'none'}"
                self._problems.add(
                    (*where, "inputs", name), f"{stage.uses} has no input {name!r}{hint}", "key"
                )
        axes = [[(axis, value) for value in values] for axis, values in stage.matrix.items()]
        seen: set[str] = set()
        picked = {choice: self._picked(stage, dict(choice)) for choice in itertools.product(*axes)}
        anyone = frozenset[str]().union(*picked.values())
        for choice, chosen in picked.items():
            own = {(stage.id, axis): value for axis, value in choice}
            offers = {
                name: found
                for name, port in ports.items()
                if (found := self._matcher.offers(index, stage, port, needs.feeding, dict(choice)))
                is not None
            }
            if len(offers) < len(ports):
                return
            for node in self._combine(index, stage, cls, own, ports, offers):
                if node.id in seen:
                    continue
                seen.add(node.id)
                node.spec = self._labelled(node)
                many = any(port.many for port in ports.values())
                # what only other variants have chosen is no concern of this one: it may fail
                waits_for = [need for need in needs.all if need in chosen or need not in anyone]
                self._wait(node, waits_for, many=many)
                for name in output_ports(cls):
                    self._kinds[Origin(node.id, name)] = output_ports(cls)[name].kinds[0]
                yield node

    def _wait(self, node: Node, stages: Iterable[str], *, many: bool) -> None:
        """Let a node wait for the variants of these stages that agree with it (all for a list), and for its inputs."""
        for stage in stages:
            for needed in self._by_stage[stage]:
                if many or _agree(needed.variant, node.variant):
                    node.needs[needed.id] = None
        for bound in node.bindings.values():
            node.needs.update({origin.node: None for origin in bound if origin.node})

    def _picked(self, stage: StageSpec, matrix: Mapping[str, Any]) -> frozenset[str]:
        """Return the stages that `inputs` names in one choice of the matrix."""
        names: set[str] = set()
        for chosen in stage.inputs.values():
            for text in [chosen] if isinstance(chosen, str) else chosen:
                with suppress(SpecError):  # said where the input is matched
                    scope = {**self._loaded.scope(), "matrix": dict(matrix)}
                    name = str(evaluate(text, scope)) if has_expression(text) else text
                    names.add(name.partition(".")[0])
        return frozenset(names)

    def _labelled(self, node: Node) -> StageSpec:
        """Return the stage with the labels that this variant's machine must have."""
        stage, labels = node.spec, {}
        for name, text in stage.resources.labels.items():
            try:
                labels[name] = str(evaluate(text, {**self._loaded.scope(), "matrix": node.matrix}))
            except SpecError as exc:
                self._problems.add(("stages", node.index, "resources", "labels", name), str(exc))
        return stage.model_copy(update={"resources": stage.resources.model_copy(update={"labels": labels})})

    def _combine(
        self,
        index: int,
        stage: StageSpec,
        cls: StageClass,
        own: dict[Axis, Any],
        ports: Mapping[str, Port],
        offers: Mapping[str, list[Offer]],
    ) -> Iterator[Node]:
        single = [name for name, port in ports.items() if not port.many and offers[name]]
        for picked in itertools.product(*(offers[name] for name in single)):
            variant = dict(own)
            for offer in picked:
                inherited = offer.node.variant if offer.node is not None else {}
                if not _agree(inherited, variant):
                    break
                variant = variant | inherited
            else:
                bindings: dict[str, tuple[Origin, ...]] = {
                    name: (offer.origin,) for name, offer in zip(single, picked, strict=True)
                }
                for name, port in ports.items():
                    if port.many:
                        bindings[name] = tuple(dict.fromkeys(offer.origin for offer in offers[name]))
                    else:
                        bindings.setdefault(name, ())
                yield Node(_node_id(stage.id, variant), index, stage, cls, variant, bindings)


def _agree(one: Mapping[Axis, Any], other: Mapping[Axis, Any]) -> bool:
    return all(other.get(axis, value) == value for axis, value in one.items())


def _node_id(stage: str, variant: Mapping[Axis, Any]) -> str:
    if not variant:
        return stage
    names = [axis for _, axis in variant]
    parts = [
        f"{axis if names.count(axis) == 1 or owner == stage else f'{owner}.{axis}'}={value}"
        for (owner, axis), value in variant.items()
    ]
    return f"{stage}[{','.join(parts)}]"


class _Needs(NamedTuple):
    """The stages that one waits for, by id."""

    feeding: list[str]
    """Those of `needs`, or the one before it: its inputs are matched with what they offer."""
    all: list[str]
    """And those that it names in `inputs`, `with` or `when`."""


def _ordered(loaded: LoadedSpec) -> Iterator[tuple[int, _Needs]]:
    """Yield index and needs of every stage, each after those it needs; the loader has refused cycles."""
    stages = loaded.spec.stages
    index_of = {stage.id: index for index, stage in enumerate(stages)}
    dependencies = stage_dependencies(stages)
    for name in _sorted(dependencies):
        index = index_of[name]
        stage = stages[index]
        before = [item.id for item in stages[max(0, index - 1) : index]]
        yield (
            index,
            _Needs(list(stage.needs) if stage.needs is not None else before, list(dependencies[name])),
        )


def _wait_for_gates(graph: Graph, release: Node) -> None:
    """Let a release wait for every check on what it may be made from."""
    origins = tuple(origin for bound in release.bindings.values() for origin in bound)
    for origin in graph.lineage(origins):
        for check in graph.checks_of(origin):
            if release.id not in ancestors(graph, check):
                release.needs[check.id] = None


def _sorted(needs: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield every name after those it needs, otherwise in the order given."""
    done: set[str] = set()
    for start in needs:
        trail = [start]
        while trail:
            here = trail[-1]
            missing = next((name for name in needs[here] if name not in done), None)
            if here in done:
                trail.pop()
            elif missing is not None and missing not in trail:
                trail.append(missing)
            else:
                done.add(here)
                trail.pop()
                yield here
