"""Asking one API server and understanding what it says: below all that is done with a cluster."""

from __future__ import annotations

import json
from typing import Any, NoReturn, Self

from shipctl_plugins._kubernetes.api.answers import NOT_FOUND, Asked, error_of, status_of
from shipctl_plugins._kubernetes.api.errors import UnreachableError
from shipctl_plugins._kubernetes.api.kinds import Kind, Kinds
from shipctl_plugins._kubernetes.api.messages import Answer, Request
from shipctl_plugins._kubernetes.api.transport import Transport

Manifest = dict[str, Any]
"""An object, as JSON has it."""
_REDIRECTION = 300


class Calls:
    """The calls of one namespace of a cluster."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._kinds = Kinds(self._discovered)
        self.namespace = transport.login.namespace
        self.url = transport.login.url
        """The API server's, without credentials."""
        self.user = transport.login.user
        """Who we are in the kubeconfig, for messages."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; the next call opens one again."""
        self._transport.close()

    def _call(self, request: Request) -> Answer:
        return self._transport.call(request)

    def _asked(self, verb: str, kind: Kind, name: str = "") -> Asked:
        return Asked(verb, kind.name, name, self.namespace, kind.api_version)

    def _good(self, answer: Answer, asked: Asked) -> Manifest:
        """Return the object in an answer.

        :raises ShipctlError: what an error answer means
        """
        if answer.failed:
            self._fail(answer, asked)
        found = answer.json()
        if not found or answer.status >= _REDIRECTION:
            raise UnreachableError(
                f"{self.url} answers as no Kubernetes API does (status {answer.status}); correct `server` in "
                f"{self._transport.login.source}"
            )
        return found

    def _fail(self, answer: Answer, asked: Asked) -> NoReturn:
        status = status_of(answer)
        if status.code == NOT_FOUND and not status.name and asked.api_version:
            raise self._kinds.missing(asked.api_version, asked.kind)
        raise error_of(status, asked, self._transport.login)

    def _discovered(self, path: str) -> Manifest | None:
        answer = self._call(Request("GET", path))
        if answer.status == NOT_FOUND:
            return None
        return self._good(answer, Asked("get", "discovery", "", ""))


def encoded(body: Any) -> bytes:
    """Return a body as JSON that is YAML, too, as which the API server reads what is applied.

    Escapes of characters above U+FFFF are pairs in JSON, and no characters in YAML.
    """
    return json.dumps(body, ensure_ascii=False).encode()
