"""What Envoy says about itself, by its administration interface on loopback.

https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/admin
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from shipctl.errors import StageError
from shipctl_plugins._envoy.config import LOOPBACK, Table, memo_of

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class EffectiveRoutes:
    """The route table that requests are matched with."""

    version: str
    table: Table
    since: float
    """When Envoy read it, seconds since the epoch."""


@dataclass(frozen=True)
class Admin:
    """The administration interface of one Envoy."""

    port: int

    def ready(self) -> bool:
        """Whether Envoy has its configuration and takes requests."""
        try:
            return self._get("/ready").strip() == "LIVE"
        except StageError:
            return False

    def routes(self) -> EffectiveRoutes | None:
        """Return the routes in effect; None while there are none.

        :raises StageError: if Envoy does not answer
        """
        dump = json.loads(self._get("/config_dump?resource=dynamic_route_configs"))
        for found in dump.get("configs", []):
            since = datetime.fromisoformat(found["last_updated"]).timestamp()
            return EffectiveRoutes(found.get("version_info", ""), memo_of(found["route_config"]), since)
        return None

    def stats(self, pattern: str) -> dict[str, str]:
        """Return counters, gauges and texts whose name matches.

        :raises StageError: if Envoy does not answer
        """
        lines = self._get(f"/stats?filter={quote(pattern)}").splitlines()
        pairs = (line.partition(": ") for line in lines)
        return {name: value.strip('"') for name, _, value in pairs}

    def hosts(self) -> dict[str, dict[str, bool]]:
        """Return per cluster the hosts (host:port) and whether requests are given to them.

        :raises StageError: if Envoy does not answer
        """
        found: dict[str, dict[str, bool]] = {}
        for cluster in json.loads(self._get("/clusters?format=json")).get("cluster_statuses", []):
            found[cluster["name"]] = {
                _host(host["address"]): _healthy(host.get("health_status", {}))
                for host in cluster.get("host_statuses", [])
            }
        return found

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            message = f"Envoy does not answer on its administration port {self.port}: {error}"
            raise StageError(message) from error
        finally:
            connection.close()
        return text


def _host(address: dict[str, Any]) -> str:
    socket = address.get("socket_address", {})
    return f"{socket.get('address')}:{socket.get('port_value')}"


def _healthy(status: dict[str, Any]) -> bool:
    return not any(value is True for name, value in status.items() if name != "eds_health_status")
