"""What can go wrong with a cluster, chosen by what the caller can do about it."""

from __future__ import annotations

from collections.abc import Sequence

from shipctl.errors import StageError, UnavailableError


class UnreachableError(UnavailableError):
    """The API server did not answer, or not with anything of use, for as long as it was given."""


class LoginError(UnavailableError):
    """The API server does not accept who we say we are (401), or there is no way to say it."""


class ForbiddenError(UnavailableError):
    """The user has no right to do this (403); the message has the rule of the Role that is missing."""


class NoSuchKindError(UnavailableError):
    """The cluster does not serve this kind, or not this version of it."""


class MissingError(StageError):
    """What was to be changed is not there (404)."""


class GoneError(StageError):
    """The namespace does not exist, or is being deleted."""


class ConflictError(StageError):
    """Somebody else has changed the object meanwhile (409): look again, and decide again."""


class ExistsError(ConflictError):
    """What was to be created is there already (409)."""


class FieldConflictError(StageError):
    """Fields of an applied object belong to somebody else (409)."""

    def __init__(self, message: str, managers: Sequence[str] = (), fields: Sequence[str] = ()) -> None:
        """``managers`` are the owners' names, ``fields`` paths such as `.spec.replicas`."""
        super().__init__(message)
        self.managers = tuple(managers)
        self.fields = tuple(fields)


class QuotaError(StageError):
    """The namespace's quota has no room for it (403)."""


class InvalidError(StageError):
    """The API server finds that the object is not what its kind can be (400, 422)."""
