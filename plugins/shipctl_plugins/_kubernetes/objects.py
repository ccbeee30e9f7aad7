"""The objects of an app in its namespace: put there with manners, and taken away again without touching others'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from shipctl.errors import StageError
from shipctl_plugins._kubernetes.api.connection import (
    ConflictError,
    FieldConflictError,
    ForbiddenError,
    InvalidError,
    MissingError,
    Ref,
)
from shipctl_plugins._kubernetes.app import LABEL_REVISION, Place, short
from shipctl_plugins._kubernetes.ports import taken

Object = dict[str, Any]

_ATTEMPTS = 10
"""How often an object is looked at again to which its controller writes all the time."""


class Kind(NamedTuple):
    """A kind of which there may be objects of ours."""

    api_version: str
    name: str


ROUTES = (
    Kind("gateway.networking.k8s.io/v1", "HTTPRoute"),
    Kind("gateway.networking.k8s.io/v1", "GRPCRoute"),
    Kind("networking.istio.io/v1beta1", "VirtualService"),
    Kind("networking.istio.io/v1beta1", "DestinationRule"),
    Kind("networking.k8s.io/v1", "Ingress"),
)
_OF_ROUTERS = tuple(kind for kind in ROUTES if kind.name in {"HTTPRoute", "GRPCRoute", "VirtualService"})
SCALERS = (Kind("autoscaling/v2", "HorizontalPodAutoscaler"), Kind("keda.sh/v1alpha1", "ScaledObject"))
ACCOUNTS = (
    Kind("rbac.authorization.k8s.io/v1", "RoleBinding"),
    Kind("rbac.authorization.k8s.io/v1", "Role"),
    Kind("v1", "ServiceAccount"),
)
GUARDS = (
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
    Kind("monitoring.coreos.com/v1", "PodMonitor"),
    Kind("monitoring.coreos.com/v1", "ServiceMonitor"),
)
SERVERS = (Kind("apps/v1", "Deployment"), Kind("v1", "Service"))
OF_REVISIONS = (*SCALERS, *SERVERS, Kind("policy/v1", "PodDisruptionBudget"))
"""Of which each revision has its own."""
KEPT = (Kind("v1", "ConfigMap"), Kind("coordination.k8s.io/v1", "Lease"))
EVERYTHING = (*ROUTES, *SCALERS, *SERVERS, *GUARDS, *ACCOUNTS, *KEPT)
"""In the order in which they are taken away: first what brings requests, last who may act."""
LATER = frozenset({"Ingress", "PodMonitor", "ServiceMonitor"})
"""What changes only with a promotion: until then it is the stable revision's. The rest is needed by new pods."""
DISPENSABLE = frozenset({"PodDisruptionBudget"})
"""Good practice that is left out where the cluster is too old for it."""


def named(found: Object) -> str:
    """Return what a person calls an object."""
    return f"{found['kind']} {found['metadata']['name']}"


def reference(found: Object) -> Ref:
    """Return the name by which the cluster is asked for an object."""
    return Ref(found["apiVersion"], found["kind"], found["metadata"]["name"])


def component(found: Object) -> str:
    """Return which part of the app an object is, as its label says."""
    return str((found["metadata"].get("labels") or {}).get("app.kubernetes.io/component", ""))


def revision_label(found: Object) -> str | None:
    """Return the digits of the revision that an object belongs to; None for what is shared."""
    return (found["metadata"].get("labels") or {}).get(LABEL_REVISION)


def apply(
    place: Place, manifest: Object, log: Callable[[str], None], *, dry_run: bool = False
) -> Object | None:
    """Apply a manifest on the server's side; None where the cluster is too old for something that is dispensable.

    :raises FieldConflictError: if somebody else has changed a field that is ours, naming him and what to do
    :raises ShipctlError: as :meth:`Cluster.apply`
    """
    cluster = place.cluster
    if manifest["kind"] in DISPENSABLE and not cluster.has(manifest["apiVersion"], manifest["kind"]):
        log(
            f"the cluster has no {manifest['kind']} of {manifest['apiVersion']}; {named(manifest)} is left out"
        )
        return None
    _not_anothers(place, cluster.get(reference(manifest)))
    try:
        return cluster.apply(manifest, dry_run=dry_run)
    except FieldConflictError as exc:
        raise _conflict(place, manifest, exc.managers, exc.fields) from exc
    except InvalidError as exc:
        wrong = taken(manifest, cluster.get(reference(manifest)))
        if not wrong:
            raise
        managers = tuple(dict.fromkeys(name for each in wrong for name in each.managers))
        fields = tuple(f"{each.field}, which is {each.name!r}" for each in wrong)
        raise _conflict(place, manifest, managers, fields) from exc


def _conflict(
    place: Place, manifest: Object, managers: Sequence[str], fields: Sequence[str]
) -> FieldConflictError:
    who = ", ".join(managers) or "somebody else"
    message = (
        f"{who} has changed {named(manifest)} in {place.app.namespace} ({', '.join(fields) or 'some fields'}), "
        "which shipctl manages: undo that, or write it into the spec; `kubectl get --show-managed-fields` shows who"
    )
    return FieldConflictError(message, managers, fields)


def _not_anothers(place: Place, live: Object | None) -> None:
    """Refuse to write into what somebody else has made under the same name."""
    if live is None:
        return
    labels = live["metadata"].get("labels") or {}
    if all(labels.get(key) == value for key, value in place.app.selector.items()):
        return
    owner = labels.get("app.kubernetes.io/managed-by")
    message = (
        f"{named(live)} in {place.app.namespace} {f'belongs to {owner}' if owner else 'is not of this pipeline'}, and "
        "nothing in it was changed; choose another `name` for the target, or remove it"
    )
    raise StageError(message)


def ours(place: Place, kinds: Iterable[Kind]) -> list[Object]:
    """Return all objects of these kinds that carry this app's labels, in the order of the kinds.

    Kinds that the cluster does not serve, or of which we may see nothing, have none of ours. The Role of who runs
    shipctl, and what binds it, are the administrator's, whatever labels they have.
    """
    return [each for kind in kinds for each in _ours(place, kind)]


def any_of_ours(place: Place, kinds: Sequence[Kind]) -> bool:
    """Whether :func:`ours` would return anything; asks for the last kind first, as what is remembered stays longest."""
    return any(_ours(place, kind) for kind in reversed(kinds))


def _ours(place: Place, kind: Kind) -> list[Object]:
    if not place.cluster.has(kind.api_version, kind.name):
        return []
    try:
        listed = place.cluster.list(kind.api_version, kind.name, place.app.selector)
    except ForbiddenError:
        return []
    return [each for each in listed if not _gives_us_rights(place, each)]


def _gives_us_rights(place: Place, found: Object) -> bool:
    named = found["metadata"]["name"], (found.get("roleRef") or {}).get("name")
    return found["kind"] in {"Role", "RoleBinding"} and place.app.operator in named


def prune(place: Place, rendered: Sequence[Object], revisions: Iterable[str], *, accounts: bool) -> list[str]:
    """Delete what is ours and is not rendered any more, and say what that was.

    What belongs to one of ``revisions`` stays as that was rendered. Routes, Services that clients use, and what is
    remembered are not looked at. ``accounts`` says whether nobody runs any more under an account of before.
    """
    kinds = [*SCALERS, *GUARDS, Kind("networking.k8s.io/v1", "Ingress"), *(ACCOUNTS if accounts else ())]
    wanted = {(each["kind"], each["metadata"]["name"]) for each in rendered}
    alive = {short(revision) for revision in revisions}
    workers = {"watchdog", "comparator"}
    candidates = [*ours(place, kinds), *(each for each in ours(place, SERVERS) if component(each) in workers)]
    lines = []
    for each in candidates:
        if (each["kind"], each["metadata"]["name"]) in wanted or revision_label(each) in alive:
            continue
        if place.cluster.delete(reference(each), uid=each["metadata"]["uid"]):
            lines.append(f"{named(each)} is not in the spec any more and was deleted")
    return lines


def prune_routes(place: Place, wanted: Iterable[Ref]) -> list[str]:
    """Delete the routes of ours that nobody follows any more, and say what that was; ``wanted`` are left alone.

    A spec that names another router leaves those of the one before, whose destinations are about to go.
    """
    kept = {(each.api_version.partition("/")[0], each.kind, each.name) for each in wanted}
    lines = []
    for each in ours(place, _OF_ROUTERS):
        group = each["apiVersion"].partition("/")[0]
        if (group, each["kind"], each["metadata"]["name"]) in kept:
            continue
        if place.cluster.delete(reference(each), uid=each["metadata"]["uid"]):
            lines.append(f"{named(each)} is of a router that is not in the spec any more and was deleted")
    return lines


def remove(place: Place, found: Iterable[Object]) -> list[str]:
    """Delete these very objects and say which were there."""
    return [
        f"{named(each)} was deleted"
        for each in found
        if place.cluster.delete(reference(each), uid=each["metadata"]["uid"])
    ]


def scale(place: Place, deployment: Object, replicas: int, guard: Callable[[], None]) -> None:
    """Have a Deployment ask for so many replicas; one that does already is left alone.

    It is changed from the version that was seen, and ``guard`` is called before each attempt: who was overtaken
    changes nothing. Only its `scale` is patched, as `kubectl scale` does.

    :raises StageError: if it is gone, or is changed again and again
    """
    live: Object | None = deployment
    for _ in range(_ATTEMPTS):
        if live is None:
            break
        if live["spec"].get("replicas") == replicas:
            return
        guard()
        body, version = {"spec": {"replicas": replicas}}, live["metadata"]["resourceVersion"]
        with suppress(ConflictError, MissingError):
            place.cluster.patch(reference(live), body, subresource="scale", resource_version=version)
            return
        live = place.cluster.get(reference(deployment))
    how = "is gone" if live is None else "is changed again and again by others"
    message = f"{named(deployment)} in {place.app.namespace} {how}; look with `shipctl status`, and run again"
    raise StageError(message)
