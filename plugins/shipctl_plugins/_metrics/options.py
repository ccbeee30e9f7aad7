"""Options of all providers that ask somebody over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from shipctl.errors import UnavailableError
from shipctl.release.metrics import MetricOptions
from shipctl.spec.fields import fault
from shipctl.spec.units import Duration
from shipctl_plugins._metrics.web import Caller, address, guarded

MAX_TIMEOUT = 60.0
"""Seconds; while a provider is waited for, nothing else is decided."""


def bounded(value: Duration) -> Duration:
    """Return ``value`` if a release can wait so long for a number."""
    if not 0 < value <= MAX_TIMEOUT:
        raise fault(
            f"timeout {value} is not above 0 s and at most {MAX_TIMEOUT:g} s; a release waits that long"
        )
    return value


Timeout = Annotated[Duration, AfterValidator(bounded)]


class WebOptions(MetricOptions):
    """Whom to ask, and as whom."""

    url: Annotated[str, AfterValidator(address)] = Field(description="The address, with http:// or https://.")
    timeout: Timeout = Field(default=Duration("10s"), description="How long an answer may take, at most 60s.")
    token_env: str | None = Field(
        default=None,
        description="The environment variable that holds a bearer token; it is sent over https only.",
    )
    ca: Path | None = Field(
        default=None, description="A file with the authorities to trust, in place of the system's."
    )

    @field_validator("token_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and (not value.isidentifier() or not value.isascii()):
            raise fault("token_env is not the name of an environment variable; never write the token itself")
        return value

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        guarded(self.url, self.token_env)
        return self

    def caller(self, base: Path) -> Caller:
        """Return who asks; ``base`` is the folder that ``ca`` is relative to."""
        authority = None if self.ca is None else base / self.ca.expanduser()
        return Caller(timeout=float(self.timeout), token_env=self.token_env, authority=authority)

    def check(self, base: Path) -> Caller:
        """Return who asks, once the token and the file of authorities are there.

        :raises UnavailableError: if they are not
        """
        caller = self.caller(base)
        caller.token()
        if caller.authority is not None and not caller.authority.is_file():
            message = f"the file of authorities {caller.authority} does not exist; correct `ca`"
            raise UnavailableError(message)
        return caller
