"""Routes of the Gateway API: rules for a distribution, and what gateways say of them.

The API: gateway-api.sigs.k8s.io/reference/spec (HTTPRoute and GRPCRoute of gateway.networking.k8s.io/v1). Rules of
one route go before others if they ask for more headers, so the order in which they stand says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from shipctl.release.traffic import PREVIEW_HEADER, WHOLE, Traffic
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.traffic.routes import Dialect, comparator_of
from shipctl_plugins._kubernetes.traffic.ways import Asked, Json, Pending

API_VERSION = "gateway.networking.k8s.io/v1"
PREVIEWS = ("1", "true", "yes")
"""Values of the preview header: the API cannot ask whether a header is there at all."""
GRPC_SERVICES = ("inference.GRPCInferenceService", "grpc.health.v1.Health")
ACCEPTED_S = Duration("30s")
"""How long a controller that has spoken before may take to say that it has taken a route."""
REFUSED_S = 5.0
"""How long a route may be refused before that is believed: controllers see a new Service a little later."""
_MILLION = 1_000_000

Kind = Literal["HTTPRoute", "GRPCRoute"]


class GatewayDialect(Dialect):
    """How HTTPRoutes and GRPCRoutes say it."""

    rules = "rules"
    destinations = "backendRefs"

    def service(self, destination: Json, namespace: str) -> str | None:
        if destination.get("group") or destination.get("kind", "Service") != "Service":
            return None
        return str(destination["name"]) if destination.get("namespace") in {None, namespace} else None

    def weight(self, destination: Json) -> int:
        weight = destination.get("weight")
        return 1 if weight is None else int(weight)

    def destination(self, service: str, port: int, weight: int) -> Json:
        return {"group": "", "kind": "Service", "name": service, "port": port, "weight": weight}

    def told_apart(self, rule: Json) -> bool:
        return any(match.get("headers") for match in rule.get("matches") or ())


_DIALECT = GatewayDialect()


@dataclass(frozen=True)
class Rules:
    """Makes the rules of one kind of route."""

    place: Place
    kind: Kind
    path: str = "/"
    """What paths of HTTP begin with."""
    named: Literal["sessionName", "cookie"] = "sessionName"
    """Where sessionPersistence has the cookie's name: until version 1.6 of the API, or later (GEP-1619)."""

    def __call__(self, asked: Asked) -> list[Json]:
        """Return the rules. A closed door is a rule without backends, which gateways answer with an error 500."""
        traffic = asked.traffic
        rules = []
        if traffic.preview is not None:
            rules.append(self._rule({traffic.preview: WHOLE}, asked, (PREVIEW_HEADER, PREVIEWS), plain=True))
        for segment in traffic.segments:
            weights = traffic.weights if segment.revision is None else {segment.revision: WHOLE}
            rules.append(self._rule(weights, asked, (segment.header, segment.values)))
        return [*rules, self._rule(traffic.weights, asked, None)]

    def _rule(
        self,
        weights: Mapping[str, int],
        asked: Asked,
        header: tuple[str, tuple[str, ...]] | None,
        *,
        plain: bool = False,
    ) -> Json:
        rule: Json = {"matches": list(self._matches(header))}
        filters = list(self._filters(asked, mirrored=not plain))
        if filters:
            rule["filters"] = filters
        refs = _DIALECT.balanced(self.place, weights, self._port)
        if refs:
            rule["backendRefs"] = refs
        sticky = asked.traffic.sticky
        if sticky is not None and len(refs) > 1:
            name = sticky.name if self.named == "sessionName" else {"name": sticky.name}
            rule["sessionPersistence"] = {"type": "Cookie", self.named: name}
        return rule

    @property
    def _port(self) -> int:
        return self.place.http_port if self.kind == "HTTPRoute" else self.place.grpc_port

    def _matches(self, header: tuple[str, tuple[str, ...]] | None) -> Iterator[Json]:
        name, values = header if header is not None else ("", ())
        headers = [[{"type": "Exact", "name": name, "value": value}] for value in values] or [[]]
        if self.kind == "HTTPRoute":
            places: list[Json] = [{"path": {"type": "PathPrefix", "value": self.path}}]
        else:
            places = [{"method": {"type": "Exact", "service": service}} for service in GRPC_SERVICES]
        for each in headers:
            for where in places:
                yield {**where, **({"headers": each} if each else {})}

    def _filters(self, asked: Asked, *, mirrored: bool) -> Iterator[Json]:
        if self.kind == "HTTPRoute" and strips(self.path):
            rewrite = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}
            yield {"type": "URLRewrite", "urlRewrite": rewrite}
        mirror = asked.traffic.mirror
        if mirror is not None and mirrored:
            service = {
                "group": "",
                "kind": "Service",
                "name": comparator_of(self.place, asked),
                "port": self._port,
            }
            yield {
                "type": "RequestMirror",
                "requestMirror": {"backendRef": service, **_share(mirror.percent)},
            }


def strips(path: str) -> bool:
    """Whether a path is taken off before the server sees it: its own begin with /v2."""
    return path != "/" and path.split("/")[1] != "v2"


def _share(percent: float) -> Json:
    """Return how much is copied; all of it is said by saying nothing, which every version of the API knows."""
    if percent >= WHOLE:
        return {}
    if percent == int(percent):
        return {"percent": int(percent)}
    return {"fraction": {"numerator": round(percent * _MILLION / WHOLE), "denominator": _MILLION}}


class Standing(NamedTuple):
    """What keeps a route from being in effect."""

    state: Literal["unknown", "behind", "refused"]
    reason: str


def awaited(route: Json, patience: Duration | None) -> Pending | None:
    """Return what of a route is waited for, and how long at most; None for nothing.

    ``patience`` None: as long as :data:`ACCEPTED_S` if a controller has ever said anything of it, else not at all.
    """
    found = standing(route)
    if found is None or patience == Duration(0) or (patience is None and found.state == "unknown"):
        return None
    longest = float(ACCEPTED_S if patience is None else patience)
    return Pending(found.reason, min(longest, REFUSED_S) if found.state == "refused" else longest)


def standing(route: Json) -> Standing | None:
    """Say what keeps a route from being in effect, as the controllers of its gateways tell; None if nothing does."""
    said = [one for one in (route.get("status") or {}).get("parents") or () if _is_parent(route, one)]
    name = f"{route['kind']} {route['metadata']['name']}"
    generation = route["metadata"].get("generation", 0)
    if not said:
        return Standing("unknown", f"no gateway's controller says anything of {name}; see whether it runs")
    for one in said:
        conditions = {each["type"]: each for each in one.get("conditions") or ()}
        gateway = one["parentRef"]["name"]
        for kind in ("Accepted", "ResolvedRefs"):
            found = conditions.get(kind, {})
            if found.get("observedGeneration", 0) < generation or "status" not in found:
                slow = (
                    f"{one['controllerName']} has not taken the newest {name} for the gateway {gateway} yet"
                )
                return Standing("behind", slow)
            if found["status"] != "True":
                why = f"{found.get('reason', kind)}: {found.get('message') or 'it does not say why'}"
                refusal = f"{one['controllerName']} does not take {name} for the gateway {gateway}: {why}"
                return Standing("refused", refusal)
    return None


def _is_parent(route: Json, said: Json) -> bool:
    """Whether a status is about one of the parents that the route names now."""
    about = said.get("parentRef") or {}
    keys = ("name", "namespace", "sectionName")
    parents: list[Any] = (route.get("spec") or {}).get("parentRefs") or []
    return any(
        all(about.get(key) == parent.get(key) for key in keys if parent.get(key)) for parent in parents
    )


def refused(traffic: Traffic) -> str | None:
    """Say what of this a route cannot do, and what to do instead; None if it can do all."""
    sticky = traffic.sticky
    if sticky is None or sticky.kind == "cookie":
        return None
    return (
        f"the Gateway API cannot keep requests with one revision by the header {sticky.name}; let `sticky` name a "
        "cookie that the gateway may set itself ({kind: cookie, name: …}), or write `sticky: null`, and tell users "
        "apart by segments"
    )
