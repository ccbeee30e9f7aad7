"""Router `istio`: weights, headers and copies by a VirtualService."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from shipctl.release.router import RouterOptions
from shipctl.release.traffic import Traffic
from shipctl.spec.fields import Text, fault
from shipctl_plugins._kubernetes.manifests.fields import Subdomain
from shipctl_plugins._kubernetes.traffic.foreign_rule import ForeignRule
from shipctl_plugins._kubernetes.traffic.mesh import API_VERSION, IstioDialect, MeshRules, refused
from shipctl_plugins._kubernetes.traffic.route_router import RouteRouter
from shipctl_plugins._kubernetes.traffic.routes import OwnRoute
from shipctl_plugins._kubernetes.traffic.ways import Way

MESH = "mesh"
"""What Istio calls all sidecars together, where it names gateways."""


class IstioOptions(RouterOptions):
    """Which requests."""

    hosts: tuple[Text, ...] = Field(
        default=(), description="Hosts that requests are for; left out, the app's Service, within the mesh."
    )
    gateways: tuple[Text, ...] = Field(
        default=(MESH,),
        min_length=1,
        description="Gateways that they come through, as namespace/name; `mesh` for all sidecars.",
    )
    path: Text = Field(
        default="/",
        pattern=r"^/(?:\S*/)?$",
        description="What paths of HTTP begin with, ending with '/'; taken off before the server sees them, unless it "
        "begins with /v2.",
    )
    virtualService: Subdomain | None = Field(  # noqa: N815
        default=None,
        description="A VirtualService of somebody else, in one HTTP rule of which traffic is moved: the one that has "
        "the app's Service as a destination. Nothing else in it is changed.",
    )
    rule: Text | None = Field(default=None, description="With `virtualService`: the name of that rule.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.virtualService is None and self.rule is not None:
            raise fault(
                "`rule` is for a VirtualService of somebody else; remove it, or name that by `virtualService`"
            )
        own = [name for name in ("hosts", "gateways", "path") if name in self.model_fields_set]
        if self.virtualService is not None and own:
            raise fault(
                f"{' and '.join(own)} would be of a VirtualService of ours, and `virtualService` names another's; "
                "remove one"
            )
        if not self.hosts and set(self.gateways) != {MESH}:
            raise fault("requests through a gateway are for a host name; write `hosts: [digits.example.com]`")
        return self


class Istio(RouteRouter):
    """Has a mesh divide requests."""

    api_version: ClassVar[int] = 1
    options_model = IstioOptions
    foreign = "virtualService"
    kind = "VirtualService"
    options: IstioOptions

    @classmethod
    def wants(cls, traffic: Traffic) -> str | None:
        """Say what of this a VirtualService cannot do, and what to do instead; None if it can do all."""
        return refused(traffic)

    def promises(self) -> list[str]:
        """Return lines for the plan: what a mesh does differently from a door of shipctl's own."""
        lines = [
            *super().promises(),
            "proxies follow a change of a VirtualService within a second or so; nothing says when they have",
        ]
        if self.options.virtualService is None and MESH in self.options.gateways:
            name = self.place.app.name
            lines.append(
                f"only requests of pods with a sidecar are divided; others get what the Service {name} has"
            )
        return lines

    def _ways(self) -> tuple[Way, ...]:
        from shipctl_plugins._kubernetes.api.connection import Ref

        place, options = self.place, self.options
        if options.virtualService is not None:
            ref = Ref(API_VERSION, self.kind, options.virtualService)
            return (ForeignRule(place, ref, IstioDialect(), options.rule, place.http_port),)
        ref = Ref(API_VERSION, self.kind, place.app.name)
        spec = {"hosts": list(options.hosts) or [place.app.name], "gateways": list(options.gateways)}
        return (OwnRoute(place, ref, IstioDialect(), [MeshRules(place, options.path)], spec),)
