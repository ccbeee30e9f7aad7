"""The replicas of one published version: server processes that outlive us, each over a repository of its own.

Below the target's folder::

    servers/<model>/<n>/replicas.json   how many there should be, and of what; written before the first is started
    servers/<model>/<n>/<i>/            replica i: its repository, server-start.json, server.json, server.log

A version is loaded when its server starts, never through the API: what the API loaded would be gone after a restart.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from shipctl.records import Record
from shipctl.release.router import Backend
from shipctl.release.target import Replicas
from shipctl.store.files import write_atomic
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.api import LOOPBACK, TritonApi, TritonApiError
from shipctl_plugins._triton.config_text import REVISION_PARAMETER
from shipctl_plugins._triton.environment import ServerEnvironment
from shipctl_plugins._triton.probe import answers_as_recorded
from shipctl_plugins._triton.processes import Ports, ServerRecord, free_ports, is_free
from shipctl_plugins._triton.releases import Releases
from shipctl_plugins._triton.server import START_FILE, TritonServer, log_tail, recorded_ports

LOOK_S = 3.0
"""How long each question of a look may take; a server that does not answer within it is not ready."""
START_S = 60.0
"""After which a server that still says nothing is not merely starting."""
LOOP_STARTS = 4
LOOP_S = 60.0
"""So many starts within so many seconds are a crash loop."""
_PROBLEM_LINES = 3
_REASON = re.compile(r"\s+")
_CACHE_BYTES = 64 * 1024 * 1024
ARGUMENTS = (f"--cache-config=local,size={_CACHE_BYTES}", "--disable-auto-complete-config")
"""Beyond what every server gets: the cache is used by models that ask for `response_cache`. Our configurations leave
nothing out; to complete one, the server would load each model once more."""

DoorView = Callable[[Backend], bool | None]


class ReplicaSetRecord(Record):
    """What the replicas of a version should be."""

    revision: str = Field(description="Digest of what was released: inputs and options.")
    version: str = Field(description="Semantic version of the release.")
    wanted: int = Field(ge=1, description="How many there should be.")


@dataclass(frozen=True)
class Look:
    """What one replica was seen to be."""

    ready: bool
    problem: str | None = None
    """Why it will not be ready by itself; None while it starts."""


@dataclass(frozen=True)
class ReplicaSet:
    """The replicas of version ``number`` of ``model``."""

    releases: Releases
    model: str
    number: int

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return self.releases.folder / "servers" / self.model / str(self.number)

    def record(self) -> ReplicaSetRecord | None:
        """Return what they should be; None where there are none."""
        try:
            return ReplicaSetRecord.model_validate_json((self.folder / "replicas.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def places(self) -> list[Path]:
        """Return the folder of each replica that should be."""
        record = self.record()
        return [self.folder / str(index + 1) for index in range(record.wanted)] if record else []

    @property
    def lost(self) -> bool:
        """Whether none was started since the machine was."""
        records = (ServerRecord.read(place / "server.json") for place in self.places())
        return not any(record is not None and record.boot_id == launcher.boot_id() for record in records)

    @property
    def starts(self) -> int:
        """How often the one was started that was started most often."""
        return max((len(launcher.starts(place / "server.json")) for place in self.places()), default=0)

    def servers(self) -> list[TritonServer]:
        """Return those whose process runs."""
        return [server for place in self.places() if (server := TritonServer.attach(place))]

    def backends(self) -> tuple[Backend, ...]:
        """Return where each replica listens, or will again once it is restarted."""
        found = []
        for place in self.places():
            ports = recorded_ports(place)
            if ports is not None:
                found.append(self._backend(place, ports))
        return tuple(found)

    def start(
        self, environment: ServerEnvironment, record: ReplicaSetRecord, log: Callable[[str], None]
    ) -> int:
        """Start the replicas that do not run, and return how many that were; they load for seconds after that.

        One that runs and has stopped answering is killed before. One that ran before listens where it did, if nobody
        has taken its ports.

        :raises StageError: if a process cannot be started
        """
        write_atomic(self.folder / "replicas.json", record.model_dump_json().encode())
        started = 0
        for place in self.places():
            server = TritonServer.attach(place)
            if server is not None and not _hangs(server):
                continue
            if server is not None:
                log(
                    f"{self.model} {record.version}: replica {place.name} does not answer; it is started anew"
                )
                server.stop(timeout=0)
            TritonServer.clean_up(place)
            self.releases.lay_out(self.model, self.number, place / "repository")
            server = TritonServer.launch(
                environment,
                repository=place / "repository",
                folder=place,
                ports=self._ports(place),
                models=[self.model],
                arguments=ARGUMENTS,
            )
            started += 1
            log(f"{self.model} {record.version}: replica {place.name} is starting (pid {server.record.pid})")
        return started

    def look(self, door: DoorView | None = None) -> Replicas | None:
        """Ask every replica, all at once; None where there are none.

        Ready is one that says so for the model, says that it serves this revision, gives the answer that the
        preflight recorded, and that the door does not find unhealthy.
        """
        record = self.record()
        if record is None:
            return None
        places = self.places()
        with ThreadPoolExecutor(max_workers=len(places)) as pool:
            looks = list(pool.map(lambda place: self._look(place, record, door), places))
        problems = [look.problem for look in looks if look.problem is not None]
        return Replicas(
            version=record.version,
            wanted=record.wanted,
            ready=sum(look.ready for look in looks),
            problem=problems[0] if problems else None,
        )

    def stop(self) -> int:
        """End all replicas, politely and at once; return how many ran. Nothing of them is left."""
        places = [path for path in self.folder.glob("*") if path.name.isdigit()]
        # Whoever is about to start one of them again (a supervisor) waits for these, and then finds no folder.
        locks = [launcher.take_lock(place / "server.json") for place in places]
        try:
            servers = [server for place in places if (server := TritonServer.attach(place))]
            if servers:
                with ThreadPoolExecutor(max_workers=len(servers)) as pool:
                    list(pool.map(lambda server: server.stop(), servers))
            for place in places:
                TritonServer.clean_up(place)
            if self.folder.exists():
                # Moved away first: half a repository must never be taken for one.
                gone = self.folder.with_name(f".{self.number}-{secrets.token_hex(4)}.gone")
                self.folder.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            for lock in locks:
                os.close(lock)
        return len(servers)

    def _look(self, place: Path, record: ReplicaSetRecord, door: DoorView | None) -> Look:
        name = f"replica {place.name}"
        server = TritonServer.attach(place)
        if server is None:
            return Look(False, f"{name} is not running{_said(place)}")
        recent = [at for at in launcher.starts(server.state) if at > time.time() - LOOP_S]
        looping = f"{name} was started {len(recent)} times within {LOOP_S:.0f} s{_said(place)}"
        problem = looping if len(recent) >= LOOP_STARTS else None
        api = TritonApi(server.record.ports.http, timeout=LOOK_S)
        try:
            if api.server_id() != server.record.shm_prefix:
                return Look(False, f"{name} does not listen on its port {api.port}, somebody else does")
            if not api.model_ready(self.model):
                return Look(False, problem or self._refused(api, place))
            said = api.parameter(self.model, REVISION_PARAMETER)
        except TritonApiError:
            silent = time.time() - server.record.started_at > START_S
            return Look(False, problem or (f"{name} does not answer{_said(place)}" if silent else None))
        if said != record.revision:
            return Look(False, f"{name} says that it serves revision {said}, not {record.revision}")
        probe = self.releases.probe(self.model, self.number)
        if probe.exists() and not answers_as_recorded(api, self.model, probe):
            return Look(False, problem or f"{name} does not answer as it did in the preflight")
        if door is not None and door(self._backend(place, server.record.ports)) is False:
            return Look(False, problem or f"the door finds {name} unhealthy")
        return Look(problem is None, problem)

    def _refused(self, api: TritonApi, place: Path) -> str | None:
        """Return why the model is not ready: the server's reason, or its log where the API hides it."""
        states = [entry for entry in api.index() if entry["name"] == self.model]
        if any(entry.get("state") in {"LOADING", "UNLOADING"} for entry in states):
            return None
        reason = next((str(entry["reason"]) for entry in states if entry.get("reason")), None)
        said = f": {_REASON.sub(' ', reason)}" if reason else _said(place)
        return f"replica {place.name} could not load {self.model}{said}"

    def _backend(self, place: Path, ports: Ports) -> Backend:
        return Backend(
            name=f"{self.model}-{self.number}-{place.name}",
            http=f"{LOOPBACK}:{ports.http}",
            grpc=f"{LOOPBACK}:{ports.grpc}",
        )

    def _ports(self, place: Path) -> Ports:
        """Return the ports that this replica had, or others that no server of this target has."""
        had = recorded_ports(place)
        if had is not None and all(is_free(port) for port in (had.http, had.grpc, had.metrics)):
            return had
        taken: set[int] = set()
        for file in self.releases.folder.glob(f"servers/*/*/*/{START_FILE}"):
            ports = recorded_ports(file.parent)
            taken |= {ports.http, ports.grpc, ports.metrics} if ports else set()
        return Ports(*free_ports(3, taken))


def replica_sets(releases: Releases, model: str) -> Iterator[ReplicaSet]:
    """Yield the versions of a model that have replicas, or left-overs of them, in ascending order."""
    folders = (releases.folder / "servers" / model).glob("[0-9]*")
    for number in sorted(int(folder.name) for folder in folders if folder.name.isdigit()):
        yield ReplicaSet(releases, model, number)


def stop_all(groups: Sequence[ReplicaSet]) -> list[int]:
    """Stop them at once, as each :meth:`ReplicaSet.stop`, and return how many replicas of each ran."""
    with ThreadPoolExecutor(max_workers=max(1, len(groups))) as pool:
        return list(pool.map(ReplicaSet.stop, groups))


def _hangs(server: TritonServer) -> bool:
    """Whether a server that has had the time to load does not answer."""
    if time.time() - server.record.started_at <= START_S:
        return False
    try:
        TritonApi(server.record.ports.http, timeout=LOOK_S).server_id()
    except TritonApiError as error:
        return not error.status
    return False


def _said(place: Path) -> str:
    """Return the end of a server's log in one line."""
    lines = log_tail(place / "server.log", lines=_PROBLEM_LINES)
    return f"; its log says: {' / '.join(line.strip() for line in lines)}" if lines else ""
