"""How Argo Rollouts moves traffic: by the routes of a router, which shipctl makes once and Argo changes from then on.

Its Gateway API plugin: rollouts-plugin-trafficrouter-gatewayapi.readthedocs.io. Istio: argo-rollouts.readthedocs.io/en/
stable/features/traffic-management/istio.
"""

from __future__ import annotations

from typing import Any

from shipctl.errors import StageError
from shipctl.release.router import Backend, RouterContext
from shipctl.release.routers import open_router, router_class
from shipctl.release.traffic import WHOLE, Traffic
from shipctl_plugins._engines.notes import Object
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions

REPLICAS, SERVICE, GATEWAY, ISTIO = "replicas", "service", "gateway-api", "istio"
PLUGIN = "argoproj-labs/gatewayAPI"
"""What the plugin is called where it is installed as it says."""
_STABLE, _CANARY = "5" * 64, "c" * 64
"""Stand for the two revisions while a route is rendered."""


def stable_service(app: App) -> str:
    """Return the name of the Service that Argo has select the stable pods."""
    return f"{app.name}-stable"


def canary_service(app: App) -> str:
    """Return the name of the Service that Argo has select the canary's."""
    return f"{app.name}-canary"


def routed(options: KubernetesOptions) -> bool:
    """Whether a router divides requests, and not a ratio of pods."""
    return options.router.uses in {GATEWAY, ISTIO}


def routes(options: KubernetesOptions, app: App) -> list[Object]:
    """Return the routes of ours, with everything on the stable Service."""
    if not routed(options):
        return []
    place = Place(None, app)  # type: ignore[arg-type]  # nothing is asked while manifests are made
    router: Any = open_router(options.router, RouterContext(name=app.name, access=place))
    backends = {name: (Backend(name=app.of(name), http="", grpc=""),) for name in (_STABLE, _CANARY)}
    traffic = Traffic(weights={_STABLE: WHOLE - 1, _CANARY: 1})
    found = [_renamed(each, app) for each in router.manifests(traffic, backends)]
    for each in found:
        each["metadata"].pop("annotations", None)
        for index, rule in enumerate(each["spec"].get("http", ())):
            rule["name"] = f"{app.name}-{index}"
    return found


def _renamed(found: Any, app: App) -> Any:
    if isinstance(found, list):
        return [_renamed(each, app) for each in found]
    if not isinstance(found, dict):
        names = {app.of(_STABLE): stable_service(app), app.of(_CANARY): canary_service(app)}
        return names.get(found, found) if isinstance(found, str) else found
    changed = {key: _renamed(each, app) for key, each in found.items()}
    name = changed.get("name") or (changed.get("destination") or {}).get("host")
    if "weight" in changed and name in {stable_service(app), canary_service(app)}:
        changed["weight"] = WHOLE if name == stable_service(app) else 0
    return changed


def traffic_routing(options: KubernetesOptions, app: App) -> Object | None:
    """Return a Rollout's `trafficRouting`; None for a ratio of pods."""
    if not routed(options):
        return None
    given = router_class(options.router)[1]
    if options.router.uses == GATEWAY:
        return {"plugins": {PLUGIN: _plugin(given, app)}}
    foreign = given.virtualService
    service: Object = {"name": foreign or app.name}
    names = [given.rule] if foreign and given.rule else []
    if not foreign:
        names = [rule["name"] for each in routes(options, app) for rule in each["spec"]["http"]]
    return {"istio": {"virtualService": {**service, **({"routes": names} if names else {})}}}


def _plugin(given: Any, app: App) -> Object:
    told: Object = {"namespace": app.namespace, "httpRoute": given.route or app.name}
    return {**told, "grpcRoute": app.name} if given.grpc else told


def in_use(manifest: Object, live: Object | None) -> Object:
    """Return a route to apply: with the weights that Argo has set in the live one.

    :raises StageError: if its rules are not as many any more, so that nobody knows which is which
    """
    if live is None:
        return manifest
    part = "http" if "http" in manifest["spec"] else "rules"
    destinations = "route" if part == "http" else "backendRefs"
    before = live.get("spec", {}).get(part) or []
    if len(before) != len(manifest["spec"][part]):
        message = (
            f"{manifest['kind']} {manifest['metadata']['name']} has {len(before)} rules and not "
            f"{len(manifest['spec'][part])}, and Argo Rollouts has set weights in them; undo that, or remove it"
        )
        raise StageError(message)
    rules = [
        {**rule, destinations: old.get(destinations) or rule[destinations]}
        for rule, old in zip(manifest["spec"][part], before, strict=True)
    ]
    return {**manifest, "spec": {**manifest["spec"], part: rules}}
