"""The clusters that Envoy reads from a file: the replicas of each revision, and who stands in for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shipctl.errors import StageError
from shipctl.records import digest_of
from shipctl.release.router import Backend
from shipctl.release.traffic import WHOLE, Traffic
from shipctl_plugins._envoy.access_log import arm_of
from shipctl_plugins._envoy.config import COMPARATOR, PROTOCOLS, TYPE, Json, Protocol, cluster_name, stands_in

_NO_LIMIT = 100_000


def clusters_response(
    traffic: Traffic, backends: Mapping[str, Sequence[Backend]], others: Iterable[Json] = ()
) -> Json:
    """Return the clusters of all ``backends``, and of ``others`` those whose names are not among them."""
    _check_names(backends)
    made: list[Json] = []
    for protocol in PROTOCOLS:
        for revision, replicas in backends.items():
            if revision == COMPARATOR:
                made.append(_comparator(protocol, replicas))
                continue
            made.append(_cluster(protocol, revision, replicas, stable=revision == traffic.fallback))
            if stands_in(traffic, revision, backends):
                made.append(_first(protocol, revision, str(traffic.fallback)))
    names = {cluster["name"] for cluster in made}
    made += [cluster for cluster in others if cluster["name"] not in names]
    for cluster in made:
        cluster.setdefault("@type", TYPE + "envoy.config.cluster.v3.Cluster")
    return {"version_info": digest_of(made)[:16], "resources": made}


def _cluster(protocol: Protocol, revision: str, replicas: Sequence[Backend], *, stable: bool) -> Json:
    """Return the cluster of a revision's replicas, each looked at twice a second through its HTTP port.

    A server that cannot be reached is left alone for a while; a candidate also when it answers five times in a row
    with an error. The stable revision is not: one asker whose requests always fail could take it from all the others,
    and there is nobody behind it. For the same reason it is asked all the same when no replica says that it is ready.
    A replica that hangs is found within 5 s; requests that are with it by then wait as long as their askers do, since
    how long an inference may take is not ours to say.
    """
    return {
        **_basics(cluster_name(protocol, revision), protocol, panic=1 if stable else 0),
        "load_assignment": _endpoints(cluster_name(protocol, revision), protocol, replicas, checked=True),
        "ignore_health_on_host_removal": True,
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "reuse_connection": False,
                "http_health_check": {"path": "/v2/health/ready", "codec_client_type": "HTTP1"},
            }
        ],
        "outlier_detection": {
            "interval": "0.5s",
            "base_ejection_time": "5s",
            "max_ejection_time": "5s",
            "max_ejection_percent": WHOLE,
            "always_eject_one_host": True,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": WHOLE,
            "consecutive_5xx": 5,
            "enforcing_consecutive_5xx": 0 if stable else WHOLE,
            "consecutive_gateway_failure": 5,
            "enforcing_consecutive_gateway_failure": 0 if stable else WHOLE,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            # A candidate that answers with errors says all the while that it is healthy.
            "successful_active_health_check_uneject_host": stable,
        },
    }


def _first(protocol: Protocol, revision: str, fallback: str) -> Json:
    """Return the cluster that is the candidate, and the stable revision where none of its replicas can be asked."""
    aggregate = {
        "@type": TYPE + "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
        "clusters": [cluster_name(protocol, revision), cluster_name(protocol, fallback)],
    }
    return {
        "name": f"{cluster_name(protocol, revision)}-first",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "common_lb_config": _balancing(panic=0),
        "circuit_breakers": _no_limits(),
        "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": aggregate},
    }


def _comparator(protocol: Protocol, replicas: Sequence[Backend]) -> Json:
    """Return the cluster of the receiver of copies: not looked at, and never allowed to pile up requests."""
    name = cluster_name(protocol, COMPARATOR)
    limits = {"max_connections": 256, "max_pending_requests": 256, "max_requests": 256}
    return {
        **_basics(name, protocol),
        "load_assignment": _endpoints(name, protocol, replicas, checked=False),
        "circuit_breakers": {"thresholds": [limits]},
    }


def _basics(name: str, protocol: Protocol, *, panic: int = 0) -> Json:
    speaks: Json = {"http_protocol_options": {}} if protocol == "http" else {"http2_protocol_options": {}}
    options = {
        "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": speaks,
    }
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": _balancing(panic),
        "circuit_breakers": _no_limits(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
    }


def _balancing(panic: int) -> Json:
    """Return how hosts are chosen. Below ``panic`` percent of healthy ones all are, healthy or not.

    By default that is 50, which would keep a dead replica of two in use, and a dead candidate from being stood in for;
    and what is known of a host's health would reach those who route a second late.
    """
    return {"healthy_panic_threshold": {"value": panic}, "update_merge_window": "0s"}


def _no_limits() -> Json:
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(names, _NO_LIMIT)]}


def _endpoints(name: str, protocol: Protocol, replicas: Sequence[Backend], *, checked: bool) -> Json:
    endpoints: list[Json] = []
    for replica in replicas:
        host, port = splitaddress_of(getattr(replica, protocol), replica.name)
        endpoint: Json = {"address": address_of(host, port), "hostname": replica.name}
        if checked:
            endpoint["health_check_config"] = {"port_value": splitaddress_of(replica.http, replica.name)[1]}
        endpoints.append({"endpoint": endpoint})
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def address_of(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def splitaddress_of(address: str, owner: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; ``owner`` is named if it is neither.

    :raises StageError: if it is not an address
    """
    host, _, port = address.removeprefix("http://").rpartition(":")
    if not host or not port.isdigit():
        message = f"{owner} has the address {address!r}, which is not host:port"
        raise StageError(message)
    return host, int(port)


def _check_names(backends: Mapping[str, Sequence[Backend]]) -> None:
    known: dict[str, str] = {}
    for revision in backends:
        other = known.setdefault(arm_of(revision), revision)
        if other != revision:
            message = f"the revisions {other} and {revision} begin alike, so the door cannot tell them apart"
            raise StageError(message)
