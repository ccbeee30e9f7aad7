"""The Service that clients use, as what moves traffic: it selects one revision's pods, all of the app's, or none.

Nothing has to be installed for that. Requests are divided by connections, among pods, by the nodes' own kernels, so
what a client has opened stays where it is until it, or the pod, is closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from shipctl.release.traffic import WHOLE, Traffic
from shipctl_plugins._kubernetes.app import ANNOTATION_SHIFTED, LABEL_REVISION, SHORT, App, Place
from shipctl_plugins._kubernetes.pods import is_ready
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter
from shipctl_plugins._kubernetes.traffic.ways import SETTLE_S, Asked, Json, Pending, Way, since_of

NOBODY = "none"
"""The revision that a closed door selects: no digest begins with these letters."""
_SLICES = ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")
_SERVICE_NAME = "kubernetes.io/service-name"


class Door(Way):
    """The Service of an app."""

    def __init__(self, place: Place) -> None:
        from shipctl_plugins._kubernetes.api.connection import Ref

        super().__init__(place, Ref("v1", "Service", place.app.name))

    def selector(self, asked: Asked) -> dict[str, str]:
        """Return what it is to select."""
        revisions = [name for name, weight in asked.traffic.weights.items() if weight]
        app = self.place.app
        if not revisions:
            return {**app.pods, LABEL_REVISION: NOBODY}
        return app.pods_of(revisions[0]) if len(revisions) == 1 else app.pods

    def weights(self, found: Json) -> list[dict[str, int]]:
        """Return who is selected; where all are, how many of the pods that get requests each revision has."""
        selected = selected_by(self.place.app, found)
        if selected is None:
            return [{}]
        return [dict(self.pods())] if selected == "" else [{f"{self.place.app.name}-{selected}": WHOLE}]

    def pods(self) -> Counter[str]:
        """Return how many pods get requests through this Service, by the names of their revisions' Services."""
        app = self.place.app
        names = {name for name in _endpoints(self.place, app.name) if name.startswith(f"{app.name}-")}
        return Counter(f"{app.name}-{name.removeprefix(f'{app.name}-').split('-')[0]}" for name in names)

    def routes(self, found: Json, asked: Asked) -> bool:
        """Whether it selects what was asked for."""
        return bool((found.get("spec") or {}).get("selector") == self.selector(asked))

    def follows(self, found: Json, asked: Asked) -> bool:
        """Whether it does, and it is not only on the way."""
        return self.routes(found, asked) and since_of(found) is not None

    def mark(self, found: Json) -> Any:
        """Return what it selects."""
        return (found.get("spec") or {}).get("selector")

    def write(self, found: Json | None, asked: Asked, notes: dict[str, str | None]) -> None:
        """Have it select what is asked; notes that it is only on the way leave the selector as it is."""
        begun = notes[ANNOTATION_SHIFTED] is None
        self.select(found, self.selector(asked) if not begun else None, notes)

    def select(
        self, found: Json | None, selector: dict[str, str] | None, notes: dict[str, str | None]
    ) -> None:
        """Have it select these pods, None for those of before; a Service that is gone is made again."""
        cluster, app = self.place.cluster, self.place.app
        if found is None:
            ports = [
                {"name": "http", "port": self.place.http_port, "targetPort": self.place.http_port},
                {"name": "grpc", "port": self.place.grpc_port, "targetPort": self.place.grpc_port},
            ]
            spec = {"selector": selector or {**app.pods, LABEL_REVISION: NOBODY}, "ports": ports}
            manifest = self.place.labelled("Service", "v1", app.name, spec=spec)
            manifest["metadata"]["annotations"] = {
                key: text for key, text in notes.items() if text is not None
            }
            cluster.create(manifest)
            return
        body: Json = {"metadata": {"annotations": notes}}
        if selector is not None:
            old = dict.fromkeys((found.get("spec") or {}).get("selector") or {})
            body["spec"] = {"selector": {**old, **selector}}
        cluster.patch(self.ref, body, resource_version=found["metadata"]["resourceVersion"])

    def pending(self, found: Json) -> Pending | None:
        """Say whose pods still get requests though the Service does not select them, or not yet though it does."""
        selected = selected_by(self.place.app, found)
        if selected == "":
            return None
        app, pods = self.place.app, self.pods()
        others = sorted(name for name in pods if name != f"{app.name}-{selected}")
        if not others:
            if pods or selected is None or not self._is_ready(selected):
                return None
            reason = (
                f"the endpoints of the Service {app.name} have no pods of {app.name}-{selected} though it selects "
                "them, and they are ready; see whether the cluster's controllers run"
            )
            return Pending(reason, SETTLE_S)
        reason = (
            f"the endpoints of the Service {app.name} still have pods of {', '.join(others)} though it does not "
            "select them; see whether the cluster's controllers run"
        )
        return Pending(reason, SETTLE_S)

    def _is_ready(self, revision: str) -> bool:
        pods = self.place.cluster.list("v1", "Pod", self.place.app.pods_of(revision))
        return any(is_ready(pod) for pod in pods)


def selected_by(app: App, service: Json) -> str | None:
    """Return the digits of the one revision that a Service selects, "" for all, None for none."""
    selector = (service.get("spec") or {}).get("selector") or {}
    if not set(app.pods.items()) <= set(selector.items()):
        return None
    revision = str(selector.get(LABEL_REVISION, ""))
    if revision and (len(revision) != SHORT or not set(revision) <= set("0123456789abcdef")):
        return None
    return revision


class SelectorRouter(ClusterRouter):
    """Requests are divided by what a Service selects."""

    @property
    def door(self) -> Door:
        """The Service."""
        door = self.ways[0]
        assert isinstance(door, Door)  # noqa: S101  (for the type checker)
        return door

    @classmethod
    def refuses(cls, traffic: Traffic, options: Any = None) -> str | None:  # noqa: ARG003  (as in the base)
        """Say why it cannot distribute requests so, and what to do instead; None if it can."""
        asked = {
            "segments": bool(traffic.segments),
            "sticky assignment": traffic.sticky is not None,
            "copies of requests": traffic.mirror is not None,
        }
        names = [name for name, wanted in asked.items() if wanted]
        if not names:
            return None
        return (
            f"a Service does not read requests, so there are no {' and no '.join(names)} with it; choose the router "
            "gateway-api or istio"
        )

    def promises(self) -> list[str]:
        """Return lines for the plan: what a Service does differently from a door of shipctl's own."""
        name = self.place.app.name
        connections = (
            f"Service {name} divides connections and not requests: what a client keeps open stays with its revision "
            "until the client opens another one, or the pod is stopped"
        )
        failing = (
            f"Service {name}: a revision that cannot be reached is not stood in for by the stable one; pods that are "
            "not ready get no new connections"
        )
        return [
            connections,
            failing,
            f"only the Service {self.place.app.preview} leads to a preview, and no header",
        ]

    def _ways(self) -> tuple[Door, ...]:
        return (Door(self.place),)

    def _traffic(self, way: Any, found: Json | None, asked: Asked | None) -> list[Traffic]:
        seen: Sequence[Traffic] = super()._traffic(way, found, asked)
        changes: Json = {}
        if asked is not None and asked.traffic.preview is not None:  # which is another Service
            changes["preview"] = asked.traffic.preview
        if found is not None and selected_by(self.place.app, found) == "":
            changes["weights"] = self._by_revision(way.weights(found)[0], asked)
        return [one.model_copy(update=changes) for one in seen]


def _endpoints(place: Place, service: str) -> Iterator[str]:
    """Yield the names of the pods that get requests through a Service; some twice, where there is IPv4 and IPv6."""
    cluster = place.cluster
    version = cluster.first_served(_SLICES, "EndpointSlice")
    for found in cluster.list(version, "EndpointSlice", {_SERVICE_NAME: service}):
        for endpoint in found.get("endpoints") or ():
            about = endpoint.get("targetRef") or {}
            if (endpoint.get("conditions") or {}).get("ready") is not False and about.get("kind") == "Pod":
                yield str(about["name"])
