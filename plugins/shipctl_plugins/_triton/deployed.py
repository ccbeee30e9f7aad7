"""What one pipeline has on this machine: its record, its replicas, its door. Only looked at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shipctl.errors import StageError
from shipctl.release.lease import FileLease
from shipctl.release.router import Backend, Routed
from shipctl.release.target import Observation, Replicas
from shipctl.release.traffic import Traffic
from shipctl.stages.base import Serving
from shipctl_plugins._envoy.config import BY_WATCHDOG
from shipctl_plugins._envoy.proxy import DoorPorts, Proxy
from shipctl_plugins._triton.environment import ServerEnvironment, ensure_server_environment
from shipctl_plugins._triton.probe import answers_as_recorded
from shipctl_plugins._triton.releases import ModelRecord, Releases
from shipctl_plugins._triton.replicas import ReplicaSet, replica_sets
from shipctl_plugins._triton.server import TritonServer
from shipctl_plugins._triton.single_server import single_server
from shipctl_plugins._triton.surge import Room, room

DOOR_S = 5.0
"""How long a door that died may take until its supervisor has it again."""
_POLL_S = 0.2
Backends = dict[str, tuple[Backend, ...]]


@dataclass
class Deployed:
    """What one pipeline has in a target's folder, and looks at it. Nothing here changes anything."""

    folder: Path
    """The target's own folder, absolute."""
    pipeline: str
    door: Proxy
    lease: FileLease
    ports: DoorPorts = DoorPorts()  # noqa: RUF009  (frozen)
    replicas: int = 2
    memory: int | None = None
    """Bytes that one replica needs; None to measure it."""
    log: Callable[[str], None] = print
    now: Callable[[], float] = time.time
    make_environment: Callable[[Callable[[str], None]], ServerEnvironment] = ensure_server_environment
    releases: Releases = field(init=False)

    def __post_init__(self) -> None:
        self.releases = Releases(self.folder)

    # -- what there is --------------------------------------------------------------------------------------

    def known(self) -> tuple[str, ModelRecord] | None:
        """Return the pipeline's model and what is recorded of it; None before the first release."""
        models = self.releases.record().models.items()
        ours = [(name, known) for name, known in models if known.pipeline == self.pipeline]
        return max(ours, key=lambda item: (item[1].since or 0.0, _last(item[1])), default=None)

    @property
    def model(self) -> str | None:
        """The model's name in Triton; None before the first release."""
        known = self.known()
        return known[0] if known else None

    def versions(self) -> dict[str, str]:
        """Return revision to Triton's version number."""
        known = self.known()
        return {entry.revision: str(entry.number) for entry in known[1].published} if known else {}

    def observe(self) -> Observation:
        """Look at everything. Reads only."""
        lease = self.lease.read()
        epoch = lease.epoch if lease else 0
        found = self.known()
        routed = self.routed()
        traffic = routed.traffic if routed else Traffic()
        shifted = routed.since if routed else None
        rescued = routed is not None and routed.etag.endswith(BY_WATCHDOG)
        if found is None:
            return Observation(traffic=traffic, shifted=shifted, epoch=epoch, rescued=rescued)
        model, known = found
        replicas: dict[str, Replicas] = {}
        for group in replica_sets(self.releases, model):
            entry = known.by_number(group.number)
            if group.number not in {known.stable, known.previous} and group.lost:
                continue  # the machine was switched off meanwhile: it has to be prepared anew
            seen = group.look(self.door.ready if routed else None)
            if entry is not None and seen is not None:
                replicas[entry.revision] = seen
        stable, previous = known.serving, known.by_number(known.previous)
        return Observation(
            stable=stable.revision if stable else None,
            previous=previous.revision if previous and previous.revision in replicas else None,
            replicas=replicas,
            traffic=traffic,
            shifted=shifted,
            epoch=epoch,
            rescued=rescued,
        )

    def endpoints(self) -> dict[str, str]:
        """Return the door's addresses and where each replica shows its metrics."""
        found = self.known()
        addresses = dict(self.door.endpoints) if self.door.running else {}
        for group in replica_sets(self.releases, found[0]) if found else ():
            record = group.record()
            if record is not None:
                for server in group.servers():
                    name = f"metrics/{record.revision[:12]}/{server.state.parent.name}"
                    addresses[name] = server.endpoints["metrics"]
        return addresses

    def status(self) -> list[Serving]:
        """Return what this pipeline serves."""
        found = self.known()
        stable = found[1].serving if found else None
        if found is None or stable is None:
            return []
        model, known = found
        group = self.group(model, stable.number)
        details = {"triton version": str(stable.number), "artifact": stable.digest}
        if not known.behind_door:
            server = single_server(self.releases)
            probe = self.releases.probe(model, stable.number)
            endpoints = server.endpoints if server else {}
            healthy = server is not None and answers_as_recorded(server.api, model, probe)
            details |= {"pid": str(server.record.pid), "log": str(server.record.log)} if server else {}
        else:
            routed = self.routed()
            seen = group.look(self.door.ready if routed else None)
            weight = routed.traffic.weight(stable.revision) if routed else 0
            endpoints = self.endpoints()
            healthy = bool(weight and seen and seen.ready)
            servers = group.servers()
            details["replicas"] = f"{seen.ready} of {seen.wanted} ready" if seen else "none"
            details["traffic"] = f"{weight} %"
            details |= self._beside(stable.revision)
            details["pids"] = ", ".join(str(server.record.pid) for server in servers)
            details["logs"] = str(group.folder)
            if seen and seen.problem:
                details["problem"] = seen.problem
        serving = Serving(
            name=model,
            version=stable.version,
            revision=stable.revision,
            since=known.since or stable.at,
            healthy=healthy,
            endpoints={name: address for name, address in endpoints.items() if name != "admin"},
            details=details,
        )
        return [serving]

    def _beside(self, stable: str) -> dict[str, str]:
        """Return what a release has put beside the stable revision, a line each."""
        seen = self.observe()
        others = [(revision, item) for revision, item in seen.replicas.items() if revision != stable]
        lines = [
            f"{item.version} ({revision[:12]}): {item.ready} of {item.wanted} ready, "
            f"{seen.traffic.weight(revision)} % of the traffic"
            for revision, item in others
        ]
        return {"beside it": "; ".join(lines)} if lines else {}

    def room(self, files: int | None = None) -> Room:
        """Return whether there is room for a candidate of ``files`` bytes (None: as large as the last one)."""
        found = self.known()
        running: list[TritonServer] = []
        if found is not None:
            model, known = found
            running = [server for group in replica_sets(self.releases, model) for server in group.servers()]
            if files is None and known.published:
                last = self.releases.release(model, known.published[-1].number)
                files = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
        return room(
            self.folder, servers=self.replicas + 1, each=self.memory, running=running, files=files or 0
        )

    def environment(self) -> ServerEnvironment:
        """Return the servers' environment, made once per user."""
        return self.make_environment(self.log)

    def routed(self) -> Routed | None:
        """Return what the door does; None where none runs. One that has just died is waited for.

        :raises StageError: if it does not answer
        """
        deadline = time.monotonic() + DOOR_S
        while True:
            try:
                return self.door.get()
            except StageError:
                if not self.door.processes.supervisor.alive:  # then nobody starts it again
                    return None
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def group(self, model: str, number: int) -> ReplicaSet:
        return ReplicaSet(self.releases, model, number)


def _last(known: ModelRecord) -> float:
    return known.published[-1].at if known.published else 0.0
