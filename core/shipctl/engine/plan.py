"""The plan: what would run and why, what is cached, what would change on a target; and plan files.

A plan file pins what a person looked at: the resolved spec, the code, the tools, the known inputs and the
revision that each target serves. It never holds cache status, times, paths of this machine or secrets.
Applying it does exactly that, or is refused as stale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from shipctl.engine.fingerprint import Components, differences, fingerprint
from shipctl.engine.graph import Node
from shipctl.engine.journal import Journal
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.project import Project
from shipctl.engine.releases import Release
from shipctl.engine.walk import NodeEnd, Ready, Walk, to_be_measured_again, verdict_end
from shipctl.errors import SpecError, StalePlanError, UnavailableError
from shipctl.evidence.policy import find_policy
from shipctl.records import digest_of
from shipctl.spec import LoadedSpec
from shipctl.spec.problems import listed
from shipctl.stages.base import Stage
from shipctl.stages.events import PlannedNode, PlanReady
from shipctl.stages.registry import Registry
from shipctl.store.files import write_atomic

PLAN_KIND = "shipctl.dev/plan-v1"


@dataclass(frozen=True)
class Plan:
    """A plan, and the pipeline that it is of."""

    pipeline: Pipeline
    nodes: tuple[PlannedNode, ...]
    parts: dict[str, Components]
    """What the plan pins, by name: `spec`, each node, each target."""
    request: dict[str, Any]
    pinned: bool = False
    """Whether it came from a plan file, and must not do anything else."""
    releases: tuple[Release, ...] = ()
    """What would be released, as far as it is known; without secrets."""

    @property
    def project(self) -> Project:
        """The project of the spec."""
        return self.pipeline.project

    @property
    def spec(self) -> LoadedSpec:
        """The loaded spec."""
        return self.pipeline.loaded

    @property
    def digest(self) -> str:
        """The plan's identity."""
        return digest_of(self.parts)

    def ready(self, run: str | None = None) -> PlanReady:
        """Return the event that tells of this plan."""
        return PlanReady(
            run=run,
            pipeline=self.pipeline.name,
            version=self.pipeline.version,
            digest=self.digest,
            nodes=self.nodes,
        )

    def write(self, path: Path) -> None:
        """Write the plan file.

        :raises SpecError: if it cannot be written there
        """
        if not path.resolve().parent.is_dir():
            message = f"cannot write the plan to {path}: there is no folder {path.resolve().parent}"
            raise SpecError(message)
        spec = self.spec.path.resolve()
        body = {
            "kind": PLAN_KIND,
            "digest": self.digest,
            "spec": _relative(spec, path.resolve().parent),
            **self.request,
            "parts": self.parts,
            "nodes": [
                node.model_dump(mode="json", include={"node", "action", "reasons", "changes"})
                for node in self.nodes
            ],
        }
        write_atomic(path, json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n")


def make_plan(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    until: str | None = None,
    registry: Registry | None = None,
) -> Plan:
    """Plan a spec. Nothing is changed anywhere, except that digests of read files are remembered.

    :raises SpecError: for anything wrong with the spec, all of it at once, or with the policy
    :raises PluginError: for a plugin that does not work
    """
    pipeline = prepare(
        spec, environment=environment, overrides=overrides, context=context, until=until, registry=registry
    )
    if any(node.is_release for node in pipeline.nodes.values()):
        find_policy(pipeline.project.root)  # one that cannot be read is told before anything has run
    walk = Walk(pipeline)
    before: dict[str, Any] = {}
    if pipeline.project.journal.exists():
        with Journal(pipeline.project.journal) as journal:
            before = journal.components(pipeline.name)
    releases: list[Release] = []
    nodes = tuple(_plan_node(walk, node, before, releases) for node in pipeline.nodes.values())
    if pipeline.project.state.exists():
        pipeline.cache.save()
    return Plan(
        pipeline=pipeline,
        nodes=nodes,
        parts=_parts(pipeline),
        request={
            "environment": environment,
            "overrides": list(overrides),
            "context": context,
            "until": until,
        },
        releases=tuple(releases),
    )


def _plan_node(walk: Walk, node: Node, before: dict[str, Any], releases: list[Release]) -> PlannedNode:
    """Plan a node; what would be released is added to ``releases``."""
    action, reasons, parts = decide(walk, node, before)
    changes: tuple[str, ...] = ()
    if node.is_release and action == "release" and node.id not in walk.pipeline.unavailable:
        ready = walk.ready(node)
        release = Release.planned(walk.pipeline, node, ready if isinstance(ready, Ready) else None)
        if release.in_place():
            action = "in-place"
            walk.ends[node.id] = NodeEnd("in-place")
        else:
            changes = tuple(release.preview())
            releases.append(release)
    return PlannedNode(
        node=node.id,
        stage=node.spec.id,
        uses=node.spec.uses,
        kind=cast("Literal['transform', 'check', 'release']", node.kind),
        needs=tuple(node.needs),
        action=action,
        reasons=reasons,
        changes=changes,
        unavailable=walk.pipeline.unavailable.get(node.id) if action in {"run", "release"} else None,
        environment=_environment(walk, node) if action == "run" else None,
        fingerprint=fingerprint(parts) if parts is not None else None,
    )


def _environment(walk: Walk, node: Node) -> str | None:
    """Say which environment of its own a stage runs in, if it has one."""
    if not (issubclass(node.cls, Stage) and node.cls.requirements) or node.id in walk.pipeline.unavailable:
        return None
    from shipctl.engine.isolation import environment_in_words

    return environment_in_words(node.spec.uses, node.cls)


Planned = Literal["run", "cached", "skipped", "blocked", "release", "in-place"]


def decide(
    walk: Walk, node: Node, before: dict[str, Any]
) -> tuple[Planned, tuple[str, ...], Components | None]:
    """Return what apply will do with a node, why, and its components where its inputs are known."""
    condition = walk.condition(node, planning=any(need not in walk.ends for need in node.needs))
    if condition is False:
        walk.ends[node.id] = NodeEnd("skipped", "its `when` says no")
        return "skipped", ("its `when` says no",), None
    ready = walk.ready(node)
    if isinstance(ready, NodeEnd):
        walk.ends[node.id] = ready
        return ("skipped" if ready.status == "skipped" else "blocked"), (ready.message,), None
    later = tuple(need for need in node.needs if need not in walk.ends)
    if node.is_release:
        return "release", ((f"after {_first(later)}",) if later else ()), None
    if ready is None or condition is None:
        return (
            "run",
            (
                f"{_first(later)} {'runs' if len(later) == 1 else 'run'} first"
                if later
                else "its `when` is decided then",
            ),
            None,
        )
    parts = walk.components(node, ready)
    hit = walk.cached(node, parts)
    if hit is None:
        old = before.get(node.id)
        moved = differences(old, parts) if old is not None else []
        known = old is not None
        return (
            "run",
            tuple(moved)
            or (("its outputs are gone, damaged or too old",) if known else ("it has not run yet",)),
            parts,
        )
    result, outputs = hit
    end = NodeEnd("cached", outputs=outputs, fingerprint=result.fingerprint, components=parts)
    options = walk.pipeline.options[node.id].value
    if options is not None:
        end.verdicts = walk.judge(node, options, outputs, ready)
        if to_be_measured_again(node, end.verdicts):
            return "run", ("its last measurement was inconclusive",), parts
        against = verdict_end(end.verdicts)
        if against is not None:
            end.status, end.message = "rejected", against
    walk.ends[node.id] = end
    return "cached", ((f"a gate says no: {end.message}",) if end.status == "rejected" else ()), parts


def _first(names: Sequence[str]) -> str:
    """Write at most three names in one line."""
    return listed(names) if len(names) <= 3 else f"{listed(names[:2])} and {len(names) - 2} more"  # noqa: PLR2004


def _parts(pipeline: Pipeline) -> dict[str, Components]:
    spec = json.loads(pipeline.loaded.spec.model_dump_json(by_alias=True))
    parts: dict[str, Components] = {"spec": spec}
    for name, components in pipeline.symbolic().items():
        parts[f"stage {name}"] = components
    return parts | _target_parts(pipeline)


def _target_parts(pipeline: Pipeline) -> dict[str, Components]:
    releases = [node for node in pipeline.nodes.values() if node.is_release]
    return {f"target of {node.id}": {"serves": _serves(pipeline, node)} for node in releases}


def _serves(pipeline: Pipeline, node: Node) -> str | None:
    """Return the revision that serves, as recorded; None where the plan itself says that the target cannot be asked."""
    try:
        return Release.planned(pipeline, node, None).stable_revision()
    except UnavailableError:
        if node.id not in pipeline.unavailable:
            raise
        return None


def check_targets(plan: Plan) -> None:
    """Make sure, behind the lock, that the targets still serve what a plan file pinned.

    :raises StalePlanError: if one does not
    """
    if not plan.pinned:
        return
    for name, parts in _target_parts(plan.pipeline).items():
        if plan.parts[name] != parts:
            message = (
                f"the plan is stale, nothing was done: the {name} changed; make a new one with `shipctl plan`"
            )
            raise StalePlanError(message)


def is_plan_file(path: Path) -> bool:
    """Whether a file is a plan that `shipctl plan -o` wrote, rather than a spec."""
    try:
        with path.open("rb") as stream:
            return stream.read(1) == b"{" and path.suffix != ".yaml"
    except OSError:
        return False


def read_plan(path: Path, registry: Registry | None = None) -> Plan:
    """Make the plan of a plan file again and compare.

    :raises SpecError: if the file is no plan
    :raises StalePlanError: if anything that it pins has changed, naming what
    """
    try:
        body = json.loads(path.read_bytes())
        spec, digest, pinned = path.resolve().parent / body["spec"], body["digest"], body["parts"]
        request = {name: body[name] for name in ("environment", "overrides", "context", "until")}
        kind = body["kind"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        message = f"{path} is not a plan file ({type(exc).__name__}); make one with `shipctl plan SPEC -o {path.name}`"
        raise SpecError(message) from exc
    if kind != PLAN_KIND or digest_of(pinned) != digest:
        message = (
            f"{path} was edited or written by another version of shipctl; make it again with `shipctl plan`"
        )
        raise StalePlanError(message)
    plan = make_plan(spec, registry=registry, **request)
    if plan.digest != digest:
        moved = []
        for name in sorted({*pinned, *plan.parts}):
            moved += [
                f"{name}: {what}" for what in differences(pinned.get(name, {}), plan.parts.get(name, {}))
            ]
        shown = "\n".join(f"  {line}" for line in moved)
        advice = "make a new one with `shipctl plan`"
        message = f"{path.name} is stale, nothing was done; since it was made:\n{shown}\n{advice}"
        raise StalePlanError(message)
    return replace(plan, pinned=True)


def _relative(path: Path, base: Path) -> str:
    import os.path

    return Path(os.path.relpath(path, base)).as_posix()
