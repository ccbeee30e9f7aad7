"""The route table that Envoy reads from a file: which requests go where.

The file is an xDS response; Envoy reads it again when another one is renamed over it
(https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/overview/xds_api#filesystem-subscriptions). HTTP and gRPC
share the table, told apart by their paths, so one rename changes both at once. It carries the :class:`Table` that it
was made from, so that Envoy's own dump says what is in effect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from shipctl.records import Record
from shipctl.release.router import Backend
from shipctl.release.traffic import PREVIEW_HEADER, WHOLE, Mirror, Segment, Traffic
from shipctl_plugins._envoy.access_log import ARM_HEADER, SEGMENT_HEADER, arm_of, segment_label

COMPARATOR = "comparator"
"""The key among the backends under which the receiver of copies stands."""
ROUTES = "door"
METADATA = "shipctl"
BY_WATCHDOG = "-watchdog"
"""Ends the etag of a table that a watchdog has put in place."""
LOOPBACK = "127.0.0.1"
CLOSED = "the door is closed: no revision serves"
NO_SUCH = "the door lets through inference, health, metadata, configuration and statistics only"

Protocol = Literal["http", "grpc"]
Json = dict[str, Any]

TYPE = "type.googleapis.com/"
_MODEL = r"/v2/models/[^/]+(/versions/[^/]+)?"
_ASKED = {
    "http": rf"{_MODEL}/(infer|generate|generate_stream)",
    "grpc": r"/inference\.GRPCInferenceService/(ModelInfer|ModelStreamInfer)",
}
"""Paths of inference, which are copied to a comparator."""
_OTHER = {
    "http": rf"/v2/?|/v2/health/(live|ready)|/v2/models/stats|{_MODEL}(/(ready|config|stats))?",
    "grpc": r"/inference\.GRPCInferenceService/(ServerLive|ServerReady|ModelReady|ServerMetadata|ModelMetadata"
    r"|ModelConfig|ModelStatistics)|/grpc\.health\.v1\.Health/(Check|Watch)",
}
"""The other paths that are let through. Not among them: repository control, logging, tracing, shared memory."""
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")
_RETRIED_BODY_BYTES = 64 * 1024 * 1024
"""A larger request is not asked again where its server dies: it is not kept."""
_MILLION = 1_000_000


class Table(Record):
    """What a route table was made from."""

    traffic: Traffic
    backends: dict[str, tuple[Backend, ...]] = Field(default_factory=dict)
    number: int = Field(default=0, ge=0, description="Counts the tables of this door.")
    etag: str = Field(default="", description="Names the table; Envoy's version of the routes.")

    @property
    def settled(self) -> bool:
        """Whether the stable revision answers everything, so that nobody has to watch."""
        fallback = self.traffic.fallback
        aside = any(segment.revision not in {None, fallback} for segment in self.traffic.segments)
        away = any(weight for revision, weight in self.traffic.weights.items() if revision != fallback)
        return not aside and not away and self.traffic.mirror is None

    @property
    def stable_only(self) -> Table:
        """The table that a watchdog puts in place."""
        update = {"traffic": Traffic.only(self.traffic.fallback), "etag": f"{self.etag}{BY_WATCHDOG}"}
        return self.model_copy(update=update)


def routes_response(table: Table, *, rescue: bool = True) -> Json:
    """Return the route table, with the one that a watchdog would replace it with beside it in its metadata."""
    memo: Json = {"table": table.model_dump_json(), "settled": table.settled}
    if rescue:
        memo["stable"] = json.dumps(routes_response(table.stable_only, rescue=False))
    closed = {"http": json.dumps({"error": CLOSED}), "grpc": CLOSED}
    routes: list[Json] = []
    for protocol in PROTOCOLS:
        for paths, asked in ((_ASKED[protocol], True), (_OTHER[protocol], False)):
            routes += _routes_of(table, protocol, paths, asked=asked, closed=closed[protocol])
    routes += [
        {
            "match": {"safe_regex": {"regex": r"/inference\..*|/grpc\..*"}},
            "direct_response": _says(404, NO_SUCH),
        },
        {"match": {"prefix": "/"}, "direct_response": _says(404, json.dumps({"error": NO_SUCH}))},
    ]
    route_table = {
        "@type": TYPE + "envoy.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "virtual_hosts": [{"name": ROUTES, "domains": ["*"], "routes": routes}],
        "metadata": {"filter_metadata": {METADATA: memo}},
    }
    return {"version_info": table.etag, "resources": [route_table]}


def memo_of(route_table: Mapping[str, Any]) -> Table:
    """Return what a route table, as in our file or in Envoy's dump, was made from."""
    return Table.model_validate_json(route_table["metadata"]["filter_metadata"][METADATA]["table"])


def cluster_name(protocol: Protocol, revision: str) -> str:
    """Return the name of the cluster of a revision's own replicas."""
    return f"{protocol}-{arm_of(revision)}"


# -- routes -------------------------------------------------------------------------------------------------


def _routes_of(table: Table, protocol: Protocol, paths: str, *, asked: bool, closed: str) -> list[Json]:
    traffic = table.traffic
    routes: list[Json] = []
    if traffic.preview is not None:
        match = {"name": PREVIEW_HEADER, "present_match": True}
        routes.append(_route(table, protocol, paths, {traffic.preview: WHOLE}, closed, header=match))
    mirror = traffic.mirror if asked else None
    for segment in traffic.segments:
        weights = traffic.weights if segment.revision is None else {segment.revision: WHOLE}
        routes += [
            _route(table, protocol, paths, weights, closed, header=match, segment=segment, mirror=mirror)
            for value in segment.values
            for match in [{"name": segment.header.lower(), "string_match": {"exact": value}}]
        ]
    return [*routes, _route(table, protocol, paths, traffic.weights, closed, mirror=mirror)]


def _route(
    table: Table,
    protocol: Protocol,
    paths: str,
    weights: Mapping[str, int],
    closed: str,
    *,
    header: Json | None = None,
    segment: Segment | None = None,
    mirror: Mirror | None = None,
) -> Json:
    match: Json = {"safe_regex": {"regex": paths}}
    if header is not None:
        match["headers"] = [header]
    shares = {revision: weight for revision, weight in weights.items() if weight}
    if not shares:
        return {"match": match, "direct_response": _says(503, closed)}
    # With a hash, the shares lie side by side on 0 to 99 in this order. The stable revision at the end is what the
    # others grow into: whoever is on a candidate stays there when its weight goes up.
    ordered = sorted(shares, key=lambda revision: (revision == table.traffic.fallback, revision))
    weighted: Json = {
        "clusters": [
            {
                "name": _entrance(table, protocol, revision),
                "weight": shares[revision],
                "request_headers_to_add": [_header(ARM_HEADER, arm_of(revision))],
            }
            for revision in ordered
        ]
    }
    action: Json = {"weighted_clusters": weighted, "timeout": "0s", "retry_policy": _retries()}
    if table.traffic.sticky is not None:
        sticky = table.traffic.sticky
        name = sticky.name.lower() if sticky.kind == "header" else sticky.name
        by: Json = (
            {"header": {"header_name": name}} if sticky.kind == "header" else {"cookie": {"name": name}}
        )
        action["hash_policy"] = [by]
        weighted["use_hash_policy"] = True
    if mirror is not None:
        share = {"numerator": round(mirror.percent * _MILLION / 100), "denominator": "MILLION"}
        action["request_mirror_policies"] = [
            {"cluster": cluster_name(protocol, COMPARATOR), "runtime_fraction": {"default_value": share}}
        ]
    route: Json = {
        "match": match,
        "route": action,
        "request_headers_to_remove": [PREVIEW_HEADER],
        "request_body_buffer_limit": str(_RETRIED_BODY_BYTES),
    }
    if segment is not None:
        route["request_headers_to_add"] = [_header(SEGMENT_HEADER, segment_label(segment.name))]
    return route


def _entrance(table: Table, protocol: Protocol, revision: str) -> str:
    name = cluster_name(protocol, revision)
    return f"{name}-first" if stands_in(table.traffic, revision, table.backends) else name


def stands_in(traffic: Traffic, revision: str, backends: Mapping[str, Sequence[Backend]]) -> bool:
    """Whether the stable revision answers where this one cannot be reached; never the other way."""
    return revision not in {traffic.fallback, COMPARATOR} and bool(backends.get(traffic.fallback or ""))


def _retries() -> Json:
    """Ask another one if the server was not reached or went away: first of another revision, then another replica."""
    return {
        "retry_on": "connect-failure,refused-stream,reset",
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": TYPE
                + "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": TYPE + "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "host_selection_retry_max_attempts": "5",
    }


def _says(status: int, body: str) -> Json:
    return {"status": status, "body": {"inline_string": body}}


def _header(name: str, value: str) -> Json:
    escaped = value.replace("%", "%%")
    return {"header": {"key": name, "value": escaped}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
