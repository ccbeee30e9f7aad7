"""The comparator in a cluster as who drives a release sees it: told what to compare, and read, through the API server.

What it found is kept up to date in a folder of this machine, where the metric provider `comparison` reads it as it does
where the comparator runs here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from shipctl.errors import ShipctlError, StageError
from shipctl.release.router import Backend
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.comparator import COMPARE, GRPC, HTTP, RESULTS
from shipctl_plugins._triton.comparator_feed import PATH, Head, Kept

_OK = 200
_SERVER_ERROR = 500
"""This and more is what API servers answer, each version in its way, for a Service without a pod that answers."""
_SHOWN = 160


class NobodyError(StageError):
    """No pod of the comparator answers, or none yet."""


class Shadowing:
    """The comparator of one app."""

    def __init__(self, place: Place, folder: Path, log: Callable[[str], None] = print) -> None:
        """``folder`` is where what it found is kept; :attr:`Target.logs` names it."""
        self.place = place
        self.folder = folder
        self.log = log
        self._kept = Kept(folder)
        self._said = ""

    @property
    def name(self) -> str:
        """Its Deployment and its Service."""
        return f"{self.place.app.name}-comparator"

    @property
    def backend(self) -> Backend:
        """Where routers send copies."""
        host = f"{self.name}.{self.place.app.namespace}.svc"
        return Backend(name=self.name, http=f"{host}:{HTTP}", grpc=f"{host}:{GRPC}")

    def turn_to(self, stable: str, candidate: str) -> None:
        """Have these two compared from now on.

        :raises NobodyError: if it does not answer (yet)
        :raises StageError: if it does not take the order
        :raises ShipctlError: if the cluster cannot be asked
        """
        order = json.dumps({"stable": stable, "candidate": candidate}).encode()
        self._asked("POST", COMPARE, order)

    def fetch(self) -> Head:
        """Read what it found since the last time.

        :raises StageError: if it does not answer
        :raises ShipctlError: if the cluster cannot be asked
        """
        return self._kept.fetch(lambda since: self._asked("GET", f"{PATH}?since={quote(since)}"))

    def follow(self, traffic: Traffic, stable: str | None) -> None:
        """Read what it found while requests are copied; one that was restarted is told again what to compare.

        Fails only for what ends a release anyway: without comparisons there is no verdict, and the reason is said once.
        """
        if traffic.mirror is None or stable is None:
            return
        candidate = traffic.mirror.candidate
        try:
            head = self.fetch()
            if (head.stable, head.candidate) != (stable, candidate):
                self.turn_to(stable, candidate)
            if head.lost:
                self.log(f"{self.name} was restarted, or not read for too long: some comparisons are lost")
            self._said = ""
        except ShipctlError as error:
            if str(error) != self._said:
                self.log(f"comparisons cannot be read: {error}")
            self._said = str(error)

    def _asked(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else None
        status, answer = self.place.cluster.proxy(
            self.name, RESULTS, path, method=method, body=body, headers=headers
        )
        if status != _OK:
            said = " ".join(answer.decode(errors="replace").split())[:_SHOWN]
            message = (
                f"the comparator {self.name} does not answer (status {status}: {said}); see "
                f"`kubectl get pods -n {self.place.app.namespace} -l app.kubernetes.io/component=comparator`"
            )
            raise NobodyError(message) if status >= _SERVER_ERROR else StageError(message)
        return answer
