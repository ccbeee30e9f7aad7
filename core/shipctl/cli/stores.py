"""Which store a command works on: ``--store``, the environment, the spec's, or the project's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shipctl.cli.planning import environment_options
from shipctl.cli.specfile import specs_here
from shipctl.cli.types import PATH
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.engine.project import Project
    from shipctl.spec.models import StoreSpec

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def store_option(command: CommandT) -> CommandT:
    """Add ``--store URI`` as the argument ``store``."""
    return click.option(
        "--store",
        metavar="URI",
        help="The store: a folder, file:///path or s3://bucket/prefix; the spec's by default (also: SHIPCTL_STORE).",
    )(command)


def store_options(command: CommandT) -> CommandT:
    """Add all that :func:`chosen_store` takes: ``--store``, ``--spec``, ``-e`` and ``--set``.

    The command gets ``store``, ``spec``, ``environment`` and ``overrides``.
    """
    command = environment_options(command)
    command = click.option(
        "--spec", metavar="SPEC", type=PATH, help="The spec whose `store` is meant; the one here by default."
    )(command)
    return store_option(command)


def chosen_store(
    uri: str | None,
    spec: Path | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[StoreSpec, Path]:
    """Return the store that is meant, and the folder that its paths are relative to.

    In this order: ``uri`` (``--store``), the ``store`` of ``spec`` or else of the specs in `specs` and in the current
    folder where these agree, the variable SHIPCTL_STORE, and `.shipctl/store` of the project.

    :raises SpecError: if a spec is wrong, or the specs here name different stores
    """
    from shipctl.spec.models import StoreSpec

    if uri:
        return StoreSpec(uri=uri), Path.cwd()
    found: dict[tuple[StoreSpec, Path | None], tuple[StoreSpec, Path, Path]] = {}
    for path in [spec] if spec is not None else specs_here():
        store, base = _store_of(path, environment, overrides)
        anywhere = store.ca is None and ("://" in store.uri or Path(store.uri).is_absolute())
        found.setdefault((store, None if anywhere else base), (store, base, path))
    if len(found) > 1:
        lines = "".join(f"\n  {store.uri} in {path}" for store, _, path in found.values())
        message = f"the specs here name different stores; choose one with --store URI or --spec SPEC:{lines}"
        raise SpecError(message)
    for store, base, _ in found.values():
        return store, base
    return _default(None, Path.cwd(), chosen_project())


def chosen_project(spec: Path | None = None) -> Project:
    """Return the project of ``spec``, or else of the current folder."""
    from shipctl.engine.project import Project

    return Project.here(Path.cwd()) if spec is None else Project.of(spec)


def _store_of(path: Path, environment: str | None, overrides: Sequence[str]) -> tuple[StoreSpec, Path]:
    from shipctl.spec import load_spec

    loaded = load_spec(path, environment=environment, overrides=overrides)
    return _default(loaded.spec.store, loaded.root, chosen_project(path))


def _default(store: StoreSpec | None, base: Path, project: Project) -> tuple[StoreSpec, Path]:
    from shipctl.spec.models import StoreSpec
    from shipctl.store.objects import store_or_default

    chosen = store_or_default(store)
    return (StoreSpec(uri=str(project.store)), project.root) if chosen is None else (chosen, base)
