"""What a release would put on its target, and how that differs from what is live there; nothing is changed.

What is released comes from the store, as for a plan: stages above that have not made it yet are named, with the
command that runs them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from shipctl.engine.graph import Node
from shipctl.engine.options import complete_options
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.plan import decide
from shipctl.engine.ports import bundle, input_ports
from shipctl.engine.releases import Release
from shipctl.engine.secrets import Secrets
from shipctl.engine.walk import NodeEnd, Ready, Walk
from shipctl.errors import GateError, PluginError, ShipctlError, SpecError, StageError, UnavailableError
from shipctl.spec.problems import listed, near
from shipctl.stages.base import ReleaseStage, StageInputs
from shipctl.stages.context import ReleaseContext
from shipctl.stages.registry import Registry


class Rendered(NamedTuple):
    """What one release stage puts on its target."""

    stage: str
    target: str
    environment: str | None
    version: str
    revision: str
    files: dict[str, str]
    """Relative path to text; none where the target takes no manifests."""


class Difference(NamedTuple):
    """What a release would change on what is live on one target."""

    stage: str
    target: str
    environment: str | None
    version: str
    revision: str
    lines: tuple[str, ...]
    """Of a unified diff, without line ends; none if nothing would change."""


@dataclass(frozen=True)
class _Candidate:
    """One release stage with what it would release now."""

    release: Release
    node: Node
    stage: ReleaseStage[Any, Any, Any]
    inputs: StageInputs
    secrets: Secrets

    @property
    def context(self) -> ReleaseContext:
        return self.release.context()

    @property
    def named(self) -> tuple[str, str, str | None, str, str]:
        release = self.release
        return self.node.id, release.target, release.environment, release.version, release.revision


def render(
    spec: Path,
    *,
    stage: str | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    rights: bool = False,
    registry: Registry | None = None,
) -> list[Rendered]:
    """Return what each release stage, or the one that is meant, puts on its target. No target is asked.

    With ``rights``, what gives who runs shipctl the rights that this takes; for that nothing has to have been made.

    :raises SpecError: if the spec is wrong, or releases nothing here
    :raises UnavailableError: if what would be released has not been made yet
    :raises GateError: if a gate does not let it be released
    """
    pipeline = prepare(
        spec,
        environment=environment,
        overrides=overrides,
        context=context,
        registry=registry,
        check=False,
    )
    if rights:
        return _rights(pipeline, stage)
    found = []
    for item in _candidates(pipeline, stage, overrides):
        files = {
            _path(item.node, name): item.secrets.redact(text)
            for name, text in item.stage.manifests(item.inputs, item.context).items()
        }
        found.append(Rendered(*item.named, files))
    return found


def _rights(pipeline: Pipeline, stage: str | None) -> list[Rendered]:
    found = []
    for node, _, _ in _wanted(Walk(pipeline), stage):
        release = Release.planned(pipeline, node, None)
        files = {_path(node, name): text for name, text in release.rights().items()}
        found.append(Rendered(node.id, release.target, release.environment, release.version, "", files))
    return found


def diff(
    spec: Path,
    *,
    stage: str | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    registry: Registry | None = None,
) -> list[Difference]:
    """Return what each release stage, or the one that is meant, would change on what is live. Reads only.

    :raises SpecError: if the spec is wrong, or releases nothing here
    :raises UnavailableError: if what would be released has not been made yet, or a target cannot be reached
    :raises GateError: if a gate does not let it be released
    :raises StageError: if a target cannot be asked
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    found = []
    for item in _candidates(pipeline, stage, overrides):
        lacking = pipeline.unavailable.get(item.node.id)
        if lacking is not None:
            raise UnavailableError(f"{item.node.id}: {lacking}")
        found.append(Difference(*item.named, _asked(item)))
    return found


def _asked(item: _Candidate) -> tuple[str, ...]:
    """Return what the target says would change; no secret is in that, nor in what is raised."""
    redact = item.secrets.redact
    try:
        return tuple(redact(line) for line in item.stage.diff(item.inputs, item.context))
    except ShipctlError as exc:
        if redact(str(exc)) == str(exc):
            raise
        raise StageError(redact(str(exc))) from None


def _candidates(pipeline: Pipeline, stage: str | None, overrides: Sequence[str]) -> Iterator[_Candidate]:
    """Yield what would be released now, by stage."""
    walk = Walk(pipeline)
    for node, _ in [(node, reasons) for node, action, reasons in _wanted(walk, stage) if action != "skipped"]:
        yield _candidate(walk, node, overrides)


def _wanted(walk: Walk, stage: str | None) -> list[tuple[Node, str, tuple[str, ...]]]:
    """Return the release stages that are meant, what a plan says of them, and why.

    :raises SpecError: if there is none, or all are skipped
    """
    nodes: list[tuple[Node, str, tuple[str, ...]]] = []
    for node in walk.pipeline.nodes.values():
        action, reasons, _ = decide(walk, node, {})
        if node.is_release:
            nodes.append((node, action, tuple(reasons)))
    wanted = [item for item in nodes if stage in {None, item[0].id, item[0].spec.id}]
    if not wanted:
        raise _nothing(walk.pipeline, stage, [node for node, *_ in nodes])
    if all(action == "skipped" for _, action, _ in wanted):
        node, _, reasons = wanted[0]
        raise SpecError(f"{node.id} is skipped: {'; '.join(reasons)}")
    return wanted


def _nothing(pipeline: Pipeline, stage: str | None, releases: Sequence[Node]) -> SpecError:
    name = pipeline.loaded.path.name
    if not releases:
        return SpecError(f"{name} has no release stage, so there is nothing to put on a target")
    known = list(dict.fromkeys(node.spec.id for node in releases))
    hint = near(stage or "", known) or f"; it has {listed(known)}"
    return SpecError(f"--stage {stage}: {name} has no such release stage{hint}")


def _candidate(walk: Walk, node: Node, overrides: Sequence[str]) -> _Candidate:
    """Return what a release stage would release now.

    :raises UnavailableError: if that has not been made yet
    :raises GateError: if a gate is against it
    """
    ready = walk.ready(node)
    if isinstance(ready, NodeEnd):  # while planning nothing fails but at gates
        message = f"{node.id} has nothing to release: {ready.message}"
        raise GateError(message)
    if ready is None:
        raise UnavailableError(_not_made(walk, node, overrides))
    return _opened(walk, node, ready)


def _not_made(walk: Walk, node: Node, overrides: Sequence[str]) -> str:
    loaded = walk.pipeline.loaded
    late = [
        item for name, item in walk.pipeline.nodes.items() if name in node.needs and name not in walk.ends
    ]
    missing = list(dict.fromkeys(item.spec.id for item in late))
    words = [
        "shipctl",
        "apply",
        loaded.path.name,
        *(["-e", loaded.environment] if loaded.environment else []),
    ]
    words += [word for item in overrides for word in ("--set", item)]
    words += ["--context", walk.pipeline.context] if walk.pipeline.context is not None else []
    shown = shlex.join([*words, "--until", missing[-1]])
    verb = "has" if len(missing) == 1 else "have"
    return f"{node.id} has nothing to release yet: {listed(missing)} {verb} not run; run `{shown}` first"


def _opened(walk: Walk, node: Node, ready: Ready) -> _Candidate:
    pipeline = walk.pipeline
    secrets = Secrets(pipeline.loaded)
    scope = walk.stages_scope()
    options = complete_options(node, pipeline.options[node.id], pipeline.loaded, scope, secrets)
    made = node.cls(options)
    assert isinstance(made, ReleaseStage)  # noqa: S101  (the caller chose it)
    return _Candidate(
        release=Release.of(pipeline, node, ready, secrets, scope),
        node=node,
        stage=made,
        inputs=bundle(node.cls.inputs_model, input_ports(node.cls), ready.inputs),
        secrets=secrets,
    )


def _path(node: Node, name: str) -> str:
    """Return the path of a manifest.

    :raises PluginError: if it leads out of the folder that it is written to
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        message = f"stage {node.spec.uses} renders {name!r}, which is no path inside a folder"
        raise PluginError(message)
    return path.as_posix()
