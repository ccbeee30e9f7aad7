"""The part of Envoy's configuration that never changes while it runs: two listeners, and where the rest is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shipctl_plugins._envoy.access_log import ARM_HEADER, FORMAT, SEGMENT_HEADER
from shipctl_plugins._envoy.clusters import address_of
from shipctl_plugins._envoy.config import LOOPBACK, ROUTES, TYPE, Json, Protocol

_RUNTIME = {"re2.max_program_size.error_level": 10_000, "re2.max_program_size.warn_level": 10_000}
"""Without it a regular expression of a few names is too much for Envoy; these here are all our own."""
_CONNECTIONS = 10_000
"""From clients, at most; more are closed at once."""


@dataclass(frozen=True)
class Listening:
    """The ports of a door."""

    http: int
    grpc: int
    admin: int


def bootstrap(ports: Listening, folder: Path) -> Json:
    """Return the part of the configuration that never changes while Envoy runs."""
    return {
        "node": {"id": "shipctl", "cluster": "shipctl"},
        "admin": {"address": address_of(LOOPBACK, ports.admin)},
        "static_resources": {
            "listeners": [
                _listener("http", ports.http, folder),
                _listener("grpc", ports.grpc, folder),
            ]
        },
        "overload_manager": {"resource_monitors": [_most_connections()]},
        "layered_runtime": {"layers": [{"name": "shipctl", "static_layer": _RUNTIME}]},
        "dynamic_resources": {"cds_config": _from_file(folder / "clusters.json")},
    }


def _listener(protocol: Protocol, port: int, folder: Path) -> Json:
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": protocol,
        "codec_type": {"http": "HTTP1", "grpc": "HTTP2"}[protocol],
        "rds": {"route_config_name": ROUTES, "config_source": _from_file(folder / "routes.json")},
        "early_header_mutation_extensions": [_strip()],
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "skip_xff_append": True,
        "stream_idle_timeout": "3600s",
        "access_log": [_access_log(protocol, folder)],
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": TYPE + "envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": protocol,
        "address": address_of(LOOPBACK, port),
        # With it, a second Envoy (of anybody with our user id) could listen on the same port and share the requests.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [network]}],
    }


def _most_connections() -> Json:
    monitor = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {"@type": TYPE + monitor, "max_active_downstream_connections": _CONNECTIONS},
    }


def _strip() -> Json:
    """Remove our own marks from what clients send. Orders to Envoy (x-envoy-…) it ignores by itself."""
    mutations: list[Json] = [{"remove": name} for name in (ARM_HEADER, SEGMENT_HEADER)]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": mutations,
        },
    }


def _access_log(protocol: Protocol, folder: Path) -> Json:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(folder / "access.jsonl"),
            "log_format": {"json_format": {**FORMAT, "protocol": protocol}},
        },
    }


def _from_file(path: Path) -> Json:
    return {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}
