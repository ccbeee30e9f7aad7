"""One namespace of one cluster: objects are read, applied, created, replaced, patched, deleted and watched.

Everything is a dict as JSON has it. The Kubernetes client finds out who we are and keeps the connections; its typed
models stay out, as they know the kinds of one Kubernetes version only. What the cluster answers becomes one of the
exceptions of :mod:`._kubernetes.errors`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from shipctl.errors import UnavailableError
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.answers import (
    CONFLICT,
    GONE,
    INVALID,
    Asked,
    is_missing,
    status_of,
)
from shipctl_plugins._kubernetes.api.calls import Calls, Manifest, encoded
from shipctl_plugins._kubernetes.api.errors import (
    ConflictError,
    ExistsError,
    FieldConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    LoginError,
    MissingError,
    NoSuchKindError,
    QuotaError,
    UnreachableError,
)
from shipctl_plugins._kubernetes.api.kinds import Kind
from shipctl_plugins._kubernetes.api.login import log_in
from shipctl_plugins._kubernetes.api.messages import Request
from shipctl_plugins._kubernetes.api.same import covers
from shipctl_plugins._kubernetes.api.transport import Transport
from shipctl_plugins._kubernetes.api.watching import Events
from shipctl_plugins._kubernetes.app import FIELD_MANAGER

__all__ = [
    "Access",
    "Cluster",
    "ConflictError",
    "ExistsError",
    "FieldConflictError",
    "ForbiddenError",
    "GoneError",
    "InvalidError",
    "LoginError",
    "MissingError",
    "NoSuchKindError",
    "QuotaError",
    "Ref",
    "UnreachableError",
    "connect",
]

_PAGE = 500
_APPLY = "application/apply-patch+yaml"
_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_SERVER_ERROR, _UNAVAILABLE = 500, 503
_STRICT = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
"""A field that the server does not know is an error, from Kubernetes 1.25 on; older servers drop it in silence."""


class Ref(NamedTuple):
    """One object of the cluster's namespace."""

    api_version: str
    kind: str
    name: str


def connect(access: Access, base: Path, log: Callable[[str], None] = print) -> Cluster:
    """Return the cluster that ``access`` means. The API server is not asked yet; a login program may run.

    ``base`` is what the kubeconfig's path is relative to; ``log`` is told when the server does not answer, and what it
    warns of.

    :raises UnavailableError: if there is no kubeconfig, no such context, or no way to log in
    """
    for package in ("kubernetes", "yaml"):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f"{package} is not installed here; pip install 'shipctl[kubernetes]'")
    return Cluster(Transport(partial(log_in, access, base), float(access.timeout), log))


class Cluster(Calls):
    """One namespace of a cluster. Safe for threads.

    Each method makes calls that are tried again while that may help, for at most :attr:`Access.timeout`, and raises
    :class:`UnreachableError` after that, :class:`LoginError` (401), :class:`ForbiddenError` (403),
    :class:`NoSuchKindError`, and :class:`GoneError` where the namespace is missing or about to be. All of it is a
    :class:`shipctl.errors.ShipctlError` with one line for a person.
    """

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, ref: Ref) -> Manifest | None:
        """Return an object, or None if there is none."""
        kind = self._kinds.find(ref.api_version, ref.kind)
        answer = self._call(Request("GET", kind.path(self.namespace, ref.name)))
        if is_missing(answer, ref.name):
            return None
        return self._good(answer, self._asked("get", kind, ref.name))

    def list(self, api_version: str, kind: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Return all objects of a kind that have the labels. They come in pages, unless pages expire."""
        known = self._kinds.find(api_version, kind)
        asked = self._asked("list", known)
        items: list[Manifest] = []
        query = {"limit": str(_PAGE), **_selector(labels)}
        token = ""
        while True:
            request = Request(
                "GET", known.path(self.namespace), {**query, **({"continue": token} if token else {})}
            )
            answer = self._call(request)
            if answer.status == GONE and token:  # it took too long: all at once, then, as kubectl does
                items, token = [], ""
                query.pop("limit")
                continue
            page = self._good(answer, asked)
            items += ({"apiVersion": api_version, "kind": kind, **item} for item in page.get("items") or ())
            token = str((page.get("metadata") or {}).get("continue") or "")
            if not token:
                return items

    def watch(
        self, api_version: str, kind: str, labels: Mapping[str, str] | None = None, *, seconds: float
    ) -> Iterator[tuple[str, Manifest]]:
        """Yield what becomes of the objects of a kind for so many seconds: ADDED, MODIFIED or DELETED, and the object.

        It begins with ADDED for each that is there. After the server has forgotten where the watch was (410), these
        come once more; a connection that is dropped is made again and goes on where it was.
        """
        known = self._kinds.find(api_version, kind)
        request = Request("GET", known.path(self.namespace), _selector(labels))
        events = Events(self._transport, request)
        yield from events.during(seconds, lambda answer: self._fail(answer, self._asked("watch", known)))

    # -- writing -------------------------------------------------------------------------------------------

    def apply(self, manifest: Manifest, *, force: bool = False, dry_run: bool = False) -> Manifest:
        """Apply on the server's side as :data:`FIELD_MANAGER` and return the object as it is now (or would be).

        Fields that we applied before and that are missing now are removed, what others own stays. A
        `metadata.resourceVersion` is a precondition. ``force`` takes fields over from others.

        :raises FieldConflictError: if fields belong to somebody else, and have other values there
        :raises ConflictError: if the resourceVersion is not that of the object any more
        :raises InvalidError: if the object is not valid
        """
        query = {**_STRICT, "force": str(force).lower(), **_dry(dry_run)}
        return self._write("PATCH", "patch", manifest, query, content_type=_APPLY)

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create an object and return it as it is now.

        :raises ExistsError: if there is one of that name
        """
        return self._write("POST", "create", manifest, {**_STRICT, **_dry(dry_run)})

    def replace(self, manifest: Manifest) -> Manifest:
        """Put an object in the place of the one of its name; `metadata.resourceVersion` is the precondition.

        :raises ConflictError: if the object has been changed since that version
        :raises MissingError: if it is not there
        """
        return self._write("PUT", "update", manifest, _STRICT)

    def patch(
        self,
        ref: Ref,
        body: Any,
        *,
        kind: Literal["merge", "json", "strategic"] = "merge",
        subresource: str = "",
        resource_version: str | None = None,
    ) -> Manifest:
        """Change part of an object and return all of it; ``body`` is a list for a JSON patch, else a dict.

        :raises ConflictError: if the object's version is not ``resource_version``, or a `test` of the patch fails
        :raises MissingError: if it is not there
        """
        known = self._kinds.find(ref.api_version, ref.kind)
        if resource_version is not None and kind == "json":
            body = [{"op": "test", "path": "/metadata/resourceVersion", "value": resource_version}, *body]
        elif resource_version is not None:
            metadata = {**body.get("metadata", {}), "resourceVersion": resource_version}
            body = {**body, "metadata": metadata}
        request = Request(  # without a test, "add to the list" twice is two more
            "PATCH",
            known.path(self.namespace, ref.name, subresource),
            {"fieldManager": FIELD_MANAGER},
            encoded(body),
            _PATCHES[kind],
            repeatable=kind != "json" or any(each["op"] == "test" for each in body),
        )
        answer = self._call(request)
        if answer.doubtful and answer.status == CONFLICT and (live := self._done(ref, body)):
            return live
        if kind == "json" and answer.status == INVALID and not status_of(answer).name:
            raise ConflictError(  # the server does not say more than that the patch cannot be applied
                f"{ref.kind} {ref.name} in namespace {self.namespace} is not as expected any more; run the same "
                "command again"
            )
        return self._good(answer, self._asked("patch", known, ref.name))

    def delete(
        self,
        ref: Ref,
        *,
        uid: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> bool:
        """Have an object deleted, and return whether it was there (with ``uid``: that very one)."""
        known = self._kinds.find(ref.api_version, ref.kind)
        options: Manifest = {"propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        request = Request("DELETE", known.path(self.namespace, ref.name), body=encoded(options))
        answer = self._call(request)
        if is_missing(answer, ref.name):
            return answer.doubtful
        if answer.status == CONFLICT and uid is not None:
            live = self.get(ref)
            if live is None or live["metadata"]["uid"] != uid:
                return answer.doubtful and live is None
        self._good(answer, self._asked("delete", known, ref.name))
        return True

    # -- about the cluster ---------------------------------------------------------------------------------

    def has(self, api_version: str, kind: str) -> bool:
        """Whether the cluster serves a kind in this version."""
        return self._kinds.has(api_version, kind)

    def first_served(self, versions: Sequence[str], kind: str) -> str:
        """Return the first of these versions in which the cluster serves a kind; the first one if it does in none."""
        return self._kinds.first(versions, kind) or versions[0]

    def allowed(
        self, verb: str, api_version: str, kind: str, subresource: str = "", *, name: str = ""
    ) -> bool:
        """Whether we may do this with all objects of a kind here, or with one of them (a SelfSubjectAccessReview)."""
        known = self._kinds.find(api_version, kind)
        attributes = {
            "verb": verb,
            "group": known.group,
            "resource": known.plural,
            "subresource": subresource,
            "name": name,
        }
        if known.namespaced:
            attributes["namespace"] = self.namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {name: value for name, value in attributes.items() if value}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = self._call(Request("POST", path, body=encoded(review)))
        found = self._good(answer, Asked("create", "SelfSubjectAccessReview", "", self.namespace))
        return bool(found.get("status", {}).get("allowed"))

    def version(self) -> tuple[int, int]:
        """Return the cluster's Kubernetes version, such as (1, 34)."""
        answer = self._call(Request("GET", "/version"))
        found = self._good(answer, Asked("get", "version", "", ""))
        major, minor = ("".join(filter(str.isdigit, str(found.get(part)))) for part in ("major", "minor"))
        return int(major or 0), int(minor or 0)  # some write 34+

    def proxy(
        self,
        service: str,
        port: int,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Ask a Service through the API server and return status and body; needs the right to services/proxy.

        What the service answers is not judged. A 500 or 503 is also what the API server says of one without a pod that
        answers.

        :raises MissingError: if there is no such Service
        """
        there = Kind("v1", "Service", "services").path(self.namespace, f"{service}:{port}", "proxy")
        request = Request(
            method,
            f"{there}/{quote(path.lstrip('/'), safe='/:?&=%')}",
            body=body,
            headers=headers or {},
            passing=frozenset({429}),
        )
        answer = self._call(request)
        if is_missing(answer, service) and self.get(Ref("v1", "Service", service)):
            return (
                _UNAVAILABLE,
                answer.body,
            )  # it has no Endpoints yet, which the API server takes for no Service
        if answer.failed and answer.status < _SERVER_ERROR and status_of(answer).reason:
            self._fail(answer, Asked(method.lower(), "Service", service, self.namespace))
        return answer.status, answer.body

    # -- calls ---------------------------------------------------------------------------------------------

    def _write(
        self,
        method: str,
        verb: str,
        manifest: Manifest,
        query: Mapping[str, str],
        content_type: str = "application/json",
    ) -> Manifest:
        known = self._kinds.find(manifest["apiVersion"], manifest["kind"])
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
        if known.namespaced:
            metadata.setdefault("namespace", self.namespace)
        name = str(metadata.get("name", ""))
        path = known.path(str(metadata.get("namespace", "")), "" if method == "POST" else name)
        body = {**manifest, "metadata": metadata}
        ref = Ref(manifest["apiVersion"], manifest["kind"], name)
        request = Request(method, path, query, encoded(body), content_type, repeatable=bool(name))
        answer = self._call(request)
        if answer.doubtful and answer.status == CONFLICT and (live := self._done(ref, body)):
            return live
        return self._good(answer, self._asked(verb, known, name))

    def _done(self, ref: Ref, wanted: Manifest) -> Manifest | None:
        """Return the live object if it is what an attempt without an answer wanted: it was that attempt, then."""
        live = self.get(ref)
        return live if live is not None and covers(live, wanted) else None


def _selector(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else {}


def _dry(dry_run: bool) -> dict[str, str]:  # noqa: FBT001
    return {"dryRun": "All"} if dry_run else {}
