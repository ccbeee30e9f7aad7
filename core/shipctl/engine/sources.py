"""What the spec itself brings into the pipeline: its model and its data, as artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from shipctl.engine.filecache import FileCache
from shipctl.engine.project import Project
from shipctl.engine.source_files import Finder, entries
from shipctl.errors import SpecError
from shipctl.records import digest_of
from shipctl.stages.artifacts import Artifact, ModelPackage, OnnxModel
from shipctl.store.local import LocalStore
from shipctl.store.objects import store_or_default
from shipctl.store.sources import source_scheme

if TYPE_CHECKING:
    from shipctl.spec import LoadedSpec, Problems

REGISTRY = "registry:/"
"""Begins the URI of a package that is published in the spec's store: registry:/NAME@VERSION or NAME@ALIAS."""


@dataclass(frozen=True)
class Source:
    """An artifact that the spec brings."""

    artifact: Artifact
    places: Mapping[str, Path]
    """Path in the artifact to the file on this machine; empty for what is in the store already."""
    pinned: str = ""
    """What the URI meant when it was looked up, where it may mean something else tomorrow."""


def find_sources(
    loaded: LoadedSpec, project: Project, store: LocalStore, cache: FileCache, problems: Problems
) -> dict[str, Source]:
    """Return `model` and every `data.<name>`; what is not there is added to ``problems``.

    What is registered in a store is only looked up; a model from elsewhere is fetched once per version, because
    nothing can be planned without its digest.

    :raises StoreError: if a store or another source cannot be reached
    """
    found: dict[str, Source] = {}
    model = loaded.spec.model
    if model is not None:
        source = _model(loaded, project, store, cache, problems)
        if source is not None:
            found["model"] = source
    for name, data in loaded.spec.data.items():
        samples = Finder(loaded.root, cache, problems, ("data", name)).data(data)
        if samples is not None:
            found[f"data.{name}"] = Source(samples.artifact, samples.places)
    return found


def registered_name(loaded: LoadedSpec) -> str | None:
    """Return the name of the registered model that a spec ships; None for one that it builds."""
    model = loaded.spec.model
    if model is None or not model.uri.startswith(REGISTRY):
        return None
    return model.uri.removeprefix(REGISTRY).partition("@")[0]


def _registered(uri: str, loaded: LoadedSpec, project: Project, store: LocalStore) -> Source:
    """Look a published package up; its files are fetched when a stage needs them.

    :raises SpecError: if it is not registered
    """
    from shipctl.store.depot import open_depot
    from shipctl.store.model_reading import ModelReader

    with open_depot(store_or_default(loaded.spec.store), loaded.root, store) as depot:
        version = ModelReader(depot.objects, heads=project.heads()).resolve(uri.removeprefix(REGISTRY))
        package = store.artifact(ModelPackage, version.package)
        store.expect(package.files)
        return Source(package, {}, f"{REGISTRY}{version.name}@{version.version}")


def _check_version(source: Source, loaded: LoadedSpec, problems: Problems) -> None:
    """Let nothing be released under another version than that of the package."""
    said, package = loaded.spec.metadata.version, source.artifact
    if isinstance(package, ModelPackage) and package.version != said:
        problems.add(
            ("metadata", "version"),
            f"the model is {source.pinned.removeprefix(REGISTRY)}, and this spec ships version {said}; write "
            f"`version: {package.version}`, or --set metadata.version={package.version}",
        )


def _fetched(uri: str, loaded: LoadedSpec, project: Project, cache: FileCache) -> Source:
    """Bring a model from elsewhere into the project's state, once per version.

    :raises SpecError: if the URI names nothing that can be shipped
    :raises StoreError: if it cannot be had
    """
    from shipctl.store.sources import open_source

    source = open_source(uri)
    store = store_or_default(loaded.spec.store)
    resolved = source.resolve(uri, base=loaded.root, store=store)
    folder = project.state / "sources" / digest_of(resolved.identity)
    if not folder.is_dir():
        project.create()
        folder.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".") as name:
            twin = Path(name) / "model"
            twin.mkdir()
            source.fetch(resolved, twin, base=loaded.root, store=store)
            try:
                twin.rename(folder)
            except OSError:
                if not folder.is_dir():  # else somebody else was as quick
                    raise
    named = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    files, places = entries(named, cache)
    model = loaded.spec.model
    assert model is not None  # noqa: S101  (the caller asked)
    assert model.signature is not None  # noqa: S101  (asked before)
    return Source(OnnxModel(files=files, signature=model.signature), places, resolved.pinned)


def _model(
    loaded: LoadedSpec, project: Project, store: LocalStore, cache: FileCache, problems: Problems
) -> Source | None:
    model = loaded.spec.model
    assert model is not None  # noqa: S101  (the caller asked)
    try:
        if model.uri.startswith(REGISTRY):
            source = _registered(model.uri, loaded, project, store)
            _check_version(source, loaded, problems)
            return source
    except SpecError as exc:
        problems.add(("model", "uri"), str(exc))
        return None
    if source_scheme(model.uri) is not None and model.signature is not None:
        try:
            return _fetched(model.uri, loaded, project, cache)
        except SpecError as exc:
            problems.add(("model", "uri"), str(exc))
            return None
    found = Finder(loaded.root, cache, problems, ("model",)).model(model)
    return Source(found.artifact, found.places) if found is not None else None


def objectives(loaded: LoadedSpec) -> dict[str, dict[str, Any]]:
    """Return what stages may know of the spec as a whole: see :class:`~shipctl.stages.context.Objectives`."""
    spec = loaded.spec
    slo: dict[str, float] = {}
    for name, value in spec.slo:
        if name == "latency":
            slo.update({f"latency.{key}": float(bound) for key, bound in value if bound is not None})
        elif value is not None:
            slo[name] = float(value)
    budget = {name: float(value) for name, value in spec.budget if value is not None}
    data = {
        name: {
            key: float(value) if isinstance(value, float) else value
            for key, value in item
            if key in {"metric", "min"} and value is not None
        }
        for name, item in spec.data.items()
    }
    return {
        "pipeline": {"name": spec.metadata.name},
        "slo": slo,
        "budget": budget,
        "data": data,
        "metadata": spec.metadata.model_dump(mode="json", exclude_none=True),
    }
