"""The target `local`: a Triton server on this machine, and the acts of a release on it.

Every act first looks at what is there and does only what is missing, so that it can be asked for again
after a SIGKILL at any point. What serves changes in :meth:`LocalTarget.activate` alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shipctl.errors import StageError
from shipctl.stages.base import Serving
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl_plugins._triton.api import TritonApiError
from shipctl_plugins._triton.config_text import REVISION_PARAMETER
from shipctl_plugins._triton.environment import TRITON_VERSION, ServerEnvironment, ensure_server_environment
from shipctl_plugins._triton.golden import Judgement, Tolerance, ask_golden
from shipctl_plugins._triton.probe import answers_as_recorded, record_probe
from shipctl_plugins._triton.processes import Ports
from shipctl_plugins._triton.releases import Published, Releases
from shipctl_plugins._triton.server import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipctl.stages.artifacts import Dataset, TritonRepository

_CACHE_BYTES = 64 * 1024 * 1024
_ARGUMENTS = (f"--cache-config=local,size={_CACHE_BYTES}",)  # used by models that ask for response_cache
_HUNG_AFTER_S = 5.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Question:
    """What a server must answer before it may serve."""

    repository: TritonRepository
    golden: Dataset
    tolerance: Tolerance
    timeout: float
    """Seconds for all samples over both protocols."""


@dataclass
class LocalTarget:
    """A target folder and the server over it."""

    folder: Path
    """The target's own folder, absolute."""
    log: Callable[[str], None] = print
    now: Callable[[], float] = time.time
    make_environment: Callable[[Callable[[str], None]], ServerEnvironment] = ensure_server_environment
    releases: Releases = field(init=False)

    def __post_init__(self) -> None:
        self.releases = Releases(self.folder)

    def environment(self) -> ServerEnvironment:
        """Return the server's environment, made once per user."""
        return self.make_environment(self.log)

    def blessing(self) -> str:
        """Say what a preflight here is worth: the versions and the device that answered."""
        return f"Triton {TRITON_VERSION}, onnxruntime {self.environment().onnxruntime}, CPU"

    def server(self) -> TritonServer | None:
        """Return the running server of this target, if there is one."""
        return TritonServer.attach(self.folder / "server")

    def ensure_server(self, ports: Ports = Ports()) -> TritonServer:  # noqa: B008  (frozen)
        """Return the target's server; one that died or hangs is replaced and loads again what it served.

        :raises StageError: if it listens elsewhere than ``ports`` demands, or cannot be started
        """
        running = self.server()
        if running is not None:
            if _responds(running):
                check_ports(running.record.ports, ports)
                return running
            self.log(f"the Triton server (pid {running.record.pid}) does not answer; it is started anew")
            running.stop()
        TritonServer.clean_up(self.folder / "server")
        record = self.releases.record()
        models = [name for name, known in record.models.items() if known.stable is not None]
        demanded = astuple(ports)
        wanted = Ports(*(given or last for given, last in zip(demanded, record.ports, strict=True)))
        try:
            server = self._start(wanted, models)
        except StageError:
            if wanted == ports:
                raise
            server = self._start(ports, models)  # somebody else has taken the ports that we chose last time
        self.releases.set_ports(_as_tuple(server.record.ports))
        addresses = ", ".join(f"{protocol} {address}" for protocol, address in server.endpoints.items())
        self.log(
            f"Triton {server.api.server_version()} listens on loopback (pid {server.record.pid}): {addresses}"
        )
        return server

    def publish(
        self, repository: TritonRepository, *, revision: str, version: str, pipeline: str
    ) -> Published:
        """Copy the repository here as an immutable version (see :meth:`Releases.publish`)."""
        return self.releases.publish(
            repository, revision=revision, version=version, pipeline=pipeline, now=self.now()
        )

    def preflight(self, number: int, question: Question) -> Judgement:
        """Load one version in a server of its own and ask it; what serves is not touched.

        A version that does not load is a verdict that fails.
        """
        model = question.repository.model
        subject = question.repository.source
        with self._scratch() as folder:
            self.releases.lay_out(model, [number], folder / "repository")
            server = TritonServer.start(
                self.environment(),
                repository=folder / "repository",
                folder=folder / "server",
                bound=True,
                arguments=_ARGUMENTS,
            )
            try:
                server.load(model, timeout=question.timeout)
                return self._ask(server, question, where="preflight", version=number)
            except StageError as error:
                verdict = Verdict(gate="preflight", outcome=Outcome.FAIL, message=str(error), subject=subject)
                return Judgement((verdict,), 0, "", None)
            finally:
                server.stop()

    def activate(self, server: TritonServer, model: str, numbers: Sequence[int]) -> None:
        """Make the server have exactly these versions of a model, configured as the last of them.

        Triton keeps answering from what is loaded until what is new is ready.

        :raises StageError: if it does not load; what served before still does
        """
        self.releases.lay_out(model, numbers)
        server.load(model)
        deadline = time.monotonic() + _HUNG_AFTER_S
        while (loaded := server.api.loaded_versions(model)) != sorted(numbers):
            if time.monotonic() > deadline:
                message = (
                    f"Triton has versions {loaded} of {model} loaded where {sorted(numbers)} were asked for"
                )
                raise StageError(message)
            time.sleep(_POLL_S)

    def verify(self, server: TritonServer, entry: Published, question: Question) -> Judgement:
        """Ask what serves, as any client would (without a version), and read its revision back.

        A probe for later looks at the version's health is recorded when everything passes.
        """
        model = question.repository.model
        judgement = self._ask(server, question, where="serving", version=None)
        said = self._revision(server, model)
        problem = None
        if said != entry.revision:
            problem = f"the server says that it serves revision {said}, not {entry.revision}"
        elif judgement.passed and judgement.version != str(entry.number):
            problem = f"version {judgement.version} answers where {entry.number} should"
        if problem:
            verdict = Verdict(
                gate="serving", outcome=Outcome.FAIL, message=problem, subject=question.repository.source
            )
            return Judgement(
                (*judgement.verdicts, verdict), judgement.samples, judgement.version, judgement.probe
            )
        if judgement.passed and judgement.probe:
            record_probe(server.api, model, judgement.probe, self.releases.probe(model, entry.number))
        return judgement

    def restore(self, model: str, number: int, ports: Ports) -> None:
        """Make an earlier version serve again, whatever it takes: reload, unload and load, or a new server.

        :raises StageError: if it does not answer as it did when it was verified
        """
        attempts: tuple[Callable[[], None], ...] = (
            lambda: self.activate(self.ensure_server(ports), model, [number]),
            lambda: self._load_afresh(model, number, ports),
            lambda: self._restart_with(model, number, ports),
        )
        problem = "it does not answer as it did"
        for attempt in attempts:
            try:
                attempt()
            except StageError as error:
                problem = str(error)
                continue
            if self.healthy(model, number):
                return
        message = f"version {number} of {model} could not be put back: {problem}"
        raise StageError(message)

    def retire(self, server: TritonServer, model: str, number: int) -> None:
        """Unload all versions but ``number`` and remove their folders."""
        self.activate(server, model, [number])
        self.releases.prune(model)

    def withdraw(self, model: str) -> list[str]:
        """Stop serving a model, and the server with its last one; say what was stopped."""
        known = self.releases.model(model)
        lines = []
        if known and known.stable is not None:
            self.releases.commit_stable(model, known.stable, None, self.now())
        server = self.server()
        others = [name for name, entry in self.releases.record().models.items() if entry.stable is not None]
        if server is not None and others:
            server.unload(model)
            lines.append(
                f"{model} was unloaded from the Triton server, which goes on serving {', '.join(others)}"
            )
        elif server is not None:
            server.stop()
            lines.append(f"the Triton server of {model} (pid {server.record.pid}) was stopped")
        else:
            TritonServer.clean_up(self.folder / "server")
        self.releases.remove_serving(model)
        return lines

    def healthy(self, model: str, number: int) -> bool:
        """Whether version ``number`` is what answers unversioned requests, as it did when it was verified."""
        server = self.server()
        return server is not None and answers_as_recorded(
            server.api, model, self.releases.probe(model, number)
        )

    def serves(self, model: str, revision: str) -> bool:
        """Whether that revision is the stable one, is what the server has loaded, and answers."""
        known, server = self.releases.model(model), self.server()
        stable = known.serving if known else None
        if stable is None or server is None or stable.revision != revision:
            return False
        return self._revision(server, model) == revision and self.healthy(model, stable.number)

    def status(self, pipeline: str | None = None) -> list[Serving]:
        """Return what this target serves (for one pipeline, or for all)."""
        server = self.server()
        found = []
        for model, known in sorted(self.releases.record().models.items()):
            stable = known.serving
            if stable is None or (pipeline and known.pipeline != pipeline):
                continue
            details = {"triton version": str(stable.number), "artifact": stable.digest}
            if server:
                details["pid"] = str(server.record.pid)
                details["log"] = str(server.record.log)
            found.append(
                Serving(
                    name=model,
                    version=stable.version,
                    revision=stable.revision,
                    since=known.since or stable.at,
                    healthy=self.healthy(model, stable.number),
                    endpoints=server.endpoints if server else {},
                    details=details,
                )
            )
        return found

    def down(self, pipeline: str) -> list[str]:
        """Stop serving every model of a pipeline."""
        models = [name for name, known in self.releases.record().models.items() if known.pipeline == pipeline]
        return [line for model in models for line in self.withdraw(model)]

    def _start(self, ports: Ports, models: Sequence[str]) -> TritonServer:
        return TritonServer.start(
            self.environment(),
            repository=self.releases.serving,
            folder=self.folder / "server",
            ports=ports,
            models=models,
            arguments=_ARGUMENTS,
        )

    def _ask(self, server: TritonServer, question: Question, *, where: str, version: int | None) -> Judgement:
        repository = question.repository
        return ask_golden(
            server.endpoints,
            model=repository.model,
            signature=repository.signature,
            max_batch_size=repository.max_batch_size,
            golden=question.golden.path,
            tolerance=question.tolerance,
            timeout=question.timeout,
            version=version,
            where=where,
            subject=repository.source,
        )

    def _load_afresh(self, model: str, number: int, ports: Ports) -> None:
        """Unload and load: for a model whose process died, `load` alone does nothing."""
        server = self.ensure_server(ports)
        server.unload(model)
        self.activate(server, model, [number])

    def _restart_with(self, model: str, number: int, ports: Ports) -> None:
        if server := self.server():
            server.stop()
        self.activate(self.ensure_server(ports), model, [number])

    @staticmethod
    def _revision(server: TritonServer, model: str) -> str | None:
        try:
            return server.api.parameter(model, REVISION_PARAMETER)
        except TritonApiError:
            return None

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield an empty folder for a preflight, and remove it and what a killed one left."""
        folder = self.folder / "preflight"
        if stale := TritonServer.attach(folder / "server"):
            stale.stop(timeout=0)
        TritonServer.clean_up(folder / "server")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_ports(running: Ports, demanded: Ports) -> None:
    """Raise StageError where the options demand a port that the running server does not listen on."""
    for protocol, port, wanted in zip(
        ("http", "grpc", "metrics"), _as_tuple(running), _as_tuple(demanded), strict=True
    ):
        if wanted and wanted != port:
            message = (
                f"the Triton server of this target already serves with {protocol}_port {port}, not {wanted}; "
                "`shipctl down` stops it, or leave the port out"
            )
            raise StageError(message)


def _as_tuple(ports: Ports) -> tuple[int, int, int]:
    return ports.http, ports.grpc, ports.metrics


def _responds(server: TritonServer) -> bool:
    deadline = time.monotonic() + _HUNG_AFTER_S
    while server.alive:
        if server.answers():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return False
