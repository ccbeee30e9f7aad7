"""What moves traffic: a proxy, a mesh, a gateway, or a ratio of replicas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from shipctl.records import Record
from shipctl.release.traffic import Traffic


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
