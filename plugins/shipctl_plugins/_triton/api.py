"""The management part of Triton's HTTP API (health, metadata, repository), over the standard library.

Inference goes through `tritonclient` in :mod:`shipctl_plugins._triton.client`; management is small JSON and is
called from shipctl's own process, which should load neither gevent nor gRPC for it. Proxy variables are
not looked at. Protocol: Open Inference Protocol v2 and Triton's model repository extension.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from shipctl.errors import StageError

LOOPBACK = "127.0.0.1"


class TritonApiError(StageError):
    """The server answered with an error, or not at all (``status`` 0)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class TritonApi:
    """A server's HTTP endpoint on loopback."""

    port: int
    timeout: float = 10.0

    def model_ready(self, model: str, version: int | None = None) -> bool:
        """Whether the server says that the model (or that version of it) is ready."""
        return self._says_yes(f"{self._model(model, version)}/ready")

    def server_id(self) -> str:
        """Return what `--id` gave it."""
        return str(self._json("GET", "/v2")["name"])

    def config(self, model: str, version: int | None = None) -> dict[str, Any]:
        """Return the configuration that the server uses for a model."""
        return dict(self._json("GET", f"{self._model(model, version)}/config"))

    def parameter(self, model: str, key: str, version: int | None = None) -> str | None:
        """Return one string from `parameters` of the configuration that the server uses."""
        found = self.config(model, version).get("parameters", {}).get(key)
        return None if found is None else str(found["string_value"])

    def index(self) -> list[dict[str, Any]]:
        """Return the models and versions that the server knows, with state and reason."""
        return list(self._json("POST", "/v2/repository/index", {}))

    def loaded_versions(self, model: str) -> list[int]:
        """Return the versions of ``model`` that are ready, in ascending order."""
        return sorted(
            int(entry["version"])
            for entry in self.index()
            if entry["name"] == model and entry.get("state") == "READY"
        )

    def load(self, model: str, *, timeout: float) -> None:
        """Load or reload a model as its configuration on disk says.

        :raises TritonApiError: with the server's own text, which for a bad configuration hides the reason
        """
        self._json("POST", f"/v2/repository/models/{quote(model, safe='')}/load", {}, timeout=timeout)

    def unload(self, model: str, *, timeout: float) -> None:
        """Unload all versions of a model."""
        self._json("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", {}, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send one request and return status, body and headers (names in lower case).

        :raises TritonApiError: with status 0 when there is no answer
        """
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=timeout or self.timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, http.client.HTTPException) as error:
            message = f"no answer from {LOOPBACK}:{self.port}: {str(error) or type(error).__name__}"
            raise TritonApiError(message, 0) from error
        finally:
            connection.close()

    def _says_yes(self, path: str) -> bool:
        try:
            return self.request("GET", path)[0] == http.HTTPStatus.OK
        except TritonApiError:
            return False

    def _json(self, method: str, path: str, body: object = None, *, timeout: float | None = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        status, content, _ = self.request(method, path, sent, timeout=timeout)
        try:
            said = json.loads(content) if content else {}
        except ValueError:
            said = {"error": content.decode(errors="replace")}
        if status != http.HTTPStatus.OK:
            raise TritonApiError(str(said.get("error", f"HTTP status {status}")), status)
        return said

    @staticmethod
    def _model(model: str, version: int | None) -> str:
        path = f"/v2/models/{quote(model, safe='')}"
        return path if version is None else f"{path}/versions/{version}"
