"""The door's access log: one JSON object per request, written when the request ends.

Envoy's own histograms round to milliseconds, and those of an aggregate cluster mix the candidate with the stable
revision that stood in for it. The log has microseconds, the arm that a request was meant for, and every host that
was tried. Envoy writes it within :data:`FLUSH_MS`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import quote, unquote

ARM_HEADER = "x-shipctl-arm"
"""Set by the route on what goes to a revision; what a client sends under this name is removed."""
SEGMENT_HEADER = "x-shipctl-segment"
ARM_DIGITS = 12
"""Of a revision's digest, in the log and in the names of clusters."""
FLUSH_MS = 200
KEPT = 2
"""Rotated logs that are kept: `access.jsonl.1` is the newest."""
FORMAT: dict[str, str] = {
    # See https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage
    "start": "%START_TIME(%s.%6f)%",
    "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
    "arm": f"%REQ({ARM_HEADER})%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "host": "%UPSTREAM_HOST%",
    "hosts_attempted": "%UPSTREAM_HOSTS_ATTEMPTED%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "code": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS_NUMBER%",
    "flags": "%RESPONSE_FLAGS%",
    "path": "%PATH(NQ:PATH)%",
    "segment": f"%REQ({SEGMENT_HEADER})%",
}
"""Field to what Envoy puts there; beside them stands `protocol`, http or grpc, by the port that was asked."""

_INFERENCE = re.compile(r"/(infer|generate|generate_stream|ModelInfer|ModelStreamInfer)$")
_CLUSTER = re.compile(r"(?:http|grpc)-(.+?)(?:-first)?$")
_FAILED_HTTP = 500
_FAILED_GRPC = frozenset({1, 2, 4, 8, 13, 14, 15})
"""CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS."""


def arm_of(revision: str) -> str:
    """Return what a revision is called in the log and in the names of clusters."""
    return revision[:ARM_DIGITS]


def segment_label(name: str) -> str:
    """Return a segment's name as a header can carry it."""
    return quote(name, safe=" !#$&'()*+,/:;=?@[]^_`{|}~")


@dataclass(frozen=True)
class Entry:
    """One request as the door saw it. Times are seconds since the epoch, durations seconds."""

    start: float
    """When its first byte came."""
    duration: float | None
    """Until the last byte of the answer was sent; None if there was none."""
    arm: str | None
    """The revision that it was meant for (:func:`arm_of`); None where the door itself answered."""
    host: str | None
    """host:port that answered, or was tried last; None where none was."""
    hosts_attempted: tuple[str, ...]
    """All that were tried, in order."""
    attempts: int
    code: int
    """HTTP status; 0 where the client left before there was one."""
    grpc_status: int | None
    flags: str
    """Envoy's response flags, such as UF or UH; empty for none."""
    protocol: Literal["http", "grpc"]
    path: str
    segment: str | None

    @property
    def end(self) -> float:
        """When the answer was complete."""
        return self.start + (self.duration or 0.0)

    @property
    def inference(self) -> bool:
        """Whether a model was asked, and not about its health or configuration."""
        return _INFERENCE.search(self.path) is not None

    @property
    def failed(self) -> bool:
        """Whether whoever asked got an error that was not his own fault.

        A client that left is no error of the server.
        """
        if "DC" in self.flags.split(","):
            return False
        if self.code == 0 or self.code >= _FAILED_HTTP:
            return True
        return self.protocol == "grpc" and (self.grpc_status is None or self.grpc_status in _FAILED_GRPC)

    @classmethod
    def parse(cls, line: str | bytes) -> Self | None:
        """Return what one line says; None for one that is not whole."""
        try:
            raw: dict[str, Any] = json.loads(line)
            duration = raw["duration_us"]
            tried = raw.get("hosts_attempted")
            return cls(
                start=float(raw["start"]),
                duration=None if duration is None else float(duration) / 1e6,
                arm=raw.get("arm") or _arm_of_cluster(raw.get("cluster")),
                host=raw.get("host"),
                hosts_attempted=tuple(str(tried).split(",")) if tried else (),
                attempts=int(raw.get("attempts") or 0),
                code=int(raw.get("code") or 0),
                grpc_status=None if raw.get("grpc_status") is None else int(raw["grpc_status"]),
                flags=(raw.get("flags") or "").strip("-"),
                protocol=raw["protocol"],
                path=raw.get("path") or "",
                segment=unquote(raw["segment"]) if raw.get("segment") else None,
            )
        except (ValueError, KeyError, TypeError):
            return None


def _arm_of_cluster(cluster: str | None) -> str | None:
    """Return the arm by the cluster that a request was given to; one that no host took has no arm's header."""
    found = _CLUSTER.match(cluster or "")
    return found[1] if found else None
