"""Release stage `publish`: a package goes to the store, is registered under its version, and aliases move to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from shipctl.errors import GateError, SpecError, UnavailableError
from shipctl.stages.artifacts import FileEntry, ModelPackage
from shipctl.stages.base import Phase, ReleaseStage, ReleaseState, Serving, StageInputs, StageOptions, Step
from shipctl.stages.context import CheckContext, ReleaseContext

if TYPE_CHECKING:
    from pathlib import Path

    from shipctl.spec.models import StoreSpec
    from shipctl.store.depot import Depot
    from shipctl.store.models import Description, ModelRegistry

PROGRESS_S = 5.0
"""Seconds between two lines about how far an upload is."""

Task = Literal["upload", "register", "alias"]
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


class PublishOptions(StageOptions):
    """What the version is to be called."""

    alias: Names = Field(
        default=(),
        description="Aliases that move to this version, such as staging; the old ones keep a history.",
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the version.")
    triton_repository: bool = Field(
        default=False,
        description="Also lay the Triton repository out under its own names, for servers that read it from the store; "
        "the tag `triton-repository` says where.",
    )


class PublishInputs(StageInputs):
    """What it takes."""

    package: ModelPackage


class PublishState(ReleaseState):
    """What it remembers between steps."""

    task: Task = Field(default="upload", description="What the next step does.")
    before: dict[str, str | None] = Field(
        default_factory=dict, description="Where each alias pointed before it was moved."
    )


class Publish(ReleaseStage[PublishOptions, PublishInputs, PublishState]):
    """Publish a package to the store and register it: the version is immutable, its aliases move."""

    api_version: ClassVar[int] = 1
    serves: ClassVar[bool] = False

    def target(self) -> str:
        """Return the target's name."""
        return "registry"

    def check(self, ctx: CheckContext) -> None:
        """Look whether the store can be reached with the credentials that are here."""
        from shipctl.errors import StoreError
        from shipctl.store.model_changes import check_alias

        for alias in self.options.alias:
            check_alias(alias)
        try:
            with _opened(ctx.store, ctx.base, ctx.project) as depot:
                depot.objects.check()
        except StoreError as exc:
            raise UnavailableError(str(exc)) from exc

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        """Say where the version goes and which aliases move."""
        with self._depot(ctx) as depot:
            registry = _registry(depot, ctx)
            state = registry.get(ctx.pipeline)
            known = state.versions.get(ctx.version) if state is not None else None
            what = "is registered" if known is not None else "will be registered"
            if known is not None and known.retired is not None:
                what = "was retired, so this will be refused: raise metadata.version; it is registered"
            lines = [f"{ctx.pipeline} {ctx.version} {what} in {depot.objects.uri}"]
            for alias in self.options.alias:
                now = state.aliases.get(alias) if state is not None else None
                if now != ctx.version:
                    lines.append(f"alias {alias} moves from {now or 'nothing'} to {ctx.version}")
            return lines

    def in_place(self, inputs: PublishInputs, ctx: ReleaseContext) -> bool:
        """Whether the version is registered with this package, and the aliases point at it."""
        with self._depot(ctx) as depot:
            state = _registry(depot, ctx).get(inputs.package.name)
            known = state.versions.get(inputs.package.version) if state is not None else None
            return (
                state is not None
                and known is not None
                and known.digest == inputs.package.digest
                and all(state.aliases.get(alias) == inputs.package.version for alias in self.options.alias)
            )

    def step(
        self, state: PublishState, inputs: PublishInputs, ctx: ReleaseContext
    ) -> tuple[PublishState, Step]:
        """Do the task that the state names; each finds out what of it is done already."""
        package = inputs.package
        reference = f"{package.name}@{package.version}"
        with self._depot(ctx) as depot:
            registry = _registry(depot, ctx)
            if state.task == "upload":
                self._free(registry, package)
                sent = depot.publish(package, moved=_Progress(ctx.log, reference, package.size))
                if self.options.triton_repository:
                    depot.lay_out(package.digest, _repository(package))
                message = (
                    f"{reference}: {sent.sent} files ({_bytes(sent.sent_bytes)}) sent to {depot.objects.uri}, "
                    f"{sent.reused} ({_bytes(sent.reused_bytes)}) were there"
                )
                return _next(state, "register"), Step(phase=Phase.PREPARING, message=message)
            if state.task == "register":
                with depot.leased(package.files, manifests=[package.digest]):
                    if depot.manifest(package.digest) is None:  # so long ago that it was collected since
                        return _next(state, "upload"), Step(
                            phase=Phase.PREPARING,
                            message=f"{reference} is not there any more, sending it again",
                        )
                    registry.register(
                        package,
                        lineage={**_lineage(package), "run": ctx.run, "signer": package.signer},
                        tags=self._tags(depot, package),
                        about=_about(package),
                    )
                message = f"{reference} is registered in {depot.objects.uri}"
                aliases = registry.state(package.name).aliases
                before = {alias: aliases.get(alias) for alias in self.options.alias}
                return _next(state, "alias", before=before), Step(phase=Phase.PROMOTING, message=message)
            if self.options.alias:
                registry.alias(reference, *self.options.alias)
            names = f" as {', '.join(self.options.alias)}" if self.options.alias else ""
            return state, Step(phase=Phase.DONE, message=f"{reference} is published{names}")

    def abort(
        self, state: PublishState, inputs: PublishInputs, ctx: ReleaseContext
    ) -> tuple[PublishState, Step]:
        """Move the aliases back. A version that is registered stays: others may have seen it."""
        package = inputs.package
        reference = f"{package.name}@{package.version}"
        if state.task == "upload" or not state.before:
            return state, Step(phase=Phase.REJECTED, message=f"{reference}: no alias was moved")
        with self._depot(ctx) as depot:
            registry = _registry(depot, ctx)
            aliases = registry.state(package.name).aliases
            for alias, before in state.before.items():
                if aliases.get(alias) != package.version:
                    continue
                if before is None:
                    registry.unalias(package.name, alias)
                else:
                    registry.alias(f"{package.name}@{before}", alias)
        had = any(before is not None for before in state.before.values())
        message = f"{reference} stays registered, its aliases point where they did"
        return state, Step(phase=Phase.ROLLED_BACK if had else Phase.REJECTED, message=message)

    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        """Return the versions of this pipeline's model that have an alias."""
        with self._depot(ctx) as depot:
            state = _registry(depot, ctx).get(ctx.pipeline)
            if state is None:
                return ()
            return [
                Serving(
                    name=ctx.pipeline,
                    version=version,
                    revision=known.digest,
                    since=known.registered,
                    healthy=True,
                    endpoints={"store": depot.objects.uri},
                    details={"aliases": ", ".join(state.aliases_of(version))},
                )
                for version, known in state.versions.items()
                if state.aliases_of(version)
            ]

    def _depot(self, ctx: ReleaseContext) -> AbstractContextManager[Depot]:
        return _opened(ctx.store, ctx.base, ctx.project)

    def _tags(self, depot: Depot, package: ModelPackage) -> dict[str, str]:
        from shipctl.store.depot import repository_prefix

        if not self.options.triton_repository:
            return self.options.tags
        place = f"{depot.objects.uri.rstrip('/')}/{repository_prefix(package.digest)}".rstrip("/")
        return {**self.options.tags, "triton-repository": place}

    @staticmethod
    def _free(registry: ModelRegistry, package: ModelPackage) -> None:
        """Refuse, before anything is sent, a version that is taken."""
        state = registry.get(package.name)
        known = state.versions.get(package.version) if state is not None else None
        if known is not None and known.digest != package.digest:
            message = (
                f"{package.name} {package.version} is already registered with another digest ({known.digest[:12]}…, "
                f"this one is {package.digest[:12]}…); versions are immutable: raise metadata.version"
            )
            raise GateError(message)


class _Progress:
    """Says now and then how much of an upload is done; called from several threads."""

    def __init__(self, log: Callable[[str], None], what: str, size: int) -> None:
        self._log = log
        self._what = what
        self._size = size
        self._sent = 0
        self._said = time.monotonic()

    def __call__(self, count: int) -> None:
        self._sent += count
        now = time.monotonic()
        if now - self._said >= PROGRESS_S:
            self._said = now
            self._log(f"{self._what}: {_bytes(self._sent)} of at most {_bytes(self._size)} sent")


def _opened(store: StoreSpec | None, base: Path, project: Path) -> Depot:
    from shipctl.engine.project import Project
    from shipctl.store.depot import open_depot
    from shipctl.store.local import LocalStore

    return open_depot(store, base, LocalStore(Project(project).store))


def _registry(depot: Depot, ctx: ReleaseContext) -> ModelRegistry:
    from shipctl.engine.project import Project
    from shipctl.store.models import ModelRegistry

    return ModelRegistry(depot.objects, heads=Project(ctx.project).heads())


def _next(state: PublishState, task: Task, **changes: object) -> PublishState:
    return state.model_copy(update={"task": task, **changes})


def _bytes(count: int) -> str:
    """Write a number of bytes for a person."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004  (the prefixes of SI)
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _repository(package: ModelPackage) -> dict[str, FileEntry]:
    """Return the files of the Triton repository in a package by their names in it.

    :raises SpecError: if there is none
    """
    from shipctl.evidence.package import read_manifest

    found = read_manifest(package.root).artifact("repository")
    if found is None:
        message = (
            f"{package.name}@{package.version} has no Triton repository to lay out; let `package` take one (stage "
            "`triton-config`), or leave out triton_repository"
        )
        raise SpecError(message)
    prefix = f"{found.path.rstrip('/')}/"
    return {
        entry.path.removeprefix(prefix): entry for entry in package.files if entry.path.startswith(prefix)
    }


def _about(package: ModelPackage) -> Description:
    from shipctl.evidence.package import read_manifest
    from shipctl.store.models import Description

    manifest = read_manifest(package.root)
    return Description(
        metrics=manifest.metrics,
        labels=manifest.labels,
        owner=manifest.owner,
        description=manifest.description,
        license=manifest.license,
        contains={item.role: item.digest for item in manifest.artifacts},
    )


def _lineage(package: ModelPackage) -> dict[str, Any]:
    """Return which spec and which sources a package was made from, as far as its provenance says."""
    from shipctl.evidence.package import PROVENANCE
    from shipctl.evidence.provenance import read_statement

    path = package.root / PROVENANCE
    if not path.is_file():
        return {}
    build = read_statement(path.read_bytes())["predicate"]["buildDefinition"]
    sources: dict[str, str] = {}
    revision = None
    for item in build.get("resolvedDependencies", ()):
        notes = item.get("annotations", {})
        if "artifact" in notes:
            sources[notes["source"]] = notes["artifact"]
        if item.get("name") == "revision":
            revision = next(iter(item["digest"].values()))
    return {
        "spec": build["externalParameters"].get("spec", {}).get("sha256"),
        "data": {name: digest for name, digest in sources.items() if name != "model"},
        "model": sources.get("model"),
        "revision": revision,
    }
