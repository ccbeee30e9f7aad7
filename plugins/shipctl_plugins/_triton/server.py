"""One tritonserver process on loopback, in explicit mode: start, find again, load, unload, stop."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from shipctl.errors import StageError
from shipctl.store.files import write_atomic
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.api import LOOPBACK, TritonApi, TritonApiError
from shipctl_plugins._triton.environment import ServerEnvironment
from shipctl_plugins._triton.paths import plain_path
from shipctl_plugins._triton.processes import MARK, Ports, ServerRecord, kill_left_over

START_FILE = "server-start.json"
"""How the server of a folder is started, for whoever starts it again: see :mod:`shipctl_plugins._triton.launcher`."""
START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
LOG_BYTES_KEPT = 10_000_000
_POLL_S = 0.02
_LOG_LINES_SHOWN = 12
_SETTLE_S = 0.1
_PORT_ATTEMPTS = 4
_TAKEN = re.compile(r"already in use|failed to (bind|listen|start)", re.IGNORECASE)
_LOG_PREFIX = re.compile(r"^[A-Z]\d{4} [\d:.]+ \d+ \S+\] ")


class TritonServer:
    """A server process and what belongs to it: state file, log, ports.

    A *bound* server ends with the process that started it, however that ends; any other outlives it.
    """

    def __init__(
        self,
        record: ServerRecord,
        state: Path,
        supervisor: subprocess.Popen[bytes] | None = None,
        log_start: int = 0,
    ) -> None:
        self.record = record
        self.state = state
        self._log_start = log_start
        self._supervisor = supervisor
        self.api = TritonApi(record.ports.http)

    @classmethod
    def start(
        cls,
        environment: ServerEnvironment,
        *,
        repository: Path,
        folder: Path,
        ports: Ports | None = None,
        models: Sequence[str] = (),
        bound: bool = False,
        timeout: float = START_TIMEOUT_S,
        arguments: Sequence[str] = (),
    ) -> Self:
        """Start a server over ``repository`` and return once it answers.

        Its state (`server.json`) and log (`server.log`) are kept in ``folder``. ``models`` are loaded at start; one
        that fails keeps the others serving. Ports that were not given are chosen anew when somebody else
        takes them in the meantime.

        :raises StageError: when the process ends or does not answer in time, with the end of its log
        """
        wanted = ports or Ports()
        for attempt in range(_PORT_ATTEMPTS):
            server = cls._launch(environment, repository, folder, wanted.chosen(), models, bound, arguments)
            try:
                server._await_start(timeout)  # noqa: SLF001  (our own class)
            except StageError as error:
                server.stop()
                given = all(asdict(wanted).values())
                if given or attempt == _PORT_ATTEMPTS - 1 or not _TAKEN.search(str(error)):
                    raise
            else:
                return server
        raise AssertionError  # the last attempt returns or raises

    @classmethod
    def launch(
        cls,
        environment: ServerEnvironment,
        *,
        repository: Path,
        folder: Path,
        ports: Ports,
        models: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> Self:
        """Start a server that outlives us and return at once: it answers once its ``models`` are loaded.

        One that runs in ``folder`` already is returned as it is, whoever started it.

        :raises StageError: when the process cannot be started
        """
        return cls._launch(environment, repository, folder, ports, models, False, arguments)

    @classmethod
    def attach(cls, folder: Path) -> Self | None:
        """Return the server whose state is in ``folder``, if that very process still runs."""
        state = folder / "server.json"
        record = ServerRecord.read(state)
        return cls(record, state) if record and record.alive else None

    @classmethod
    def clean_up(cls, folder: Path) -> None:
        """Remove what a server that died left behind: stub processes, shared memory, its state file."""
        state = folder / "server.json"
        record = ServerRecord.read(state)
        if record is None or record.alive:
            return
        kill_left_over(record.shm_prefix)
        launcher.remove_shared_memory(record.shm_prefix)
        state.unlink(missing_ok=True)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.record.alive

    @property
    def endpoints(self) -> dict[str, str]:
        """Protocol to address."""
        ports = self.record.ports
        return {
            "http": f"http://{LOOPBACK}:{ports.http}",
            "grpc": f"{LOOPBACK}:{ports.grpc}",
            "metrics": f"http://{LOOPBACK}:{ports.metrics}/metrics",
        }

    def load(self, model: str, *, timeout: float = LOAD_TIMEOUT_S) -> None:
        """Load or reload ``model`` as its configuration on disk says.

        :raises StageError: with the API's text and what the server logged meanwhile; Triton's API often says
            only `failed to poll from model repository`, with the reason in its log
        """
        self._ask("load", model, timeout)

    def unload(self, model: str, *, timeout: float = LOAD_TIMEOUT_S) -> None:
        """Unload all versions of ``model`` and wait until they are gone.

        :raises StageError: as :meth:`load`
        """
        self._ask("unload", model, timeout)
        deadline = time.monotonic() + timeout
        while self.api.loaded_versions(model) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """End the server (a deployed one politely first) with all its processes; leave no shared memory behind."""
        record = self.record
        if self._supervisor is not None:  # nobody depends on a bound one: it is killed at once
            self._supervisor.communicate(timeout=timeout)  # closes its standard input
        elif record.alive:
            os.kill(record.pid, signal.SIGTERM)
            if not record.ended_within(timeout):
                launcher.kill_group(record.pid)
        kill_left_over(record.shm_prefix)
        launcher.remove_shared_memory(record.shm_prefix)
        self.state.unlink(missing_ok=True)

    def log_tail(self, since: int = 0, lines: int = _LOG_LINES_SHOWN) -> list[str]:
        """Return the last lines that the server logged after byte ``since``, errors and warnings before others."""
        return log_tail(self.record.log, since, lines)

    @classmethod
    def _launch(
        cls,
        environment: ServerEnvironment,
        repository: Path,
        folder: Path,
        ports: Ports,
        models: Sequence[str],
        bound: bool,  # noqa: FBT001
        arguments: Sequence[str],
    ) -> Self:
        folder.mkdir(parents=True, exist_ok=True)
        repository.mkdir(parents=True, exist_ok=True)
        state, log, prefix = folder / "server.json", folder / "server.log", f"shipctl-{secrets.token_hex(6)}-"
        spec: dict[str, Any] = {
            "command": [
                str(environment.binary),
                f"--id={prefix}",
                f"--model-repository={plain_path(repository.resolve())}",
                f"--backend-directory={environment.backends}",
                f"--cache-directory={environment.caches}",
                "--model-control-mode=explicit",
                *(f"--load-model={model}" for model in models),
                "--exit-on-error=false",
                # Else one model that fails to load makes the whole server unready for whoever watches it.
                "--strict-readiness=false",
                f"--http-address={LOOPBACK}",
                f"--grpc-address={LOOPBACK}",
                f"--metrics-address={LOOPBACK}",
                f"--http-port={ports.http}",
                f"--grpc-port={ports.grpc}",
                f"--metrics-port={ports.metrics}",
                "--allow-gpu-metrics=false",
                f"--backend-config=python,shm-region-prefix-name={prefix}",
                f"--backend-config=onnxruntime,shm-region-prefix-name={prefix}",
                *arguments,
            ],
            "environ": {**environment.environ(), MARK: prefix},
            "log": str(log),
            "state": str(state),
            "record": {"ports": asdict(ports), "shm_prefix": prefix, "log": str(log)},
        }
        if log.exists() and log.stat().st_size > LOG_BYTES_KEPT:
            log.replace(log.with_suffix(".log.1"))
        log_start = log.stat().st_size if log.exists() else 0
        supervisor = _run_bound(folder, spec) if bound else None
        if supervisor is None:
            _run_detached(folder, spec)
        deadline = time.monotonic() + START_TIMEOUT_S
        while (record := ServerRecord.read(state)) is None:
            if time.monotonic() > deadline or not supervisor or supervisor.poll() is not None:
                message = f"the Triton server could not be launched: no state in {state}; its log is {log}"
                raise StageError(message)
            time.sleep(_POLL_S)
        return cls(record, state, supervisor, log_start)

    def _await_start(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            # Live, not ready: with a model that fails to load the server is never ready, and says why later.
            if self.alive and self.answers():
                return
            if not self.alive or time.monotonic() > deadline:
                what = "did not answer" if self.alive else "ended while starting"
                message = f"the Triton server {what}; its log ({self.record.log}) ends with\n"
                message += _indent(self.log_tail(self._log_start))
                raise StageError(message)
            time.sleep(_POLL_S)

    def answers(self) -> bool:
        """Whether it is this server that answers on its port, and not another one that holds it."""
        try:
            return self.api.server_id() == self.record.shm_prefix
        except TritonApiError:
            return False

    def _ask(self, verb: str, model: str, timeout: float) -> None:
        since = self.record.log.stat().st_size if self.record.log.exists() else 0
        try:
            getattr(self.api, verb)(model, timeout=timeout)
        except TritonApiError as error:
            time.sleep(_SETTLE_S)  # the log is written by another thread than the answer
            message = f"Triton could not {verb} {model}: {error}"
            if not self.alive:
                message = f"the Triton server died while it was asked to {verb} {model}"
            if tail := self.log_tail(since):
                message += "\nthe server's log says\n" + _indent(tail)
            raise StageError(message) from error


def log_tail(log: Path, since: int = 0, lines: int = _LOG_LINES_SHOWN) -> list[str]:
    """Return the last lines of a server's log after byte ``since``, errors and warnings before others."""
    try:
        with log.open("rb") as file:
            file.seek(since)
            said = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return _worth_showing(said)[-lines:]


def recorded_ports(folder: Path) -> Ports | None:
    """Return where the server of a folder listens, or did when it ran last; None where none was ever started."""
    try:
        return Ports(**json.loads((folder / START_FILE).read_text())["record"]["ports"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_bound(folder: Path, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    Path(spec["state"]).unlink(missing_ok=True)
    command = _command("bound", folder, spec)
    # What a launcher whose starter was killed says about that is nobody's business.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _run_detached(folder: Path, spec: dict[str, Any]) -> None:
    """Start a server unless it runs. The launcher has our lock too: killed here, nobody starts a second one."""
    state = Path(spec["state"])
    lock = launcher.take_lock(state)
    try:
        if launcher.is_running(state):
            return
        state.unlink(missing_ok=True)
        command = [*_command("detached", folder, spec), str(lock)]
        subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
            pass_fds=(lock,),
        )
    finally:
        os.close(lock)


def _command(mode: str, folder: Path, spec: dict[str, Any]) -> list[str]:
    file = folder / START_FILE
    write_atomic(file, json.dumps(spec).encode(), durable=False)
    return [sys.executable, "-I", "-S", launcher.__file__, mode, str(file)]


def _worth_showing(lines: Sequence[str]) -> list[str]:
    """Keep errors and warnings with the lines that continue them; all lines when there are none."""
    kept: list[str] = []
    keep = False
    for line in lines:
        if _LOG_PREFIX.match(line):
            keep = line[0] in "EWF"
        elif line.startswith(
            "[libprotobuf"
        ):  # why a configuration cannot be read; Triton itself does not say
            keep = True
        if keep and line.strip():
            kept.append(_LOG_PREFIX.sub("", line).strip('"'))
    return kept or [line for line in lines if line.strip()]


def _indent(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"
