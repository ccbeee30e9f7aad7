"""Every exception that shipctl shows to a user, chosen by what the caller should do about it.

The class decides the exit code, the message is shown alone, and only a bug shows a traceback.
"""

from __future__ import annotations

from typing import Any


class ShipctlError(Exception):
    """Base of all errors that are shown as their message, never as a traceback."""

    exit_code = 1


class StageError(ShipctlError):
    """A stage failed: it raised, crashed, hung, or broke its contract. Trying again may help if ``retry`` says so."""

    exit_code = 1


class StoreError(ShipctlError):
    """The artifact store or the journal cannot be read or written."""

    exit_code = 1


class CorruptArtifactError(StoreError):
    """Bytes in the store differ from their digest; the stage that made them has to run again."""

    def __init__(self, message: str, digest: str) -> None:
        """``digest`` is the SHA-256 (hex) that the bytes should have."""
        super().__init__(message)
        self.digest = digest


class SpecError(ShipctlError):
    """The spec or the command line is wrong; nothing has run yet."""

    exit_code = 2
    problems: tuple[Any, ...] = ()
    """What is wrong, each with its place (:class:`shipctl.spec.Problem`), where the message lists it."""


class PluginError(ShipctlError):
    """A plugin does not import, is not what it says it is, or was built for another API version."""

    exit_code = 3


class UnavailableError(ShipctlError):
    """Something that a stage needs is not on this machine (an extra, a tool, a device, a platform).

    Raised by ``check()`` at plan time; the message says how to get it or what works without it.
    """

    exit_code = 2


class GateError(ShipctlError):
    """A gate said no (or could not say yes, which is the same)."""

    exit_code = 4


class VerificationError(GateError):
    """A package is not what somebody who is trusted has signed; ``kind`` says in one word what is wrong with it."""

    def __init__(self, message: str, kind: str) -> None:
        """``kind`` is one of the words in :data:`shipctl.evidence.verify.KINDS`."""
        super().__init__(message)
        self.kind = kind


class StalePlanError(ShipctlError):
    """What a plan file pinned has changed since; nothing was done."""

    exit_code = 5


class WaitingError(ShipctlError):
    """The run waits for a person: an approval is missing or the release is paused."""

    exit_code = 6


class RolledBackError(ShipctlError):
    """A release degraded or failed after it was begun, and what served before serves again."""

    exit_code = 7


class LockedError(ShipctlError):
    """Another run holds the lock of the project or of the target."""

    exit_code = 8


class RunInterruptedError(ShipctlError):
    """The user pressed Ctrl-C (or the process was asked to end); finished stages are kept."""

    exit_code = 130
