"""A spec made ready: plugins resolved, nodes wired, options checked. Plan and apply both start here."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl import __version__
from shipctl.engine.filecache import FileCache
from shipctl.engine.fingerprint import Components, Fingerprinter, components
from shipctl.engine.graph import Graph, Node, Origin
from shipctl.engine.graph_builder import GraphBuilder
from shipctl.engine.options import PlannedOptions, plan_options
from shipctl.engine.project import Project
from shipctl.engine.resources import Resources
from shipctl.engine.retargeting import check_context
from shipctl.engine.sources import Source, find_sources, objectives
from shipctl.engine.trials import left_out
from shipctl.errors import SpecError, UnavailableError
from shipctl.records import digest_of
from shipctl.release.references import WrongReferenceError, place_of
from shipctl.spec import LoadedSpec, Problems, evaluate, load_soundly, near, references
from shipctl.stages.base import Stage
from shipctl.stages.context import CheckContext, Lineage, LineageNode, LineageSource, Objectives, Upstream
from shipctl.stages.registry import Registry
from shipctl.store.local import LocalStore
from shipctl.store.objects import store_or_default

if TYPE_CHECKING:
    from shipctl.store.depot import Depot

_GIT_TIMEOUT = 10
"""Seconds."""


@dataclass
class Pipeline:
    """Everything about a spec that does not depend on what has already run."""

    loaded: LoadedSpec
    project: Project
    graph: Graph
    sources: dict[str, Source]
    options: dict[str, PlannedOptions]
    objectives: Objectives
    fingerprints: Fingerprinter
    store: LocalStore
    cache: FileCache
    registry: Registry
    began: int
    """When the spec began to be read, in nanoseconds since the epoch."""
    context: str | None = None
    """What was said to be the context of the targets, whatever the spec says."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Node to what this machine lacks for it."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Node to why it does not run: it would make a candidate beyond those that are tried."""

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return self.loaded.spec.metadata.name

    @property
    def version(self) -> str:
        """`metadata.version`."""
        return self.loaded.spec.metadata.version

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes by id, in an order in which they can run."""
        return self.graph.nodes

    def depot(self) -> Depot:
        """Open the store that this pipeline publishes to; the caller closes it.

        :raises SpecError: if there is no plugin for it
        """
        from shipctl.store.depot import open_depot

        return open_depot(
            store_or_default(self.loaded.spec.store), self.loaded.root, LocalStore(self.project.store)
        )

    def scope(self, node: Node) -> dict[str, Any]:
        """Return what expressions of a node may use, without stages and secrets."""
        return {**self.loaded.scope(), "matrix": node.matrix}

    def components(
        self, node: Node, inputs: Mapping[str, Sequence[str]], stages: Mapping[str, Any] | None = None
    ) -> Components:
        """Return the components of a transform node; ``stages`` as for :meth:`PlannedOptions.canonical`."""
        assert issubclass(node.cls, Stage)  # noqa: S101  (releases have revisions instead)
        options = self.options[node.id].canonical(node.cls.options_model, stages, self.scope(node))
        return components(self.fingerprints.of_class(node.cls), options, inputs)

    def symbolic(self) -> dict[str, Components]:
        """Return the components of every node with inputs named by what makes them: known before anything has run."""
        digests: dict[str, str] = {}
        found: dict[str, Components] = {}
        for node in self.nodes.values():
            inputs = {
                name: [
                    self.sources[o.port].artifact.digest if not o.node else f"{digests[o.node]}.{o.port}"
                    for o in bound
                ]
                for name, bound in node.bindings.items()
            }
            if issubclass(node.cls, Stage):
                parts = self.components(node, inputs)
            else:
                options = self.options[node.id].canonical(node.cls.options_model, None, self.scope(node))
                parts = components({"class": node.spec.uses}, options, inputs)
            found[node.id] = parts
            digests[node.id] = digest_of(parts)
        return found

    def lineage(self, nodes: Sequence[LineageNode], sources: Collection[str]) -> Lineage:
        """Return the history of something that these stages made from these sources."""
        uris = {"model": self.loaded.spec.model.uri if self.loaded.spec.model is not None else ""}
        uris |= {f"data.{name}": item.uri for name, item in self.loaded.spec.data.items()}
        return Lineage(
            spec=digest_of(json.loads(self.loaded.spec.model_dump_json(by_alias=True))),
            nodes=tuple(nodes),
            sources=tuple(
                LineageSource(
                    name=name,
                    uri=uris.get(name, ""),
                    digest=source.artifact.digest,
                    files={entry.path: entry.sha256 for entry in source.artifact.files},
                )
                for name, source in sorted(self.sources.items())
                if name in sources
            ),
            python=platform.python_version(),
            platform=f"{sys.platform}-{platform.machine()}",
            revision=commit_of(self.project.root),
            shipctl=__version__,
        )

    def origin_artifact(self, origin: Origin) -> Source | None:
        """Return what the spec brings under that origin, if it does."""
        return self.sources.get(origin.port) if not origin.node else None


def prepare(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    until: str | None = None,
    registry: Registry | None = None,
    check: bool = True,
) -> Pipeline:
    """Load a spec and make it ready, or say everything that is wrong with it.

    ``context`` is laid over that of every target that has one. Without ``check`` no stage looks whether it can run
    here, so that nothing outside of this machine is asked.

    :raises SpecError: for the spec, its files, its options, or an unknown ``until``
    :raises PluginError: for a plugin that it uses
    """
    began = time.time_ns()
    registry = registry or Registry()
    loaded, problems = load_soundly(spec, environment=environment, overrides=overrides)
    if loaded is None:
        problems.raise_if_any()
        raise SpecError(f"{spec} is not a spec")
    project = Project.of(loaded.path)
    cache = FileCache(project.state / "files.json")
    store = _store(loaded, project)
    sources = find_sources(loaded, project, store, cache, problems)
    if problems:  # edges between stages would only show the same faults again
        check_stages(loaded, registry, problems)
        problems.raise_if_any()
    kinds = {name: type(source.artifact) for name, source in sources.items()}
    graph = GraphBuilder(loaded, registry, kinds, problems).build()
    options = {node.id: plan_options(node, loaded, problems, cache, context) for node in graph.nodes.values()}
    _check_overlays(graph, loaded, problems)
    _check_keys_of_releases(graph, problems)
    problems.raise_if_any()
    if context is not None:
        check_context(context, graph.nodes.values(), options)
    graph.nodes = _until(graph, until)
    surplus = left_out(graph, options)
    goals = objectives(loaded)
    pipeline = Pipeline(
        loaded=loaded,
        project=project,
        graph=graph,
        sources=sources,
        options=options,
        objectives=Objectives(**goals),
        fingerprints=Fingerprinter(cache, loaded.spec.seed, Objectives(**goals)),
        store=store,
        cache=cache,
        registry=registry,
        began=began,
        context=context,
        left_out=surplus,
    )
    machine = Resources(cpu=1)
    for node in graph.nodes.values() if check else ():
        if node.id in surplus:
            continue
        _check(pipeline, node, machine, problems)
    problems.raise_if_any()
    return pipeline


def _store(loaded: LoadedSpec, project: Project) -> LocalStore:
    """Return the project's working store, which shares with the spec's if it names one."""
    shared = store_or_default(loaded.spec.store)
    if shared is None:
        return LocalStore(project.store)
    from shipctl.store.shared import SharedStore

    return SharedStore(project.store, shared, loaded.root)


def check_stages(loaded: LoadedSpec, registry: Registry, problems: Problems) -> None:
    """Look at each stage by itself: whether there is such a plugin, and its options in every variant."""
    for index, stage in enumerate(loaded.spec.stages):
        try:
            cls = registry.load(stage.uses)
        except SpecError as exc:
            problems.add(("stages", index, "uses"), str(exc))
            continue
        axes = [[((stage.id, axis), value) for value in values] for axis, values in stage.matrix.items()]
        for choice in itertools.product(*axes):
            plan_options(Node(stage.id, index, stage, cls, dict(choice), {}), loaded, problems)


def _check_overlays(graph: Graph, loaded: LoadedSpec, problems: Problems) -> None:
    for node in graph.nodes.values():
        if node.is_release:
            continue
        for keys, name in loaded.overlaid_reads(node.index).items():
            problems.add(
                keys,
                f"{node.spec.id} reads vars.{name}, which environment {loaded.environment!r} changes; only release "
                "stages may: every environment ships the same files",
            )


def _check_keys_of_releases(graph: Graph, problems: Problems) -> None:
    """What only a release stage heeds would silently do nothing on another one."""
    for node in graph.nodes.values():
        if node.is_release:
            continue
        advice = f"{node.spec.id} releases nothing; take it out, or write it on the stage that does"
        at = ("stages", node.index)
        if node.spec.approval is not None:
            problems.add((*at, "approval"), f"nobody is asked for this approval: {advice}", "key")
        if node.spec.environment is not None:
            problems.add(
                (*at, "environment"), f"it runs for every environment, whatever stands here: {advice}", "key"
            )


def _until(graph: Graph, until: str | None) -> dict[str, Node]:
    if until is None:
        return graph.nodes
    wanted = [node.id for node in graph.nodes.values() if until in {node.id, node.spec.id}]
    if not wanted:
        known = list(dict.fromkeys(node.spec.id for node in graph.nodes.values()))
        message = (
            f"--until {until}: there is no such stage{near(until, known) or '; it has ' + ', '.join(known)}"
        )
        raise SpecError(message)
    keep = set(wanted)
    for name in wanted:
        waiting = list(graph.nodes[name].needs)
        while waiting:
            need = waiting.pop()
            if need not in keep:
                keep.add(need)
                waiting.extend(graph.nodes[need].needs)
    return {name: node for name, node in graph.nodes.items() if name in keep}


def _check(pipeline: Pipeline, node: Node, machine: Resources, problems: Problems) -> None:
    lacking = machine.lacking(node)
    if lacking is not None:
        pipeline.unavailable[node.id] = lacking
        return
    lacking = _uninstalled(node)
    if lacking is not None:
        pipeline.unavailable[node.id] = lacking
        return
    gone = _missing_secret(pipeline, node)
    if gone is not None:
        pipeline.unavailable[node.id] = gone
    value = pipeline.options[node.id].value
    if value is None:
        return
    context = CheckContext(
        project=pipeline.project.root,
        pipeline=pipeline.name,
        inputs={
            name: tuple(_upstream(pipeline, origin) for origin in bound)
            for name, bound in node.bindings.items()
        },
        objectives=pipeline.objectives,
        store=store_or_default(pipeline.loaded.spec.store),
        base=pipeline.loaded.root,
        environment=pipeline.loaded.environment,
    )
    try:
        node.cls(value).check(context)
    except UnavailableError as exc:
        pipeline.unavailable[node.id] = str(exc)
    except SpecError as exc:
        _tell(exc, pipeline, node, problems)


def _uninstalled(node: Node) -> str | None:
    """Say what is not installed for a stage and, for one with an environment of its own, cannot be."""
    if issubclass(node.cls, Stage) and node.cls.requirements:
        from shipctl.engine.isolation import stage_lock

        try:
            stage_lock(node.cls)
        except UnavailableError as exc:
            return f"the environment of {node.spec.uses} cannot be made: {exc}"
        return None
    for module, brings in node.cls.requires.items():
        if not _importable(module):
            return f"{node.spec.uses} needs the module {module}: pip install '{brings}'"
    return None


def _tell(exc: SpecError, pipeline: Pipeline, node: Node, problems: Problems) -> None:
    """Add what is wrong with a stage, at the options of the plugin that it is about, if it is about one."""
    at = ("stages", node.index)
    place = None
    if isinstance(exc, WrongReferenceError):
        place = place_of(exc.reference, dict(pipeline.options[node.id].known))
    if place is None or not isinstance(exc, WrongReferenceError):
        problems.add((*at, "uses"), str(exc))
        return
    for fault in exc.faults:
        problems.add((*at, "with", *place, *fault.keys), fault.message, fault.part)


def _missing_secret(pipeline: Pipeline, node: Node) -> str | None:
    """Say which secret of a node's options is not there, as far as that shows without fetching it."""
    spec = pipeline.loaded.spec
    for path in sorted(references(pipeline.options[node.id].later)):
        source = spec.secrets.get(path[1]) if path[0] == "secrets" and len(path) > 1 else None
        if source is None:
            continue
        if source.env is not None and source.env not in os.environ:
            return f"secret {path[1]!r} is not set: export {source.env}"
        if source.file is not None and not (pipeline.loaded.root / Path(source.file).expanduser()).is_file():
            return f"secret {path[1]!r} is not there: no file {source.file} beside the spec"
    return None


@cache
def commit_of(folder: Path) -> str:
    """Return the commit that a folder is at, with `+dirty` where files differ from it; empty without git."""
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                timeout=_GIT_TIMEOUT,
                check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0] + ("+dirty" if said[1] else "")


@cache
def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _upstream(pipeline: Pipeline, origin: Origin) -> Upstream:
    if not origin.node:
        return Upstream(node=origin.port, uses="", artifact=pipeline.sources[origin.port].artifact)
    node = pipeline.graph.nodes[origin.node]
    return Upstream(origin.node, node.spec.uses, node.cls.metrics if issubclass(node.cls, Stage) else ())


def when(pipeline: Pipeline, node: Node, stages: Mapping[str, Any] | None) -> bool | None:
    """Return whether a node's `when` lets it run; None where that depends on stages that have not run.

    :raises SpecError: if the expression cannot be evaluated
    """
    value = node.spec.when
    if isinstance(value, bool):
        return value
    if stages is None and any(path[0] == "stages" for path in references(value)):
        return None
    answer = evaluate(value, {**pipeline.scope(node), **({"stages": stages} if stages is not None else {})})
    if not isinstance(answer, bool):
        where = pipeline.loaded.locate(("stages", node.index, "when"))
        message = f"{where}: `when` of {node.spec.id} came to {answer!r}; write a comparison"
        raise SpecError(message)
    return answer
