"""Routes of Istio: the rules of a VirtualService for a distribution.

The API: istio.io/latest/docs/reference/config/networking/virtual-service (networking.istio.io/v1beta1). Of the rules
the first one that fits is taken. gRPC is HTTP/2 there, and told by its paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shipctl.release.traffic import PREVIEW_HEADER, WHOLE, Traffic
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.traffic.routes import Dialect, comparator_of
from shipctl_plugins._kubernetes.traffic.ways import Asked, Json

API_VERSION = "networking.istio.io/v1beta1"
CLOSED = "the door is closed: no revision serves"
_GRPC = ("/inference.GRPCInferenceService/", "/grpc.health.v1.Health/")


class IstioDialect(Dialect):
    """How VirtualServices say it."""

    rules = "http"
    destinations = "route"

    def service(self, destination: Json, namespace: str) -> str | None:
        host = str((destination.get("destination") or {}).get("host", ""))
        name, *rest = host.split(".")
        # name, name.namespace, name.namespace.svc, name.namespace.svc.cluster.local
        inside = rest[:1] in ([], [namespace]) and rest[1:2] in ([], ["svc"])
        return name if name and inside else None

    def weight(self, destination: Json) -> int:
        weight = destination.get("weight")
        return WHOLE if weight is None else int(weight)  # the only one of its rule needs none

    def destination(self, service: str, port: int, weight: int) -> Json:
        return {"destination": {"host": service, "port": {"number": port}}, "weight": weight}

    def told_apart(self, rule: Json) -> bool:
        return any(match.get("headers") for match in rule.get("match") or ())


_DIALECT = IstioDialect()


@dataclass(frozen=True)
class MeshRules:
    """Makes the rules of a VirtualService."""

    place: Place
    path: str = "/"
    """What paths of HTTP begin with."""

    def __call__(self, asked: Asked) -> list[Json]:
        """Return the rules. A closed door answers 503 by itself."""
        grpc = [rule for prefix in _GRPC for rule in self._of(prefix, self.place.grpc_port, asked)]
        return [*grpc, *self._of(self.path, self.place.http_port, asked)]

    def _of(self, prefix: str, port: int, asked: Asked) -> list[Json]:
        traffic = asked.traffic
        rules = []
        if traffic.preview is not None:
            only = {traffic.preview: WHOLE}
            rules.append(self._rule(prefix, port, only, [{PREVIEW_HEADER: {}}]))
        for segment in traffic.segments:
            weights = traffic.weights if segment.revision is None else {segment.revision: WHOLE}
            headers = [{segment.header.lower(): {"exact": value}} for value in segment.values]
            rules.append(self._rule(prefix, port, weights, headers) | self._mirror(asked, port))
        return [*rules, self._rule(prefix, port, traffic.weights, [{}]) | self._mirror(asked, port)]

    def _rule(self, prefix: str, port: int, weights: Mapping[str, int], headers: list[Json]) -> Json:
        matches = [
            {
                **({"uri": {"prefix": prefix}} if prefix != "/" else {}),
                **({"headers": each} if each else {}),
            }
            for each in headers
        ]
        rule: Json = {"match": matches} if any(matches) else {}
        routes = _DIALECT.balanced(self.place, weights, port)
        if not routes:
            return {**rule, "directResponse": {"status": 503, "body": {"string": CLOSED}}}
        if prefix == self.path != "/" and prefix.split("/")[1] != "v2":
            rule["rewrite"] = {"uri": "/"}
        return {**rule, "route": routes}

    def _mirror(self, asked: Asked, port: int) -> Json:
        mirror = asked.traffic.mirror
        if mirror is None:
            return {}
        return {
            "mirror": {"host": comparator_of(self.place, asked), "port": {"number": port}},
            "mirrorPercentage": {"value": mirror.percent},
        }


def refused(traffic: Traffic) -> str | None:
    """Say what of this a VirtualService cannot do, and what to do instead; None if it can do all."""
    if traffic.sticky is None:
        return None
    return (
        f"Istio cannot keep requests with one revision by the {traffic.sticky.kind} {traffic.sticky.name}: its weights "
        "are drawn for each request anew; write `sticky: null`, and tell users apart by segments, or choose the router "
        "gateway-api with a cookie"
    )
