"""What the API server's error answers mean: a `Status` object as one of our exceptions, in one line for a person.

Reasons and causes: kubernetes.io/docs/reference/kubernetes-api/common-definitions/status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from shipctl.errors import ShipctlError, StageError
from shipctl.spec.problems import listed
from shipctl_plugins._kubernetes.api.errors import (
    ConflictError,
    ExistsError,
    FieldConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    LoginError,
    MissingError,
    QuotaError,
    UnreachableError,
)
from shipctl_plugins._kubernetes.api.login import Login
from shipctl_plugins._kubernetes.api.messages import Answer
from shipctl_plugins._kubernetes.app import FIELD_MANAGER

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, INVALID = 400, 401, 403, 404, 409, 410, 422
_SHOWN = 600
_RIGHT = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>[a-z]+) (?:resource|path) "(?P<resource>[^"]*)"'
    r'(?: in API group "(?P<group>[^"]*)")?(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_OWNER = re.compile(r'conflict with "([^"]*)"')
_POD = "the pod's service account"
"""What a login without a kubeconfig is called."""


class Asked(NamedTuple):
    """What a call was about, for messages."""

    verb: str
    """In Kubernetes' words: get, list, watch, create, update, patch, delete."""
    kind: str
    name: str
    namespace: str
    api_version: str = ""

    @property
    def what(self) -> str:
        """Such as `Deployment shop`."""
        return f"{self.kind} {self.name}".strip()


class Status(NamedTuple):
    """An error answer, read."""

    code: int
    reason: str | None
    """None: it is no `Status`, and so not from an API server."""
    message: str
    name: str
    """Of the object that it is about."""
    kind: str
    """Its plural, such as `namespaces`."""
    group: str
    causes: tuple[Mapping[str, Any], ...]

    def has(self, cause: str) -> bool:
        """Whether a cause of that reason is among those given."""
        return any(each.get("reason") == cause for each in self.causes)


def called(user: str) -> str:
    """Say who we are where only the name of the kubeconfig's entry is known, which need not be that of a person."""
    return user if user == _POD else f"user entry {user} of the kubeconfig"


def status_of(answer: Answer) -> Status:
    """Read an error answer."""
    return status_from(answer.status, answer.json())


def status_from(code: int, document: Mapping[str, Any]) -> Status:
    """Read a `Status` object."""
    if document.get("kind") != "Status":
        return Status(code, None, f"status {code}", "", "", "", ())
    details = document.get("details") or {}
    return Status(
        int(document.get("code") or code),
        str(document.get("reason") or ""),
        _line(str(document.get("message") or f"status {code}")),
        str(details.get("name") or ""),
        str(details.get("kind") or ""),
        str(details.get("group") or ""),
        tuple(details.get("causes") or ()),
    )


def is_missing(answer: Answer, name: str) -> bool:
    """Whether it says that the object of that name is not there, rather than its kind."""
    return answer.status == NOT_FOUND and status_of(answer).name == name


def error_of(status: Status, asked: Asked, login: Login) -> ShipctlError:
    """Return the exception that an error answer means."""
    status = status._replace(message=login.redact(status.message))
    if status.code == UNAUTHORIZED:
        return LoginError(
            f"the cluster {login.url} does not accept the login of {login.user} ({login.source}); log in again, and "
            "see `kubectl get pods` with it"
        )
    if status.reason is None:
        return UnreachableError(
            f"{login.url} answers as no Kubernetes API does ({status.message}); correct `server` in {login.source}"
        )
    if status.code == FORBIDDEN:
        return _forbidden(status, asked, login)
    if status.code == NOT_FOUND:
        return _not_found(status, asked)
    if status.code == CONFLICT:
        return _conflict(status, asked)
    if status.code in {BAD_REQUEST, INVALID}:
        return _invalid(status, asked)
    return StageError(
        f"{asked.what}: the cluster refuses to {asked.verb} it: {status.message}; see that object there"
    )


def _forbidden(status: Status, asked: Asked, login: Login) -> ShipctlError:
    if status.has("NamespaceTerminating") or "because it is being terminated" in status.message:
        return _terminating(asked)
    if "exceeded quota" in status.message:
        said = status.message[status.message.index("exceeded quota") :]
        return QuotaError(
            f"{asked.what}: no room in namespace {asked.namespace}: {said}; free some of it, or ask for more"
        )
    right = _RIGHT.search(status.message)
    if right is None and asked.verb == "patch" and status.message.endswith(" is forbidden:"):
        rule = _rule(
            status.group, status.kind, "create"
        )  # applying what is not there yet is said without a word
        return ForbiddenError(
            f"{called(login.user)} may not create {status.kind} in namespace {asked.namespace}; add to a Role there: "
            f"{rule}"
        )
    if right is None:
        said = status.message.partition(" is forbidden: ")[2] or status.message
        return StageError(
            f"{asked.what}: the cluster does not admit it: {said}; change it, or ask who runs the cluster"
        )
    user, verb, resource, group, namespace = right.groups()
    if user == "system:anonymous":
        return LoginError(f"the cluster {login.url} does not know who we are ({login.source}); log in again")
    inside = f" in namespace {namespace}" if namespace else ""
    role = "a Role there" if namespace else "a ClusterRole"
    rule = _rule(group or "", resource, verb)
    return ForbiddenError(f"{user} may not {verb} {resource}{inside}; add to {role}: {rule}")


def _rule(group: str, resource: str, verb: str) -> str:
    return f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}'


def _not_found(status: Status, asked: Asked) -> ShipctlError:
    if status.kind == "namespaces" and asked.kind != "Namespace":
        return GoneError(
            f"there is no namespace {status.name} in the cluster; kubectl create namespace {status.name}, or correct "
            "`namespace:`"
        )
    if status.name and (status.name != asked.name or not _is_plural(status.kind, asked.kind)):
        needed = ".".join(filter(None, (status.kind, status.group)))
        return MissingError(
            f"{asked.what} needs {needed} {status.name}, which is not in namespace {asked.namespace}; make that first, "
            "then run the same command again"
        )
    return MissingError(
        f"there is no {asked.what} in namespace {asked.namespace} any more; run the same command again"
    )


def _is_plural(plural: str, kind: str) -> bool:
    """Whether ``plural`` (of a path) may be that of ``kind``, by the rule that Kubernetes itself makes them with."""
    one = kind.lower()
    return plural.lower() in {"", one, f"{one}s", f"{one}es", f"{one.removesuffix('y')}ies"}


def _conflict(status: Status, asked: Asked) -> ShipctlError:
    if status.has("FieldManagerConflict"):
        return _owned(status, asked)
    if status.has("NamespaceTerminating"):
        return _terminating(asked)
    if status.reason == "AlreadyExists":
        return ExistsError(
            f"there is a {asked.what} in namespace {asked.namespace} already; look at it, and run again"
        )
    return ConflictError(
        f"somebody else has changed {asked.what} in namespace {asked.namespace} meanwhile; run the same command again"
    )


def _owned(status: Status, asked: Asked) -> FieldConflictError:
    owned: dict[str, list[str]] = {}
    for cause in status.causes:
        found = _OWNER.search(str(cause.get("message") or ""))
        owner = found[1] if found else "somebody else"
        owned.setdefault(owner, []).append(str(cause.get("field") or "a field"))
    said = " and ".join(
        f"{listed(fields)} {'is' if len(fields) == 1 else 'are'} {owner}'s" for owner, fields in owned.items()
    )
    message = (
        f"{asked.what}: {said}; leave that out of what shipctl applies, or take it over with `kubectl apply "
        f"--server-side --force-conflicts --field-manager={FIELD_MANAGER}`"
    )
    return FieldConflictError(message, tuple(owned), [each for fields in owned.values() for each in fields])


def _invalid(status: Status, asked: Asked) -> ShipctlError:
    causes = [
        f"{each['field']}: {_line(str(each.get('message') or ''))}"
        for each in status.causes
        if each.get("field")
    ]
    said = "; ".join(causes) or status.message
    return InvalidError(
        f"{asked.what} is not valid: {said[:_SHOWN]}; correct that in the spec or in its template"
    )


def _terminating(asked: Asked) -> GoneError:
    return GoneError(
        f"{asked.what}: namespace {asked.namespace} is being deleted; wait until it is gone and create it again, or "
        "correct `namespace:`"
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]
