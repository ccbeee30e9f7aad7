"""Routers by name: `gateway-api`, or `{uses: gateway-api, with: {…}}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from shipctl.release.references import Kind, Reference
from shipctl.release.router import ROUTER_GROUP, RouterContext, TrafficRouter

ROUTERS: Kind[TrafficRouter] = Kind(ROUTER_GROUP, TrafficRouter, "router")  # type: ignore[type-abstract]


def router_class(
    reference: str | Mapping[str, Any] | Reference, installed: Iterable[EntryPoint] | None = None
) -> tuple[type[TrafficRouter], Any]:
    """Return the class of the router that is meant, and its options; ``installed`` is for tests.

    :raises SpecError: if it is not installed, or its options are wrong
    :raises PluginError: if it does not work
    """
    return ROUTERS.resolve(reference, installed)


def open_router(
    reference: str | Mapping[str, Any] | Reference,
    ctx: RouterContext,
    installed: Iterable[EntryPoint] | None = None,
) -> TrafficRouter:
    """Return the router that is meant. Nothing is asked or changed yet.

    :raises SpecError: as :func:`router_class`
    :raises PluginError: as :func:`router_class`
    """
    plugin, options = router_class(reference, installed)
    return plugin(options, ctx)
