"""What a person is told of an app in a cluster: what serves, where it is reached, and what a release would change."""

from __future__ import annotations

import os
from typing import Any

from shipctl.release.course import course
from shipctl.release.strategy import Strategy
from shipctl.release.target import Observation
from shipctl.release.traffic import WHOLE, Traffic
from shipctl.stages.base import Serving
from shipctl_plugins._kubernetes.api.connection import Ref
from shipctl_plugins._kubernetes.app import short
from shipctl_plugins._kubernetes.capacity import node_problem
from shipctl_plugins._kubernetes.checks import example
from shipctl_plugins._kubernetes.differences import summary
from shipctl_plugins._kubernetes.leftovers import left_by
from shipctl_plugins._kubernetes.manifests.server import PORTS
from shipctl_plugins._kubernetes.observe import Look, Observer
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.pods import is_ready
from shipctl_plugins._kubernetes.state import Entry
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter

Object = dict[str, Any]

SHOWN = 12
"""Digits of a revision that are shown."""


# -- what serves ----------------------------------------------------------------------------------------------


def endpoints(observer: Observer) -> dict[str, str]:
    """Return the addresses of the door, and, where pods can be reached from here, of each one's metrics."""
    look = observer.look()
    return {**_door(observer, look), **_metrics(look)}


def _door(observer: Observer, look: Look) -> dict[str, str]:
    """Return where the Service is: what a load balancer gave it, else its name in the cluster."""
    place = observer.place
    service = place.cluster.get(Ref("v1", "Service", place.app.name))
    if service is None or not look.deployments:
        return {}
    ports = {port.get("name"): port.get("port") for port in service.get("spec", {}).get("ports") or ()}
    given = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
    host = next((each.get("hostname") or each.get("ip") for each in given), None)
    host = host or f"{place.app.name}.{place.app.namespace}.svc"
    found = {}
    if "http" in ports:
        found["http"] = f"http://{host}:{ports['http']}"
    if "grpc" in ports:
        found["grpc"] = f"{host}:{ports['grpc']}"
    return found


def _metrics(look: Look) -> dict[str, str]:
    """Return each ready pod's metrics. Pods have addresses of their own, which lead somewhere in the cluster only."""
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return {}
    return {
        f"metrics/{revision[:SHOWN]}/{pod['metadata']['name']}": _metrics_url(pod)
        for revision, pods in look.pods.items()
        for pod in pods
        if is_ready(pod) and pod.get("status", {}).get("podIP")
    }


def _metrics_url(pod: Object) -> str:
    address = pod["status"]["podIP"]
    return f"http://{f'[{address}]' if ':' in address else address}:{PORTS['metrics']}/metrics"


def status(observer: Observer) -> list[Serving]:
    """Return what is stable, with what a release has put beside it."""
    look = observer.look()
    stable = look.state.serving
    if stable is None:
        return []
    seen = look.observation
    replicas = seen.replicas.get(stable.revision)
    weight = seen.traffic.weight(stable.revision)
    place = observer.place
    details = {
        "replicas": f"{replicas.ready} of {replicas.wanted} ready" if replicas else "none",
        "traffic": f"{weight} %",
        **_beside(look, stable),
        "image": stable.image,
        "artifact": stable.digest,
        "namespace": place.app.namespace,
        "cluster": place.cluster.url,
    }
    if replicas and replicas.problem:
        details["problem"] = replicas.problem
    serving = Serving(
        name=stable.model,
        version=stable.version,
        revision=stable.revision,
        since=look.state.committed or stable.since,
        healthy=bool(weight and replicas and replicas.ready),
        endpoints=_door(observer, look),
        details=details,
    )
    return [serving]


def _beside(look: Look, stable: Entry) -> dict[str, str]:
    seen = look.observation
    lines = [
        f"{item.version} ({revision[:SHOWN]}): {item.ready} of {item.wanted} ready, "
        f"{seen.traffic.weight(revision)} % of the traffic"
        for revision, item in seen.replicas.items()
        if revision != stable.revision
    ]
    return {"beside it": "; ".join(lines)} if lines else {}


# -- what a release would change ------------------------------------------------------------------------------


def preview(
    observer: Observer, plans: Plans, candidate: str, uri: str, strategy: Strategy | None = None
) -> list[str]:
    """Say what serves, which objects would change, and what becomes of weights; reads only."""
    look = observer.look()
    app, seen = observer.place.app, look.observation
    stable = look.state.serving
    lines = [_serving(look, stable) if stable is not None else _closed()]
    known = look.state.entries.get(candidate)
    entry = known or example(plans.options, app.pipeline, uri, candidate or "0" * 64)
    revision = plans.revision(entry, None)
    if not seen.ready(candidate):
        pods = f"{plans.options.replicas} pods of {plans.options.image}"
        lines.append(
            f"{app.of(candidate) if candidate else 'a new revision'}: {pods} are started beside what serves"
        )
        if (problem := node_problem(observer.place.cluster, revision[0])) is not None:
            lines.append(f"warning: {problem}")
        if plans.options.credentialsSecret:
            lines.append(
                f"the Secret {plans.options.credentialsSecret} is not read by shipctl: that it exists shows when pods "
                "start"
            )
    manifests = [*plans.shared(), plans.door(_live_door(observer))]
    if candidate and candidate not in look.deployments:
        manifests += revision
    lines += summary(observer.place, manifests)
    left = left_by(observer.place, look.state.router, plans.options.router)
    lines += [f"warning: {line}" for line in left]
    lines += _shares(observer, plans, stable, strategy)
    if isinstance(observer.router, ClusterRouter):
        lines += observer.router.promises()
    return lines


def manifests_live(observer: Observer, plans: Plans, entry: Entry) -> list[Object]:
    """Return what a release would apply now, so that it can be compared with what is live."""
    look = observer.look()
    known = look.state.entries.get(entry.revision, entry)
    replicas = look.group(entry.revision).asked if entry.revision in look.deployments else known.replicas
    as_made = known.rendered in {"", plans.rendered(known)}
    there = entry.revision in look.deployments and not as_made
    revision = [] if there else plans.revision(known, replicas)
    return [*plans.shared(), *revision, plans.door(_live_door(observer))]


def _live_door(observer: Observer) -> Object | None:
    return observer.place.cluster.get(Ref("v1", "Service", observer.place.app.name))


def _serving(look: Look, stable: Entry) -> str:
    replicas = look.observation.replicas.get(stable.revision)
    state = f"{replicas.ready} of {replicas.wanted} replicas are ready" if replicas else "it has no replicas"
    return f"{stable.model} {stable.version} (revision {stable.revision[:SHOWN]}) serves: {state}"


def _closed() -> str:
    return "nothing serves: the door opens once the first version has passed its preflight"


def _shares(observer: Observer, plans: Plans, stable: Entry | None, strategy: Strategy | None) -> list[str]:
    """Say which weights of the strategy come out differently with so many replicas."""
    if stable is None or strategy is None:
        return []
    candidate = "candidate"
    counts = {stable.revision: stable.replicas, candidate: plans.options.replicas}
    rounded = []
    for weight in dict.fromkeys(leg.weight for leg in course(strategy) if 0 < leg.weight < WHOLE):
        asked = Traffic(
            weights={stable.revision: WHOLE - weight, candidate: weight}, fallback=stable.revision
        )
        effective = observer.router.effective(asked, counts).weight(candidate)
        if effective != weight:
            rounded.append(f"{weight} % is {effective} %")
    if not rounded:
        return []
    return [
        f"of {stable.replicas} and {plans.options.replicas} replicas, {', '.join(rounded)} of the requests"
    ]


def weights_of(seen: Observation) -> str:
    """Say the effective weights."""
    return ", ".join(f"{weight} % to {short(name)}" for name, weight in seen.traffic.weights.items())
