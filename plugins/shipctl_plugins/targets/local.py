"""Target `local`: Triton servers on this machine behind a door of their own, which is an Envoy on loopback."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from shipctl.errors import StageError, UnavailableError
from shipctl.release.strategy import Strategy
from shipctl.release.target import (
    LEASE_SECONDS,
    Action,
    Applied,
    Candidate,
    Capability,
    Commit,
    Observation,
    Preflight,
    Prepare,
    ScaleDown,
    Shift,
    Target,
    TargetOptions,
)
from shipctl.spec.units import Duration, Size
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl_plugins._envoy.environment import check_platform
from shipctl_plugins._envoy.proxy import DoorPorts, Proxy
from shipctl_plugins._triton.deployment import Deployment
from shipctl_plugins._triton.environment import find_server_python
from shipctl_plugins._triton.golden import Tolerance

Port = Annotated[int, Field(ge=0, le=65535)]


class LocalOptions(TargetOptions):
    """How many servers, where their door listens, and how careful the preflight is."""

    http_port: Port = Field(
        default=0, description="The door's port of HTTP on loopback; 0 chooses a free one once and keeps it."
    )
    grpc_port: Port = Field(default=0, description="The door's port of gRPC on loopback; 0 as above.")
    replicas: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Servers of each revision; with two or more, one that dies is stood in for.",
    )
    memory: Size | None = Field(
        default=None,
        description="Memory that one server needs; left out, what those that run take, or 192 MiB.",
    )
    preflight_timeout: Duration = Field(
        default=Duration("120s"), description="How long loading and answering may take in a preflight, each."
    )
    golden: Tolerance = Field(
        default=Tolerance(), description="How far an answer may be from the golden one."
    )


class Local(Target):
    """Serve on this machine: per revision a few Triton servers, one door for all requests."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[TargetOptions]] = LocalOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)
    options: LocalOptions

    def __init__(self, options: LocalOptions, ctx: ReleaseContext) -> None:
        super().__init__(options, ctx)
        self.deployment = deployment(ctx.target_dir, ctx.pipeline, options, ctx)

    @classmethod
    def check(cls, options: LocalOptions, ctx: CheckContext) -> None:
        """Look for an interpreter that the servers can live with, and for room; nothing is installed yet."""
        find_server_python()
        check_platform()
        room = deployment(ctx.project / ".shipctl" / "targets" / "local", ctx.pipeline, options).room()
        if room.problem:
            raise UnavailableError(room.problem)

    def acquire(self, holder: str) -> int:
        """Take or renew the lease, and have what is stable serve again if it does not."""
        epoch = self.deployment.lease.acquire(holder, LEASE_SECONDS)
        self.deployment.ensure_serving(epoch)
        return epoch

    def release(self, epoch: int) -> None:
        """Give the lease back."""
        self.deployment.lease.release(epoch)

    def observe(self, candidate: str | None = None) -> Observation:
        """Look at the record, the replicas and the door."""
        return self.deployment.observe()

    def apply(self, action: Action, candidate: Candidate | None, epoch: int) -> Applied:
        """Do one act; see :class:`shipctl_plugins._triton.deployment.Deployment`."""
        here = self.deployment
        here.lease.check(epoch)
        match action:
            case Prepare():
                return Applied(message=here.prepare(_needed(candidate)))
            case Preflight():
                timeout = float(self.options.preflight_timeout)
                message, verdicts = here.preflight(_needed(candidate), self.options.golden, timeout)
                return Applied(message=message, verdicts=verdicts)
            case Shift():
                return Applied(message=here.shift(action.traffic, epoch))
            case Commit():
                return Applied(message=here.commit(action.expected, action.revision, epoch))
            case ScaleDown():
                return Applied(message=here.scale_down(action.revision, epoch))

    def preview(self, candidate: str, strategy: Strategy | None = None) -> Sequence[str]:
        """Say what serves, and what is started beside it."""
        room = self.deployment.room()
        beside = (
            f"{self.options.replicas} servers of it are started beside what serves, about {room.each / 2**20:.0f} MiB "
            f"each; {room.memory / 2**20:.0f} MiB are available"
        )
        serving = self.deployment.status()
        if not serving:
            return [
                "nothing serves: the door opens once the first version has passed its preflight",
                beside,
            ]
        return [
            *(
                f"{item.name} {item.version} (Triton version {item.details['triton version']}, revision "
                f"{item.revision[:12]}) serves"
                for item in serving
            ),
            beside,
        ]

    def endpoints(self) -> dict[str, str]:
        """Return `http`, `grpc` and `admin` of the door, and `metrics/<revision>/<replica>` of each server."""
        return self.deployment.endpoints()

    def status(self) -> Sequence[Serving]:
        """Return what this pipeline serves here."""
        return self.deployment.status()

    def down(self) -> Sequence[str]:
        """Stop the servers and the door; what is published stays."""
        return self.deployment.down()

    def versions(self) -> dict[str, str]:
        """Return revision to Triton's version number."""
        return self.deployment.versions()

    def replay(self, candidate: Candidate, rate: float | None) -> None:
        """Send golden samples through the door for as long as this process lives; None stops that."""
        self.deployment.replay(candidate, rate)

    @property
    def model(self) -> str | None:
        """The model's name in Triton; None before the first release."""
        return self.deployment.model

    @property
    def logs(self) -> Path | None:
        """The door's folder, with its access log."""
        return self.deployment.door.access_log.parent


def deployment(
    target_dir: Path, pipeline: str, options: LocalOptions, ctx: ReleaseContext | None = None
) -> Deployment:
    """Return what a pipeline has below a target's folder."""
    folder = (target_dir / "triton").absolute()
    log, now = (ctx.log, ctx.now) if ctx is not None else (print, time.time)
    door = Proxy(folder / "doors" / pipeline, log=log, now=now)
    return Deployment(
        folder=folder,
        pipeline=pipeline,
        door=door,
        lease=door.lease,
        ports=DoorPorts(http=options.http_port, grpc=options.grpc_port),
        replicas=options.replicas,
        memory=options.memory,
        log=log,
        now=now,
    )


def _needed(candidate: Candidate | None) -> Candidate:
    if candidate is None:
        message = "there is nothing to release"
        raise StageError(message)
    return candidate
