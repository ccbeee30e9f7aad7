"""What moves traffic: a proxy, a mesh, a gateway, or a ratio of replicas.

A target that leaves the choice to the spec finds its routers through the entry-point group ``shipctl.routers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from shipctl.records import Record
from shipctl.release.target import Capability
from shipctl.release.traffic import Traffic
from shipctl.stages.context import CheckContext

ROUTER_GROUP = "shipctl.routers"


class RouterOptions(Record):
    """Base of a router's options: what stands below ``router: {uses: …, with: …}``."""


@dataclass(frozen=True)
class RouterContext:
    """What a target tells its router."""

    name: str
    """What clients know the model by on the target; the router names what it makes after it."""
    access: Any = None
    """How the target is reached. For Kubernetes: a ``shipctl_plugins._kubernetes.app.Place``."""
    guard: Callable[[int], None] = field(default=lambda _epoch: None)
    """Raises :class:`StaleEpochError` if somebody else has taken over since that epoch."""
    log: Callable[[str], None] = print
    now: Callable[[], float] = field(default=lambda: __import__("time").time())


class Backend(Record):
    """One replica as the router reaches it."""

    name: str = Field(description="Names it in logs and metrics.")
    http: str = Field(description="host:port of HTTP.")
    grpc: str = Field(description="host:port of gRPC.")


class Routed(Record):
    """What a router does at this moment, as it says itself, not as it was told."""

    traffic: Traffic = Field(description="The effective distribution: a ratio of replicas rounds weights.")
    backends: dict[str, tuple[Backend, ...]] = Field(
        default_factory=dict, description="Revision to its replicas."
    )
    since: float | None = Field(
        default=None, description="When this took effect, seconds since the epoch; None while it has not."
    )
    etag: str = Field(default="", description="Names this state for :meth:`TrafficRouter.set`.")


class TrafficRouter(ABC):
    """Weights, headers and copies. Every change says from which state it was made, and who is allowed to make it."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[RouterOptions]] = RouterOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    """What a target can do with it: WEIGHTS between 0 and 100, HEADERS, MIRROR, PREVIEW."""

    def __init__(self, options: Any, ctx: RouterContext) -> None:
        self.options = options
        self.ctx = ctx

    @classmethod  # noqa: B027  (not every one has anything to look at)
    def check(cls, options: Any, ctx: CheckContext, access: Any = None) -> None:
        """Look, before anything has run, whether what it stands on is there; ``access`` is as in the context.

        :raises ShipctlError: if not
        """

    def effective(self, traffic: Traffic, replicas: Mapping[str, int]) -> Traffic:
        """Return what ``traffic`` comes to where these revisions have so many replicas each."""
        return traffic

    @abstractmethod
    def get(self) -> Routed:
        """Return what is in effect.

        :raises StageError: if the router cannot be asked
        """

    @abstractmethod
    def set(
        self, traffic: Traffic, backends: Mapping[str, tuple[Backend, ...]], *, etag: str, epoch: int
    ) -> Routed:
        """Distribute requests so, and return once that is in effect. The same again changes nothing.

        :raises StaleEpochError: if somebody else has taken over since ``epoch``
        :raises StageError: if the state is not ``etag`` any more, or it does not take effect
        """
