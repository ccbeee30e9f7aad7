"""What is looked at before anything has run: whether a release to this cluster can go, and what it lacks if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shipctl.errors import ShipctlError, SpecError, UnavailableError
from shipctl.release.routers import router_class
from shipctl.release.surge import Surge
from shipctl.stages.context import CheckContext
from shipctl_plugins._kubernetes.api.connection import Cluster, ForbiddenError, GoneError, Ref, connect
from shipctl_plugins._kubernetes.app import App, Place, dns_label
from shipctl_plugins._kubernetes.capacity import quota_problem
from shipctl_plugins._kubernetes.lint.problems import problems
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of, with_store
from shipctl_plugins._kubernetes.manifests.render import elsewhere
from shipctl_plugins._kubernetes.manifests.roles import operator_rules
from shipctl_plugins._kubernetes.objects import DISPENSABLE
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.pods import wanted_of
from shipctl_plugins._kubernetes.repository import base_uri
from shipctl_plugins._kubernetes.rights import check_rights
from shipctl_plugins._kubernetes.state import Entry

Object = dict[str, Any]
_NOTHING = "0" * 64


def check(options: KubernetesOptions, ctx: CheckContext) -> None:
    """Look at the spec first, then at the cluster.

    :raises SpecError: for what the spec has to say differently
    :raises UnavailableError: for what cannot be reached, or is missing there
    """
    options = with_store(options, ctx.store)
    uri = base_uri(options, ctx.store)
    router, router_options = router_class(options.router)
    _check_rendered(options, ctx, uri)
    try:
        cluster = connect(options, ctx.base, lambda _line: None)
        app = app_of(options, ctx.pipeline, ctx.environment, cluster.namespace)
        place = Place(cluster, app)
        _check_namespace(cluster, app)
        _check_kinds(cluster, [*_rendered(options, ctx, app, uri)])
        check_rights(cluster, app, operator_rules(options, app))
        router.check(router_options, ctx, place)
        _check_room(cluster, options, ctx, app, uri)
    except (SpecError, UnavailableError):
        raise
    except ShipctlError as exc:
        raise UnavailableError(str(exc)) from exc


def _check_rendered(options: KubernetesOptions, ctx: CheckContext, uri: str) -> None:
    app = app_of(options, ctx.pipeline, ctx.environment)
    rendered = _rendered(options, ctx, app, uri)
    found = problems(rendered, options.kubernetesVersion, elsewhere=elsewhere(options))
    if found:
        message = f"what would be put into the cluster is not right: {'; '.join(found)}"
        raise SpecError(message)


def _rendered(options: KubernetesOptions, ctx: CheckContext, app: App, uri: str) -> list[Object]:
    """Return all manifests, for a revision that stands for any."""
    plans = Plans(options, app, Path(ctx.base))
    return [
        *plans.shared(),
        *plans.revision(example(options, ctx.pipeline, uri), options.replicas),
        plans.door(),
    ]


def example(options: KubernetesOptions, pipeline: str, uri: str, revision: str = _NOTHING) -> Entry:
    """Return a revision that stands for one of which nothing is known yet."""
    return Entry(
        revision=revision,
        version="0.0.0",
        model=dns_label(pipeline),
        digest=_NOTHING,
        repository=f"{uri}/{_NOTHING}",
        image=options.image,
        replicas=options.replicas,
        autoscaled=options.autoscaling is not None,
        since=0.0,
    )


def _check_namespace(cluster: Cluster, app: App) -> None:
    """Look whether the namespace is there; somebody who may not look at it finds out by what he may do in it."""
    try:
        found = cluster.get(Ref("v1", "Namespace", app.namespace))
    except ForbiddenError:
        return
    if found is None:
        message = (
            f"the cluster {cluster.url} has no namespace {app.namespace}: `kubectl create namespace {app.namespace}`, "
            "or set `namespace` of the target"
        )
        raise UnavailableError(message)
    if found.get("status", {}).get("phase") == "Terminating":
        raise GoneError(f"the namespace {app.namespace} is being deleted; choose another one, or wait for it")


def _check_kinds(cluster: Cluster, manifests: list[Object]) -> None:
    """Look whether the cluster serves what is rendered; its own error says what brings a kind."""
    for api_version, kind in dict.fromkeys((each["apiVersion"], each["kind"]) for each in manifests):
        if kind not in DISPENSABLE and not cluster.has(api_version, kind):
            cluster.list(api_version, kind)


def _check_room(cluster: Cluster, options: KubernetesOptions, ctx: CheckContext, app: App, uri: str) -> None:
    """Look whether the candidate fits beside what serves.

    What is there of a release that was begun counts as its part, so that it can be gone on with.
    """
    deployments = cluster.list("apps/v1", "Deployment", app.pods)
    there = sum(wanted_of(each) for each in deployments)
    beside = options.replicas if ctx.surge is None else _more(ctx.surge, options.replicas)
    wanted = options.replicas + (beside if deployments else 0)
    plans = Plans(options, app, Path(ctx.base))
    deployment = plans.revision(example(options, ctx.pipeline, uri), None)[0]
    problem = quota_problem(cluster, deployment, wanted - there)
    if problem is None:
        return
    advice = (
        "free some, or raise the quota"
        if ctx.surge is not None
        else "free some, raise the quota, or release with k8s-rolling, which replaces replicas a few at a time"
    )
    serves = f" beside the {there} pods that are there" if there else ""
    message = (
        f"a release to {app.namespace} needs {wanted - there} more pods{serves}, and {problem}; {advice}"
    )
    raise UnavailableError(message)


def _more(surge: Surge, replicas: int) -> int:
    return surge.of(replicas)[0]
