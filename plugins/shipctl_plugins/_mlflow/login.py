"""Where an MLflow server is, who we are there, and how patient we are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from shipctl.errors import SpecError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Login:
    """Where the server is and who we are. Secrets are in no representation of it."""

    uri: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT_S
    """Seconds for one request."""

    @property
    def shown(self) -> str:
        """The URI without credentials."""
        return public_uri(self.uri)

    def environ(self) -> dict[str, str]:
        """Return the environment variables that MLflow is to have besides those that the user has set."""
        named = {
            "MLFLOW_TRACKING_TOKEN": self.token,
            "MLFLOW_TRACKING_USERNAME": self.username,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }
        if any(
            named.values()
        ):  # a token of the environment must not win over a name of the spec, nor the reverse
            named = {name: value or "" for name, value in named.items()}
        return {
            **{name: value for name, value in named.items() if value is not None},
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(self.timeout))),
            "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }

    def redact(self, text: str) -> str:
        """Return ``text`` without our secrets."""
        text = text.replace(self.uri, self.shown)
        parts = urlsplit(self.uri)
        for secret in (self.token, self.password, parts.password):
            if secret:
                text = text.replace(secret, "***")
        return text


def public_uri(uri: str) -> str:
    """Return a URI without user name and password."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host)).rstrip("/")


def tracking_uri(given: str | None) -> str:
    """Return the server's URI: what was given, or what the environment says.

    :raises SpecError: if nothing does
    """
    uri = given or os.environ.get(URI_VARIABLE, "").strip()
    if not uri:
        message = f"no MLflow server is named: set `uri`, or export {URI_VARIABLE}=https://HOST"
        raise SpecError(message)
    return uri
