"""Targets by name: `local`, or `{uses: kubernetes, with: {…}}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from shipctl.release.references import Kind, Reference, name_of
from shipctl.release.target import TARGET_GROUP, ReleaseTarget
from shipctl.stages.context import CheckContext, ReleaseContext

TARGETS: Kind[ReleaseTarget] = Kind(TARGET_GROUP, ReleaseTarget, "target")  # type: ignore[type-abstract]


def target_name(reference: str | Mapping[str, Any] | Reference) -> str:
    """Return the name of the target that is meant; nothing is looked up."""
    return name_of(reference)


def target_class(
    reference: str | Mapping[str, Any] | Reference, installed: Iterable[EntryPoint] | None = None
) -> tuple[type[ReleaseTarget], Any]:
    """Return the class of the target that is meant, and its options; ``installed`` is for tests.

    :raises SpecError: if it is not installed, or its options are wrong
    :raises PluginError: if it does not work
    """
    return TARGETS.resolve(reference, installed)


def open_target(
    reference: str | Mapping[str, Any] | Reference,
    ctx: ReleaseContext,
    installed: Iterable[EntryPoint] | None = None,
) -> ReleaseTarget:
    """Return the target that is meant. Nothing is connected or started yet.

    :raises SpecError: as :func:`target_class`
    :raises PluginError: as :func:`target_class`
    """
    plugin, options = target_class(reference, installed)
    return plugin(options, ctx)


def check_target(
    reference: str | Mapping[str, Any] | Reference,
    ctx: CheckContext,
    installed: Iterable[EntryPoint] | None = None,
) -> None:
    """Look, before anything has run, whether the target exists, is used rightly, and can be reached.

    :raises ShipctlError: if not
    """
    plugin, options = target_class(reference, installed)
    plugin.check(options, ctx)
