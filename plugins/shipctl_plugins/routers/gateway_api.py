"""Router `gateway-api`: weights, headers and copies by an HTTPRoute of the Gateway API, and a GRPCRoute beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from shipctl.records import Record
from shipctl.release.router import RouterOptions
from shipctl.release.traffic import PREVIEW_HEADER, Traffic
from shipctl.spec.fields import Text, fault
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.manifests.fields import DnsLabel, Host, Subdomain
from shipctl_plugins._kubernetes.traffic.foreign_rule import ForeignRule
from shipctl_plugins._kubernetes.traffic.gateway import (
    API_VERSION,
    PREVIEWS,
    GatewayDialect,
    Kind,
    Rules,
    awaited,
    refused,
)
from shipctl_plugins._kubernetes.traffic.route_router import RouteRouter
from shipctl_plugins._kubernetes.traffic.routes import OwnRoute
from shipctl_plugins._kubernetes.traffic.ways import Json, Pending, Way

if TYPE_CHECKING:
    from shipctl_plugins._kubernetes.api.connection import Ref
    from shipctl_plugins._kubernetes.app import Place


class GatewayParent(Record):
    """A Gateway that requests come through, as in a route's `parentRefs`."""

    name: Subdomain = Field(description="The Gateway's name.")
    namespace: DnsLabel | None = Field(default=None, description="Its namespace; left out, the app's.")
    sectionName: Subdomain | None = Field(  # noqa: N815
        default=None, description="One of its listeners; left out, all that take such a route."
    )


class GatewayApiOptions(RouterOptions):
    """Which gateway, and which requests."""

    gateways: tuple[GatewayParent, ...] = Field(
        default=(), description="Where requests come from; needed unless `route` names a route."
    )
    hostnames: tuple[Host, ...] = Field(
        default=(), max_length=16, description="Host names of the requests; left out, the gateway's."
    )
    path: Text = Field(
        default="/",
        pattern=r"^/\S*$",
        description="What paths begin with; taken off before the server sees them, unless it begins with /v2.",
    )
    grpc: bool = Field(
        default=False, description="Whether a GRPCRoute is made, too, for the inference service."
    )
    grpcHostnames: tuple[Host, ...] = Field(  # noqa: N815
        default=(),
        max_length=16,
        description="Host names for gRPC; left out, the same, which some gateways refuse.",
    )
    route: Subdomain | None = Field(
        default=None,
        description="An HTTPRoute of somebody else, in one rule of which traffic is moved: the one that has the app's "
        "Service as a backend. Nothing else in it is changed.",
    )
    rule: Subdomain | None = Field(default=None, description="With `route`: the name of that rule.")
    awaitAccepted: Duration | None = Field(  # noqa: N815
        default=None,
        description="How long to wait until the gateway's controller has taken a change; 0s for not at all. Left out: "
        "30s where a controller has ever said anything of the route, and not at all elsewhere.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.route is None and not self.gateways:
            raise fault("a route needs a gateway; write `gateways: [{name: …}]`, or name somebody's `route`")
        if self.route is None and self.rule is not None:
            raise fault("`rule` is for a route of somebody else; remove it, or name that by `route`")
        own = [
            name
            for name in ("gateways", "hostnames", "path", "grpc", "grpcHostnames")
            if name in self.model_fields_set
        ]
        if self.route is not None and own:
            raise fault(
                f"{' and '.join(own)} would be of a route of ours, and `route` names another's; remove one"
            )
        if self.grpcHostnames and not self.grpc:
            raise fault("grpcHostnames is for `grpc: true`; write that, too, or remove it")
        return self


class GatewayApi(RouteRouter):
    """Has a gateway divide requests."""

    api_version: ClassVar[int] = 1
    options_model = GatewayApiOptions
    foreign = "route"
    kind = "HTTPRoute"
    options: GatewayApiOptions

    @classmethod
    def wants(cls, traffic: Traffic) -> str | None:
        """Say what of this the API cannot do, and what to do instead; None if it can do all."""
        return refused(traffic)

    def promises(self) -> list[str]:
        """Return lines for the plan: what a gateway does differently from a door of shipctl's own."""
        lines = [
            *super().promises(),
            "proxies may follow a moment after their controller has taken a route; nothing says when they have",
        ]
        if self.options.route is None:
            lines += [
                f"the header {PREVIEW_HEADER} counts with one of the values {', '.join(PREVIEWS)}",
                "`sticky` by a cookie: the gateway sets it itself, so it must not be one of the application's",
            ]
        return lines

    def _ways(self) -> tuple[Way, ...]:
        from shipctl_plugins._kubernetes.api.connection import Ref

        place, options = self.place, self.options
        if options.route is not None:
            return (GatewayRule(place, Ref(API_VERSION, "HTTPRoute", options.route), options),)
        kinds: list[Kind] = ["HTTPRoute", "GRPCRoute"] if options.grpc else ["HTTPRoute"]
        return tuple(GatewayRoute(place, Ref(API_VERSION, kind, place.app.name), options) for kind in kinds)


class GatewayRoute(OwnRoute):
    """A route of ours."""

    def __init__(self, place: Place, ref: Ref, options: GatewayApiOptions) -> None:
        kind: Kind = "GRPCRoute" if ref.kind == "GRPCRoute" else "HTTPRoute"
        hostnames = options.grpcHostnames if kind == "GRPCRoute" else ()
        spec = {
            "parentRefs": [parent.model_dump(exclude_none=True) for parent in options.gateways],
            "hostnames": list(hostnames or options.hostnames),
        }
        rules = [Rules(place, kind, options.path), Rules(place, kind, options.path, named="cookie")]
        super().__init__(place, ref, GatewayDialect(), rules, spec)
        self.patience = options.awaitAccepted

    def pending(self, found: Json) -> Pending | None:
        """Say what the gateway's controller does not take, or not yet."""
        return awaited(found, self.patience)


class GatewayRule(ForeignRule):
    """A rule of somebody else's route."""

    def __init__(self, place: Place, ref: Ref, options: GatewayApiOptions) -> None:
        super().__init__(place, ref, GatewayDialect(), options.rule, place.http_port)
        self.patience = options.awaitAccepted

    def pending(self, found: Json) -> Pending | None:
        """Say what the gateway's controller does not take, or not yet."""
        return awaited(found, self.patience)
