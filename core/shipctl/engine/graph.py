"""From stages to nodes: a node per matrix variant, its inputs matched by type with what it needs.

Matching, for one input of a stage: the outputs of the stages that it needs, by artifact class; if none
fits, what the spec itself brings (the model by class, data by the input's name). A check passes its
subject through, so what comes out of it has the origin of what went in. Where two needs offer different
things, `inputs:` decides. A single input fed by a matrix multiplies the node; a list takes them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from shipctl.engine.ports import Port, input_ports, output_ports
from shipctl.errors import SpecError
from shipctl.spec import evaluate, has_expression, near, stage_dependencies
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import ReleaseStage, Stage
from shipctl.stages.registry import Registry, StageClass

if TYPE_CHECKING:
    from shipctl.spec import LoadedSpec, Problems, StageSpec

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


class _Offer(NamedTuple):
    """What one needed node offers to an input."""

    origin: Origin
    node: Node | None


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
        self._sources = sources
        self._problems = problems
        self._by_stage: dict[str, list[Node]] = {}
        self._kinds: dict[Origin, type[Artifact]] = {Origin("", name): kind for name, kind in sources.items()}

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
                if (found := self._offers(index, stage, port, needs.feeding, dict(choice))) is not None
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
        offers: Mapping[str, list[_Offer]],
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

    # -- one input -----------------------------------------------------------------------------------------

    def _offers(
        self, index: int, stage: StageSpec, port: Port, needs: list[str], matrix: Mapping[str, Any]
    ) -> list[_Offer] | None:
        """Return what may feed one input; None after a problem was added."""
        if port.name in stage.inputs:
            return self._chosen(index, stage, port, matrix)
        if port.from_spec:
            return self._from_sources(index, stage, port, needs)
        per_need = {need: found for need in needs if (found := self._from_stage(need, port))}
        for need, found in per_need.items():
            outputs = {offer.origin.port for offer in found}
            if not port.many and len({(offer.origin.node, offer.origin.port) for offer in found}) > len(
                self._by_stage[need]
            ):
                self._ambiguous(index, stage, port, [f"{need}.{output}" for output in sorted(outputs)])
                return None
        if port.many:
            return [offer for found in per_need.values() for offer in found]
        distinct = {tuple(offer.origin for offer in found) for found in per_need.values()}
        if len(distinct) > 1:
            self._ambiguous(index, stage, port, list(per_need))
            return None
        if per_need:
            return next(iter(per_need.values()))
        return self._from_sources(index, stage, port, needs)

    def _from_stage(self, need: str, port: Port, output: str | None = None) -> list[_Offer]:
        found = []
        for node in self._by_stage[need]:
            origins = [Origin(node.id, name) for name in output_ports(node.cls)]
            if node.subject is not None:
                origins.append(node.subject)
            for origin in origins:
                passed = node.subject == origin
                name = node.cls.subject if passed and issubclass(node.cls, Stage) else origin.port
                if output in {None, name} and port.takes(self._kinds[origin]):
                    found.append(_Offer(origin, node))
        return found

    def _from_sources(
        self, index: int, stage: StageSpec, port: Port, needs: list[str]
    ) -> list[_Offer] | None:
        named = f"data.{port.name}"
        for name in (named, "model"):
            kind = self._sources.get(name)
            if kind is not None and port.takes(kind):
                return [_Offer(Origin("", name), None)]
        if port.optional:
            return []
        offered = sorted(
            {self._kinds[o.origin].kind for need in needs for o in self._from_stage(need, _ANYTHING)}
        )
        gives = (
            f"{', '.join(needs)} gives {', '.join(offered) or 'nothing'}" if needs else "it needs no stage"
        )
        data = f", nor does the spec have `{named}`" if port.takes(_dataset()) else ""
        self._problems.add(
            ("stages", index, "needs" if stage.needs is not None else "uses"),
            f"{stage.id}: input {port.name!r} wants {_article(str(port))}, and {gives}{data}; "
            f"name a stage that makes one in `needs`, or choose with `inputs: {{{port.name}: STAGE}}`",
        )
        return None

    def _chosen(
        self, index: int, stage: StageSpec, port: Port, matrix: Mapping[str, Any]
    ) -> list[_Offer] | None:
        keys = ("stages", index, "inputs", port.name)
        chosen = stage.inputs[port.name]
        texts = [chosen] if isinstance(chosen, str) else list(chosen)
        if not port.many and len(texts) != 1:
            self._problems.add(
                keys, f"input {port.name!r} of {stage.uses} takes one artifact, not {len(texts)}"
            )
            return None
        offers: list[_Offer] = []
        for text in texts:
            try:
                name = (
                    str(evaluate(text, {**self._loaded.scope(), "matrix": dict(matrix)}))
                    if has_expression(text)
                    else text
                )
            except SpecError as exc:
                self._problems.add(keys, str(exc))
                return None
            found = self._reference(name, port)
            if isinstance(found, str):
                self._problems.add(keys, found)
                return None
            offers.extend(found)
        return offers

    def _reference(self, name: str, port: Port) -> list[_Offer] | str:
        """Return what a reference (`onnx`, `onnx.model`, `data.golden`) stands for, or what is wrong with it."""
        if name in self._sources:
            if not port.takes(self._sources[name]):
                found_kind = _article(self._sources[name].kind)
                return f"{name} is {found_kind}, and input {port.name!r} wants {_article(str(port))}"
            return [_Offer(Origin("", name), None)]
        stage, _, output = name.partition(".")
        if stage not in self._by_stage:
            known = [item.id for item in self._loaded.spec.stages]
            if stage in known:
                return f"{stage!r} does not run before this stage"
            hint = near(name, [*known, *self._sources])
            return f"there is no stage {stage!r} and nothing the spec brings has that name{hint}"
        found = self._from_stage(stage, port, output or None)
        if not found:
            outputs = sorted({offer.origin.port for offer in self._from_stage(stage, _ANYTHING)})
            what = f"no output {output!r}" if output else f"no output of kind {port}"
            return f"{stage} has {what} for input {port.name!r}; it has {', '.join(outputs) or 'none'}"
        if len({offer.origin.port for offer in found}) > 1 and not port.many and not output:
            names = sorted({offer.origin.port for offer in found})
            return f"{stage} has several outputs that fit; write {' or '.join(f'{stage}.{item}' for item in names)}"
        return found

    def _ambiguous(self, index: int, stage: StageSpec, port: Port, names: list[str]) -> None:
        self._problems.add(
            ("stages", index, "needs" if stage.needs is not None else "uses"),
            f"{stage.id}: input {port.name!r} may come from {' or '.join(names)}; "
            f"choose with `inputs: {{{port.name}: {names[0]}}}`",
        )


_ANYTHING = Port("anything", (Artifact,))


def _dataset() -> type[Artifact]:
    from shipctl.stages.artifacts import Dataset

    return Dataset


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


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


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
            if release.id not in _ancestors(graph, check):
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


def _ancestors(graph: Graph, node: Node) -> set[str]:
    found: set[str] = set()
    waiting = list(node.needs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph.nodes[name].needs)
    return found
