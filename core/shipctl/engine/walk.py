"""How far a pipeline has come: what each node made, and what that means for the nodes after it.

Planning and running walk the same way: a node whose inputs are all known gets a fingerprint, the store
says whether that has been made before, and the stage judges what was measured, anew each time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from shipctl.engine.fingerprint import Components, fingerprint
from shipctl.engine.graph import Node, Origin
from shipctl.engine.pipeline import Pipeline, when
from shipctl.engine.ports import output_ports
from shipctl.engine.runstate import earlier_host
from shipctl.errors import ShipctlError, StoreError
from shipctl.records import digest_of
from shipctl.stages.artifacts import Artifact, Report
from shipctl.stages.base import Stage, StageOptions
from shipctl.stages.context import JudgeContext, Lineage, LineageNode
from shipctl.stages.events import Status
from shipctl.stages.verdicts import Outcome, Verdict, worst
from shipctl.store.local import Result

GOOD: frozenset[Status] = frozenset({"done", "cached", "in-place"})
_SAID: dict[Status, str] = {
    "failed": "failed",
    "rejected": "was rejected",
    "blocked": "is blocked",
    "waiting": "waits",
    "interrupted": "was interrupted",
    "skipped": "was skipped",
}
BAD: frozenset[Status] = frozenset({"failed", "rejected", "blocked", "waiting", "interrupted"})


@dataclass
class NodeEnd:
    """How a node ended."""

    status: Status
    message: str = ""
    outputs: dict[str, Artifact] = field(default_factory=dict)
    fingerprint: str | None = None
    components: Components | None = None
    verdicts: tuple[Verdict, ...] = ()
    seconds: float = 0.0
    peak_memory: int | None = None
    exit_code: int = 0
    expires: float = math.inf
    """When a measurement becomes too old (see :func:`expiry`), in seconds since the epoch."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all its reports."""
        return {
            key: value
            for item in self.outputs.values()
            if isinstance(item, Report)
            for key, value in item.metrics.items()
        }


@dataclass(frozen=True)
class Ready:
    """A node with all its inputs."""

    inputs: dict[str, tuple[Artifact, ...]]
    origins: dict[str, tuple[Origin, ...]]
    """Of the inputs that survived, in the same order."""


class Walk:
    """The ends of nodes so far, and what follows from them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.ends: dict[str, NodeEnd] = {}
        self.host: str | None = None
        """The host fingerprint of an earlier run whose measurements count here, if any do."""
        self._earlier: list[str | None] = []

    # -- inputs --------------------------------------------------------------------------------------------

    def artifact(self, origin: Origin) -> Artifact | None:
        """Return the artifact of an origin, if it has been made."""
        if not origin.node:
            return self.pipeline.sources[origin.port].artifact
        end = self.ends.get(origin.node)
        return end.outputs.get(origin.port) if end is not None and end.status in GOOD else None

    def ready(self, node: Node) -> Ready | NodeEnd | None:
        """Return the inputs of a node; or its end, if it cannot run; or None, if something is still to come."""
        if node.id in self.pipeline.left_out:
            return NodeEnd("skipped", self.pipeline.left_out[node.id])
        elsewhere = self._elsewhere(node)
        if elsewhere is not None:
            return elsewhere
        if any(need not in self.ends for need in node.needs):
            return None
        lists = {name for name, bound in node.bindings.items() if self._is_list(node, name)}
        single = [origin for name, bound in node.bindings.items() if name not in lists for origin in bound]
        droppable = self._feeding(node, [o for name in lists for o in node.bindings[name]]) - self._feeding(
            node, single
        )
        gates = {need for need in node.needs if self._is_gate(node, need)}
        for need in node.needs:
            if need in droppable or need in gates:
                continue
            stop = self._stop(need)
            if stop is not None:
                return stop
        inputs: dict[str, tuple[Artifact, ...]] = {}
        origins: dict[str, tuple[Origin, ...]] = {}
        for name, bound in node.bindings.items():
            alive = [origin for origin in bound if name not in lists or self._survives(node, origin)]
            made = [(origin, item) for origin in alive if (item := self.artifact(origin)) is not None]
            if bound and not made:
                why = "; ".join(self._why_gone(node, origin) for origin in bound if origin.node)
                return NodeEnd("failed", f"no candidate is left for input {name!r} ({why})", exit_code=4)
            inputs[name] = tuple(item for _, item in made)
            origins[name] = tuple(origin for origin, _ in made)
        if node.is_release:
            blocked = self._gate_problem(node, origins)
            if blocked is not None:
                return blocked
        return Ready(inputs, origins)

    def _elsewhere(self, node: Node) -> NodeEnd | None:
        """Skip a release to an environment that is not the chosen one."""
        wanted, chosen = node.spec.environment, self.pipeline.loaded.environment
        if not node.is_release or wanted in {None, chosen}:
            return None
        where = f"this is {chosen}" if chosen else "no environment was chosen"
        return NodeEnd("skipped", f"it releases to {wanted} only, and {where}; choose it with -e {wanted}")

    def _stop(self, need: str) -> NodeEnd | None:
        end = self.ends[need]
        if end.status == "skipped":
            return NodeEnd("skipped", f"{need} was skipped")
        if end.status in BAD:
            return NodeEnd("blocked", f"{need} {_SAID[end.status]}")
        return None

    def _is_list(self, node: Node, port: str) -> bool:
        from shipctl.engine.ports import input_ports

        return input_ports(node.cls)[port].many

    def _feeding(self, node: Node, origins: Sequence[Origin]) -> set[str]:
        """Return the needs that make these origins or look at them."""
        makers = {origin.node for origin in origins if origin.node}
        checks = {need for need in node.needs if self.pipeline.graph.nodes[need].subject in origins}
        return makers | checks

    def _is_gate(self, node: Node, need: str) -> bool:
        """Whether a release waits for this need only as for a gate: which ones count depends on what was selected."""
        feeds = {origin.node for bound in node.bindings.values() for origin in bound}
        return node.is_release and need not in feeds and self.pipeline.graph.nodes[need].subject is not None

    def _against(self, node: Node, origin: Origin) -> str | None:
        """Return the first check that a node needs and that does not stand for an origin."""
        checks = (need for need in node.needs if self.pipeline.graph.nodes[need].subject == origin)
        return next((need for need in checks if self.ends[need].status in BAD), None)

    def _survives(self, node: Node, origin: Origin) -> bool:
        return self._against(node, origin) is None

    def _why_gone(self, node: Node, origin: Origin) -> str:
        name = self._against(node, origin) or origin.node
        return f"{origin}: {name} {_SAID.get(self.ends[name].status, 'made none')}"

    # -- gates ---------------------------------------------------------------------------------------------

    def _gate_problem(self, node: Node, origins: Mapping[str, Sequence[Origin]]) -> NodeEnd | None:
        lineage = self.lineage([origin for bound in origins.values() for origin in bound])
        for check in self.pipeline.graph.nodes.values():
            if check.subject not in lineage or check.subject is None:
                continue
            end = self.ends.get(check.id)
            if end is None or end.status not in GOOD:
                state = "has not run" if end is None else _SAID[end.status]
                return NodeEnd(
                    "blocked",
                    f"gate {check.id} {state}; a release needs every gate on what it ships to pass",
                    exit_code=4,
                )
        return None

    def lineage(self, origins: Sequence[Origin]) -> set[Origin]:
        """Return these origins and what they were really made from: behind a selection only the one selected."""
        found: set[Origin] = set()
        waiting = list(origins)
        while waiting:
            origin = waiting.pop()
            if origin in found:
                continue
            found.add(origin)
            if not origin.node:
                continue
            bound = [
                item for ports in self.pipeline.graph.nodes[origin.node].bindings.values() for item in ports
            ]
            made = self.artifact(origin)
            same = [item for item in bound if made is not None and self._same(item, made)]
            waiting.extend(same or bound)
        return found

    def _same(self, origin: Origin, artifact: Artifact) -> bool:
        other = self.artifact(origin)
        return other is not None and other.digest == artifact.digest

    # -- what is known of a node before it runs --------------------------------------------------------------

    def stages_scope(self) -> dict[str, Any]:
        """Return `stages` for expressions: metrics and output digests of what has ended, by stage id."""
        scope: dict[str, Any] = {}
        for name, end in self.ends.items():
            node = self.pipeline.graph.nodes[name]
            if not node.variant:
                scope[node.spec.id] = {
                    "outputs": {key: item.digest for key, item in end.outputs.items()},
                    "metrics": _nested(end.metrics),
                    "status": end.status,
                }
        return scope

    def condition(self, node: Node, *, planning: bool = False) -> bool | None:
        """Return whether `when` lets the node run; None while that is not known."""
        if isinstance(node.spec.when, bool):
            return node.spec.when
        return when(self.pipeline, node, None if planning else self.stages_scope())

    def components(self, node: Node, ready: Ready) -> Components:
        """Return the components of a node whose inputs are known."""
        digests = {name: [item.digest for item in items] for name, items in ready.inputs.items()}
        parts = self.pipeline.components(
            node, digests, self.stages_scope() if self.pipeline.options[node.id].later else {}
        )
        if reads_lineage(node):
            parts["lineage"] = {
                item.node: digest_of(item.model_dump(mode="json")) for item in self.history(node).nodes
            }
        return parts

    def history(self, node: Node) -> Lineage:
        """Return everything above a node as it went, oldest first, and what the spec brought into it.

        Which spec, commit and machine it was says how an artifact came to be, and is no part of a fingerprint: an
        artifact that needs no making again keeps the history that it has.
        """
        graph = self.pipeline.graph.nodes
        above: set[str] = set()
        waiting = list(node.needs)
        while waiting:
            name = waiting.pop()
            if name not in above:
                above.add(name)
                waiting.extend(graph[name].needs)
        members = [graph[name] for name in graph if name in above]
        return self.pipeline.lineage(
            [self._member(item) for item in members if not item.is_release],
            {
                origin.port
                for item in (*members, node)
                for bound in item.bindings.values()
                for origin in bound
                if not origin.node
            },
        )

    def _member(self, node: Node) -> LineageNode:
        assert issubclass(node.cls, Stage)  # noqa: S101  (releases make no artifacts)
        end = self.ends.get(node.id, NodeEnd("skipped"))
        parts = end.components or {}
        return LineageNode(
            node=node.id,
            uses=node.spec.uses,
            plugin=self.pipeline.registry.owner(node.spec.uses),
            fingerprint=end.fingerprint or "",
            options=parts.get("options", {}),
            tools=parts.get("tools", {}),
            inputs={name: tuple(digests) for name, digests in parts.get("inputs", {}).items()},
            outputs={name: item.digest for name, item in end.outputs.items()},
            verdicts=end.verdicts,
        )

    def cached(self, node: Node, parts: Components) -> tuple[Result, dict[str, Artifact]] | None:
        """Return a result of the store that is valid and whole (by size), with its outputs."""
        assert issubclass(node.cls, Stage)  # noqa: S101  (releases are not cached)
        store = self.pipeline.store
        result = store.load_result(fingerprint(parts))
        if result is None and "host" in parts:
            result = self._measured_before(parts)
        if result is None:
            return None
        if time.time() > expiry(node, result):
            return None
        try:
            outputs = read_outputs(self.pipeline, node, result)
        except (StoreError, ValidationError):  # damaged, or somebody else's: then there is none
            return None
        if set(outputs) != set(output_ports(node.cls)) or result.uses != node.spec.uses:
            return None
        if not all(
            store.has_files(item.files) for name, item in outputs.items() if name not in result.passed
        ):
            return None
        return result, outputs

    def _measured_before(self, parts: Components) -> Result | None:
        """Return what an earlier run of this very plan measured on another machine.

        What was measured, selected and perhaps approved there is not to be decided anew because a later run, for
        instance of the same CI job, found itself on another machine.
        """
        if not self._earlier:
            self._earlier.append(earlier_host(self.pipeline))
        host = self._earlier[0]
        if host is None or host == parts["host"]:
            return None
        result = self.pipeline.store.load_result(fingerprint({**parts, "host": host}))
        if result is not None:
            self.host = host
        return result

    def judge(
        self, node: Node, options: StageOptions, outputs: Mapping[str, Artifact], ready: Ready
    ) -> tuple[Verdict, ...]:
        """Ask the stage what it says to its outputs. A stage that raises here gives an ERROR verdict."""
        assert issubclass(node.cls, Stage)  # noqa: S101  (releases judge in their steps)
        subject = ready.inputs[node.cls.subject][0].digest if node.cls.subject is not None else None
        context = JudgeContext(objectives=self.pipeline.objectives, subject=subject)
        try:
            values: dict[str, Any] = dict(outputs)
            made = node.cls.outputs_model.model_construct(**values)
            verdicts = tuple(node.cls(options).judge(made, context))
        except ShipctlError as exc:
            return (Verdict(gate=node.spec.uses, outcome=Outcome.FAIL, message=str(exc), subject=subject),)
        except Exception as exc:  # noqa: BLE001  (a gate that crashes is an error, never a pass)
            message = f"judging crashed with {type(exc).__name__}: {exc}"
            return (Verdict(gate=node.spec.uses, outcome=Outcome.ERROR, message=message, subject=subject),)
        return verdicts


def reads_lineage(node: Node) -> bool:
    """Whether a stage looks at everything above it."""
    return issubclass(node.cls, Stage) and "lineage" in node.cls.reads


def expiry(node: Node, result: Result) -> float:
    """Return when a result becomes too old, in seconds since the epoch; infinity for what never does."""
    age = node.cls.max_age if issubclass(node.cls, Stage) else None
    return math.inf if age is None else result.created + age


def read_outputs(pipeline: Pipeline, node: Node, result: Result) -> dict[str, Artifact]:
    """Return the outputs that a result of the store names, as the node's declared artifact classes.

    :raises StoreError: if the store holds another kind
    """
    ports = output_ports(node.cls)
    return {
        name: pipeline.store.artifact(ports[name].kinds[0], manifest)
        for name, manifest in result.outputs.items()
        if name in ports
    }


def to_be_measured_again(node: Node, verdicts: Sequence[Verdict]) -> bool:
    """Whether a kept measurement answers nothing: another try may."""
    measures = issubclass(node.cls, Stage) and node.cls.measurement
    return measures and worst(verdict.outcome for verdict in verdicts) is Outcome.INCONCLUSIVE


def verdict_end(verdicts: Sequence[Verdict]) -> str | None:
    """Return what the gates object to, or None if all passed."""
    if worst(verdict.outcome for verdict in verdicts) is Outcome.PASS:
        return None
    bad = [verdict for verdict in verdicts if verdict.outcome is not Outcome.PASS]
    return "; ".join(f"{verdict.gate}: {verdict.message} ({verdict.outcome})" for verdict in bad)


def _nested(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Turn `latency.p95` into {"latency": {"p95": …}} so that an expression can say it with dots."""
    tree: dict[str, Any] = {}
    for name, value in metrics.items():
        *path, last = name.split(".")
        here = tree
        for key in path:
            inner = here.setdefault(key, {})
            here = inner if isinstance(inner, dict) else {}
        here[last] = value
    return tree
