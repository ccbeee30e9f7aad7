"""A client of one MLflow server. The calls are made by :mod:`shipctl_plugins._mlflow.agent` in a process of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shipctl.errors import StoreError, UnavailableError
from shipctl_plugins._mlflow.login import Login
from shipctl_plugins._mlflow.process import RETRIES, AgentProcess, TransientMlflowError, agent_of

NAME = re.compile(r"[^/:'\"%`]+")
"""Of a registered model: what MLflow allows, and what its searches can quote."""
CREATE_ATTEMPTS = 3
"""Times that something is made which an answer that was lost may have left made: it is looked for before each."""
METRICS_AT_ONCE = 900
PARAMS_AT_ONCE = 100
"""What MLflow takes in one request, at most."""
_MARGIN_S = 10.0
_MESSAGE_LENGTH = 300
_REFUSED = frozenset({"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"})
_NO_MLFLOW = frozenset({"ENDPOINT_NOT_FOUND", "NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"})

ValueT = TypeVar("ValueT")
Transport = Callable[[str, Mapping[str, Any], "float | None"], dict[str, Any]]
"""Makes one call (name, arguments, seconds it may take; None: as long as bytes come) and returns the agent's reply."""


class MissingMlflowError(StoreError):
    """What a call was about does not exist on the server."""


class Registered(NamedTuple):
    """A registered model."""

    name: str
    description: str
    tags: dict[str, str]
    aliases: dict[str, int]
    """Alias to version."""


class Version(NamedTuple):
    """A version of a registered model."""

    name: str
    version: int
    source: str
    run_id: str
    status: str
    created: float
    """Seconds since the epoch."""
    description: str
    tags: dict[str, str]


class RunRecord(NamedTuple):
    """A run of an experiment."""

    id: str
    start_time: int
    """Milliseconds since the epoch."""
    finished: bool
    metrics: dict[str, float]
    tags: dict[str, str]


class Experiment(NamedTuple):
    """An experiment."""

    id: str
    active: bool
    """False once it was deleted: its name stays taken."""


class StoredFile(NamedTuple):
    """A file of a model version."""

    path: str
    size: int | None


def _batched(items: Iterable[ValueT], size: int) -> Iterator[tuple[ValueT, ...]]:
    """Yield tuples of up to ``size`` items (itertools.batched of Python 3.12)."""
    rest = iter(items)
    while piece := tuple(islice(rest, size)):
        yield piece


class MlflowServer:
    """What shipctl asks of an MLflow server and tells it.

    Every call raises :class:`StoreError` with one sentence when it cannot be done, and takes bounded time: at most
    ``timeout`` for each of three requests. What does not exist is None.
    """

    def __init__(self, login: Login, transport: Transport | None = None) -> None:
        self.login = login
        self._transport = transport or agent_of(login, tuple(sorted(os.environ.items())))

    @property
    def shown(self) -> str:
        """The server's URI without credentials."""
        return self.login.shown

    def close(self) -> None:
        """End the process that speaks to the server; a later call starts it again."""
        if isinstance(self._transport, AgentProcess):
            self._transport.close()

    def call(self, call: str, /, *, bounded: bool = True, **arguments: Any) -> Any:
        """Make one call of the agent and return its value.

        :raises UnavailableError: if mlflow is not installed
        :raises StoreError: if the server cannot be reached, refuses, or is none
        """
        within = self.login.timeout * (RETRIES + 1) + _MARGIN_S if bounded else None
        reply = self._transport(call, arguments, within)
        error = reply.get("error")
        if error is None:
            return reply["value"]
        raise self._error(call, error)

    def discard(self, call: str, /, **arguments: Any) -> None:
        """Make a call that deletes something; if it is gone already, so much the better."""
        with suppress(MissingMlflowError):
            self.call(call, **arguments)

    def ping(self) -> None:
        """See whether there is an MLflow server that lets us in."""
        self.call("ping")

    def ensure(self, look: Callable[[], ValueT | None], make: Callable[[], object]) -> tuple[ValueT, bool]:
        """Return what ``look`` finds and whether it had to be made for that.

        ``make`` is tried again when its answer was lost, but never before ``look`` was asked once more.
        """
        found = look()
        if found is not None:
            return found, False
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                make()
            except TransientMlflowError:
                found = look()  # which raises if the server is gone altogether
                if found is None and attempt == CREATE_ATTEMPTS:
                    raise
            except StoreError:
                found = look()  # somebody else may have been first
                if found is None:
                    raise
            else:
                found = look()
            if found is not None:
                return found, True
        message = f"MLflow at {self.shown} does not show what it has just made; run again later"
        raise TransientMlflowError(message)

    def model(self, name: str) -> Registered | None:
        """Return a registered model."""
        found = self.call("registered_model", name=name)
        return None if found is None else Registered(**found)

    def versions(self, name: str, tag: str | None = None, value: str = "") -> list[Version]:
        """Return the versions of a model, those with that tag if one is given, in ascending order."""
        found = self.call("versions", name=name, tag=tag, value=value)
        return sorted((Version(**item) for item in found), key=lambda item: item.version)

    def version(self, name: str, version: int) -> Version | None:
        """Return one version."""
        found = self.call("version", name=name, version=version)
        return None if found is None else Version(**found)

    def experiment(self, name: str) -> Experiment | None:
        """Return an experiment, a deleted one too."""
        found = self.call("experiment", name=name)
        return None if found is None else Experiment(**found)

    def runs(self, experiment: str, tag: str, value: str) -> list[RunRecord]:
        """Return the runs with that tag that were not deleted, the oldest first."""
        found = self.call("runs", experiment=experiment, tag=tag, value=value)
        return sorted((RunRecord(**item) for item in found), key=lambda item: (item.start_time, item.id))

    def files(self, uri: str) -> list[StoredFile]:
        """Return the files below an artifact URI."""
        return [StoredFile(**item) for item in self.call("list_artifacts", uri=uri)]

    def download(self, uri: str, path: str, folder: Path) -> Path:
        """Download one file below an artifact URI into a folder and return where it is."""
        return Path(self.call("download", uri=uri, path=path, folder=str(folder), bounded=False))

    def log_run(
        self, run_id: str, time: int, metrics: Mapping[str, float], params: Mapping[str, str]
    ) -> None:
        """Write metrics and parameters; the same again at the same ``time`` (milliseconds) changes nothing."""
        pieces = zip_longest(
            _batched(metrics.items(), METRICS_AT_ONCE), _batched(params.items(), PARAMS_AT_ONCE), fillvalue=()
        )
        for some_metrics, some_params in pieces:
            self.call(
                "log_run", run_id=run_id, time=time, metrics=dict(some_metrics), params=dict(some_params)
            )

    def _error(self, call: str, error: Mapping[str, str]) -> StoreError | UnavailableError:
        shown, code = self.shown, error["code"]
        text = " ".join(self.login.redact(error["message"]).split())
        if error["kind"] == "import":
            return UnavailableError(
                f"MLflow's client does not import ({text}); pip install 'shipctl[mlflow]'"
            )
        if error["kind"] == "unreachable":
            reason = error["cause"].lower() or "no connection"
            return TransientMlflowError(
                f"cannot reach MLflow at {shown}: {reason}; see whether it runs, and whether the address is right"
            )
        if error["kind"] == "failing":
            return TransientMlflowError(
                f"MLflow at {shown} answers with errors ({error['cause']}); look at its log, or run again later"
            )
        if code in _REFUSED or "failed with error code 401" in text or "failed with error code 403" in text:
            return StoreError(
                f"MLflow at {shown} refused our credentials; set `token`, or `username` and `password`, of somebody "
                "who may write there (or MLFLOW_TRACKING_TOKEN and its kin)"
            )
        if call == "ping" and (code in _NO_MLFLOW or "valid JSON" in text or code == "JSONDecodeError"):
            return StoreError(
                f"{shown} answers, but not as an MLflow server; write the address that its pages have, without `#/…`"
            )
        kind = MissingMlflowError if code == "RESOURCE_DOES_NOT_EXIST" else StoreError
        return kind(f"MLflow at {shown}: {text[:_MESSAGE_LENGTH]}")
