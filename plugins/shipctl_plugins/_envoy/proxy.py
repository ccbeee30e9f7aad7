"""The door of one model: an Envoy and its supervisor, as a :class:`~shipctl.release.router.TrafficRouter`."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipctl.errors import LockedError, StageError
from shipctl.records import digest_of
from shipctl.release.lease import FileLease
from shipctl.release.router import Backend, Routed, TrafficRouter
from shipctl.release.target import Capability, StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl_plugins._envoy import config
from shipctl_plugins._envoy.admin import Admin
from shipctl_plugins._envoy.bootstrap import Listening, bootstrap
from shipctl_plugins._envoy.clusters import clusters_response
from shipctl_plugins._envoy.config import COMPARATOR, LOOPBACK, Table
from shipctl_plugins._envoy.environment import ensure_envoy_environment
from shipctl_plugins._envoy.processes import Processes, choose_ports

ANSWER_SECONDS = 10.0
"""How long Envoy may take to answer, or to do what its files say; a start of it takes under a second."""
_CDS, _RDS = "cluster_manager.cds", f"http.http.rds.{config.ROUTES}"
_POLL_S = 0.02
_SPREAD_S = 0.02
"""Between Envoy's main thread, which we ask, and its workers, which route: these hear of a change a little later."""


class _RejectedError(StageError):
    """Envoy has read what it was told, and does not take it."""


@dataclass(frozen=True)
class DoorPorts:
    """Where a door listens; 0 means that a free port is chosen once and kept."""

    http: int = 0
    grpc: int = 0
    admin: int = 0


class Proxy(TrafficRouter):
    """One door. Any number of these objects, in any number of processes, may stand for the same ``folder``."""

    capabilities = frozenset({Capability.WEIGHTS, Capability.HEADERS, Capability.MIRROR, Capability.PREVIEW})

    def __init__(
        self,
        folder: Path,
        *,
        log: Callable[[str], None] = print,
        now: Callable[[], float] = time.time,
        make_environment: Callable[[Callable[[str], None]], Path] = ensure_envoy_environment,
    ) -> None:
        """``make_environment`` returns the Envoy binary."""
        self.folder = folder.absolute()
        self.log = log
        self.make_environment = make_environment
        self.lease = FileLease(self.folder / "lease.json", now)
        self.processes = Processes(self.folder)

    # -- the processes --------------------------------------------------------------------------------------

    @property
    def ports(self) -> Listening | None:
        """Where the door listens, or did when it last ran."""
        try:
            return Listening(**json.loads((self.folder / "ports.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def endpoints(self) -> dict[str, str]:
        """Protocol to address; empty before the first start."""
        ports = self.ports
        if ports is None:
            return {}
        return {
            "http": f"http://{LOOPBACK}:{ports.http}",
            "grpc": f"{LOOPBACK}:{ports.grpc}",
            "admin": f"http://{LOOPBACK}:{ports.admin}",
        }

    @property
    def access_log(self) -> Path:
        """One line per request, see :mod:`shipctl_plugins._envoy.access_log`."""
        return self.folder / "access.jsonl"

    @property
    def running(self) -> bool:
        """Whether Envoy runs, and the supervisor that watches over it."""
        return self.processes.envoy.alive and self.processes.supervisor.alive

    def ensure(self, ports: DoorPorts = DoorPorts(), *, servers: Sequence[Path] | None = None) -> None:
        """Have Envoy and its supervisor run. What runs already is kept, with all its connections.

        ``servers`` is as for :meth:`keep`; None leaves the list as it is. A door that is new is closed.

        :raises StageError: if it listens elsewhere than ``ports`` demands, a port is taken, or it does not start
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if servers is not None:
                self.keep(servers)
            if self.processes.envoy.alive or self.processes.supervisor.alive:
                self._check_ports(ports)
            else:
                self._start(ports)
            if self.processes.start_supervisor():
                self.log(
                    f"the supervisor of the door {self.folder.name} watches (pid {self.processes.supervisor.pid})"
                )
            self._wait(self._admin.ready, "does not answer")
            if (table := self._on_disk()) is not None:
                self._await_routes(table.etag)

    def keep(self, servers: Sequence[Path]) -> None:
        """Have the supervisor start these servers again when they die, and none that it was told of before.

        Each is a folder with the `server-start.json` and `server.json` of a :class:`TritonServer`. Take a server off
        the list before stopping it.
        """
        _replace(self.folder / "keep.json", [str(server.absolute()) for server in servers])

    def stop(self) -> list[str]:
        """End the supervisor and Envoy, close the door for the next start, and say what was stopped."""
        if not self.folder.is_dir():
            return []
        with self._alone():
            said = []
            if self.processes.supervisor.stop():
                said.append(f"the supervisor of the door {self.folder.name}")
            if self.processes.envoy.stop():
                where = self.endpoints
                said.append(f"the door {self.folder.name} on {where.get('http')} and {where.get('grpc')}")
            for name in ("routes.json", "clusters.json", "keep.json"):
                (self.folder / name).unlink(missing_ok=True)
            return said

    # -- the traffic ----------------------------------------------------------------------------------------

    def get(self) -> Routed:
        """Return what Envoy says is in effect; one that has just died is waited for.

        :raises StageError: if it does not run or does not answer
        """
        if self.processes.supervisor.alive:
            self._wait(self._admin.ready, "does not answer")
        found = self._admin.routes()
        if found is None:
            message = f"the door {self.folder.name} has no routes yet"
            raise StageError(message)
        on_disk = self._on_disk()
        effective = on_disk is not None and on_disk.etag == found.version
        since: float | None = found.since
        if effective:  # Envoy reads its files anew when it is started again, and nothing has changed by that
            written = (self.folder / "routes.json").stat().st_mtime
            since = min(found.since, written + ANSWER_SECONDS)
        return Routed(
            traffic=found.table.traffic,
            backends=found.table.backends,
            since=since if effective else None,
            etag=found.version,
        )

    def set(
        self, traffic: Traffic, backends: Mapping[str, tuple[Backend, ...]], *, etag: str, epoch: int
    ) -> Routed:
        """Distribute requests so; those that are under way end where they began.

        :raises StaleEpochError: if somebody else has taken over since ``epoch``
        :raises LockedError: if another process acts on the door and does not finish
        :raises StageError: if a revision has no replicas, the state is not ``etag`` any more, or Envoy does not
            take it; what was in effect before then still is
        """
        _check_reachable(traffic, backends)
        with self.lease.guard(epoch):
            try:
                self._change(traffic, {name: tuple(known) for name, known in backends.items()}, etag)
            finally:
                self._give_way(epoch)
        return self.get()

    def ready(self, backend: Backend) -> bool | None:
        """Whether Envoy gives requests to a replica over both protocols; None if it cannot say."""
        try:
            clusters = self._admin.hosts()
        except StageError:
            return None
        seen = [
            hosts[address]
            for protocol, address in (("http", backend.http), ("grpc", backend.grpc))
            for name, hosts in clusters.items()
            if name.startswith(f"{protocol}-") and address in hosts
        ]
        return all(seen) if seen else None

    # -- inside ---------------------------------------------------------------------------------------------

    @property
    def _admin(self) -> Admin:
        ports = self.ports
        if ports is None:
            message = f"the door {self.folder.name} was never started; apply again"
            raise StageError(message)
        return Admin(ports.admin)

    def _start(self, demanded: DoorPorts) -> None:
        binary = self.make_environment(self.log)
        chosen = choose_ports(demanded, self.ports, self.folder.name)
        self._prepare_files()
        _replace(self.folder / "ports.json", chosen.__dict__)
        _replace(self.folder / "bootstrap.json", bootstrap(chosen, self.folder))
        self.processes.start_envoy(binary, ready=Admin(chosen.admin).ready, within=ANSWER_SECONDS)
        where = self.endpoints
        self.log(
            f"the door {self.folder.name} listens on loopback (Envoy, pid {self.processes.envoy.pid}): "
            f"http {where['http']}, grpc {where['grpc']}"
        )

    def _prepare_files(self) -> None:
        """Write the closed door where there was none; where nobody watched, do what the watchdog would have done."""
        table = self._on_disk()
        if table is None:
            _replace(self.folder / "clusters.json", clusters_response(Traffic(), {}))
            _replace(
                self.folder / "routes.json", config.routes_response(Table(traffic=Traffic(), etag="0-closed"))
            )
        elif not table.settled:
            with suppress(LockedError):  # the owner of a lease that holds goes on by himself
                self.lease.take()
                self._settle()

    def _check_ports(self, demanded: DoorPorts) -> None:
        listening = self.ports
        if listening is None:
            return
        for name, wanted in demanded.__dict__.items():
            if wanted and wanted != getattr(listening, name):
                message = (
                    f"the door {self.folder.name} listens on {name} port {getattr(listening, name)}, not on {wanted}: "
                    "stop it with `shipctl down` before it can be moved"
                )
                raise StageError(message)

    def _change(self, traffic: Traffic, backends: dict[str, tuple[Backend, ...]], etag: str) -> None:
        present = self._on_disk()
        if present is None:
            message = f"the door {self.folder.name} does not run; apply again"
            raise StageError(message)
        if (present.traffic, present.backends) == (traffic, backends):
            self._await_routes(present.etag)
            return
        if present.etag != etag:
            message = (
                f"the door {self.folder.name} is at {present.etag}, not at {etag or 'its beginning'} any more: "
                "somebody else has changed it; look again before acting"
            )
            raise StageError(message)
        number = present.number + 1
        content = [
            traffic.model_dump(mode="json"),
            {k: [b.model_dump() for b in v] for k, v in backends.items()},
        ]
        table = Table(
            traffic=traffic, backends=backends, number=number, etag=f"{number}-{digest_of(content)[:12]}"
        )
        clusters, routes = self.folder / "clusters.json", self.folder / "routes.json"
        before = clusters.read_text(), routes.read_text()
        try:
            # Clusters come before the routes that name them, and go after them.
            old = json.loads(before[0])["resources"]
            self._write_clusters(clusters_response(traffic, backends, old))
            refused = self._refused(_RDS)
            _replace(routes, config.routes_response(table))
            self._await_routes(table.etag, refused)
            self._write_clusters(clusters_response(traffic, backends))
        except StageError:
            _replace_text(routes, before[1])
            _replace_text(clusters, before[0])
            raise

    def _write_clusters(self, response: dict[str, Any]) -> None:
        path = self.folder / "clusters.json"
        if json.loads(path.read_text())["version_info"] == response["version_info"]:
            return
        refused = self._refused(_CDS)
        _replace(path, response)

        def done() -> bool:
            self._fail_if_refused(_CDS, refused)
            stats = self._admin.stats(rf"^({_CDS}\.version_text|cluster_manager\.warming_clusters)$")
            warm = stats.get("cluster_manager.warming_clusters") == "0"
            return warm and stats.get(f"{_CDS}.version_text") == response["version_info"]

        self._wait(done, "does not take its clusters")

    def _await_routes(self, etag: str, refused: int | None = None) -> None:
        """Wait until the routes are in effect; ``refused`` is how many Envoy had refused before they were written."""

        def done() -> bool:
            found = self._admin.routes()
            if found is not None and found.version == etag:
                return True
            if refused is not None:
                self._fail_if_refused(_RDS, refused)
            return False

        self._wait(done, "does not take its routes")
        time.sleep(_SPREAD_S)

    def _refused(self, subscription: str) -> int:
        """Return how many files Envoy has read and refused."""
        self._wait(self._admin.ready, "does not answer")
        stats = self._admin.stats(rf"^{subscription}\.update_(rejected|failure)$")
        return sum(map(int, stats.values()))

    def _fail_if_refused(self, subscription: str, before: int) -> None:
        stats = self._admin.stats(rf"^{subscription}\.update_(rejected|failure)$")
        if sum(map(int, stats.values())) > before:
            tail = "\n    ".join(self.processes.envoy_said(rejected=True))
            message = (
                f"Envoy does not take what the door {self.folder.name} was told; its log says\n    {tail}"
            )
            raise _RejectedError(message)

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        """Wait for Envoy, which may have died and be about to be started again."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                if done():
                    return
                problem = otherwise
            except _RejectedError:
                raise
            except StageError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                tail = "\n    ".join(self.processes.envoy_said())
                message = f"Envoy of the door {self.folder.name} {otherwise} ({problem}); its log ends with\n    {tail}"
                raise StageError(message)
            time.sleep(_POLL_S)

    def _give_way(self, epoch: int) -> None:
        """Undo what came too late: a watchdog does not wait for one that is stopped in the middle of a change."""
        try:
            self.lease.check(epoch)
        except StaleEpochError:
            self._settle()
            raise

    def _settle(self) -> None:
        """Give everything to the stable revision, as a watchdog does."""
        table = self._on_disk()
        if table is not None and not table.settled:
            _replace(self.folder / "routes.json", config.routes_response(table.stable_only))

    def _on_disk(self) -> Table | None:
        try:
            document = json.loads((self.folder / "routes.json").read_text())
            return config.memo_of(document["resources"][0])
        except (OSError, ValueError, KeyError, IndexError):
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Start and stop one at a time."""
        descriptor = os.open(self.folder / "door.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _check_reachable(traffic: Traffic, backends: Mapping[str, Sequence[Backend]]) -> None:
    # Copies go to the comparator, which asks the candidate by itself.
    needed = traffic.model_copy(update={"mirror": None}).revisions
    if traffic.mirror is not None:
        needed |= {COMPARATOR}
    missing = sorted(name for name in needed if not backends.get(name))
    if missing:
        message = f"no replicas were named for {', '.join(missing)}, which is to get traffic"
        raise StageError(message)


def _replace(path: Path, value: Any) -> None:
    _replace_text(path, json.dumps(value, indent=1))


def _replace_text(path: Path, text: str) -> None:
    """Replace a file by renaming, which is also what Envoy looks out for."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
