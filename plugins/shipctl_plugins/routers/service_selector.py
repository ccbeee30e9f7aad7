"""Router `service`: all connections to one revision, by what the app's Service selects; nothing has to be installed."""

from __future__ import annotations

from typing import Any, ClassVar

from shipctl.release.router import RouterOptions
from shipctl.release.target import Capability
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.traffic.selector import SelectorRouter


class ServiceOptions(RouterOptions):
    """There is nothing to choose."""


class ServiceSelector(SelectorRouter):
    """Switches at once from one revision to another."""

    api_version: ClassVar[int] = 1
    options_model = ServiceOptions
    capabilities = frozenset({Capability.PREVIEW})

    @classmethod
    def refuses(cls, traffic: Traffic, options: Any = None) -> str | None:
        """Say why it cannot distribute requests so, and what to do instead; None if it can."""
        if sum(1 for weight in traffic.weights.values() if weight) > 1:
            return (
                "the router service gives one revision everything, and no shares; choose the router replicas, "
                "gateway-api or istio"
            )
        return super().refuses(traffic, options)
