"""Metric providers by name: `access-log`, or `{uses: prometheus, with: {…}}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from shipctl.release.metrics import METRIC_GROUP, MetricContext, MetricProvider
from shipctl.release.references import Kind, Reference
from shipctl.stages.context import CheckContext

PROVIDERS: Kind[MetricProvider] = Kind(METRIC_GROUP, MetricProvider, "metric provider")  # type: ignore[type-abstract]


def provider_class(
    reference: str | Mapping[str, Any] | Reference, installed: Iterable[EntryPoint] | None = None
) -> tuple[type[MetricProvider], Any]:
    """Return the class of the provider that is meant, and its options; ``installed`` is for tests.

    :raises SpecError: if it is not installed, or its options are wrong
    :raises PluginError: if it does not work
    """
    return PROVIDERS.resolve(reference, installed)


def open_provider(
    reference: str | Mapping[str, Any] | Reference,
    ctx: MetricContext,
    installed: Iterable[EntryPoint] | None = None,
) -> MetricProvider:
    """Return the provider that is meant. Nothing is connected or read yet.

    :raises SpecError: as :func:`provider_class`
    :raises PluginError: as :func:`provider_class`
    """
    plugin, options = provider_class(reference, installed)
    return plugin(options, ctx)


def check_provider(
    reference: str | Mapping[str, Any] | Reference,
    ctx: CheckContext,
    installed: Iterable[EntryPoint] | None = None,
) -> None:
    """Prove, before anything has run, that the provider exists, is used rightly, and can be asked.

    :raises ShipctlError: if not
    """
    plugin, options = provider_class(reference, installed)
    plugin.check(options, ctx)
