"""The two revisions whose answers are compared: asking each the same request, and reading what it answers."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shipctl.release.router import Backend
from shipctl_plugins._triton import comparator_answers
from shipctl_plugins._triton.client import Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 16 * 1024 * 1024
"""Of a request's body, or of an answer's; what is larger is not compared."""
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
PATH = re.compile(r"(?P<model>/v2/models/[^/?]+)(/versions/[^/?]+)?(?P<asked>/infer)$")
KEPT_HEADERS = ("Content-Type", "Inference-Header-Content-Length")
GRPC_OPTIONS = [
    ("grpc.max_send_message_length", MOST_BYTES),
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),  # gRPC would send even loopback through $http_proxy
]
_SHOWN = 200
_HTTP_OK = 200


class ArmError(Exception):
    """A revision gave no answer; the text says why."""


class SkippedError(Exception):
    """A copy that cannot be asked again; the text says why."""


class _UnreachedError(ArmError):
    """A replica took no request: another one may."""


@dataclass(frozen=True)
class Copy:
    """A request that can be asked again, of whatever version a server serves."""

    protocol: Protocol
    path: str
    headers: Mapping[str, str]
    body: bytes
    classified: frozenset[str] = frozenset()
    """Outputs that were asked for by Triton's classification extension."""


@dataclass(frozen=True)
class Answered:
    """What came back."""

    outputs: dict[str, NDArray[Any]]
    seconds: float


def http_copy(path: str, headers: Mapping[str, str], body: bytes) -> Copy:
    """Return a copy that came over HTTP, without the version in its path: each revision has a number of its own.

    :raises SkippedError: if it asks for something else than one answer, belongs to a sequence, or is compressed
    """
    headers = {name.title(): value for name, value in headers.items()}  # Envoy sends them in lower case
    match = PATH.match(path)
    if match is None:
        message = "no request for a single answer"
        raise SkippedError(message)
    if headers.get("Content-Encoding", "identity") != "identity":
        message = "compressed"
        raise SkippedError(message)
    length = headers.get("Inference-Header-Content-Length")
    try:
        asked = json.loads(body[: int(length)] if length is not None else body)
        sequence = (asked.get("parameters") or {}).get("sequence_id")
        classified = {
            output["name"]
            for output in asked.get("outputs") or ()
            if (output.get("parameters") or {}).get("classification")
        }
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        message = "no inference request"
        raise SkippedError(message) from error
    _alone(sequence)
    kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
    return Copy("http", match["model"] + match["asked"], kept, body, frozenset(classified))


def grpc_copy(body: bytes) -> Copy:
    """Return a copy that came over gRPC, without the version.

    :raises SkippedError: as :func:`http_copy`
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tritonclient.grpc import service_pb2

    try:
        asked = service_pb2.ModelInferRequest.FromString(body)
    except DecodeError as error:
        message = "no inference request"
        raise SkippedError(message) from error
    sequence = asked.parameters.get("sequence_id")
    _alone(sequence is not None and (sequence.int64_param or sequence.string_param))
    classified = {output.name for output in asked.outputs if "classification" in output.parameters}
    if asked.model_version:
        asked.model_version = ""
        body = asked.SerializeToString()
    return Copy("grpc", GRPC_METHOD, {}, body, frozenset(classified))


def _alone(sequence: object) -> None:
    """Refuse a request that changes what the server remembers: asked twice, users would get other answers."""
    if sequence:
        message = "part of a sequence"
        raise SkippedError(message)


@dataclass
class Arm:
    """The replicas of one revision, asked in turn."""

    backends: Sequence[Backend]
    _turn: Any = field(default_factory=itertools.count)
    _channels: dict[str, Any] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, copy: Copy, timeout: float, *, others: bool) -> Answered:
        """Ask one replica, within ``timeout`` seconds; with ``others`` the next one where that cannot be reached.

        :raises ArmError: if there is no answer
        """
        first, problem = next(self._turn), ArmError("it has no replicas")
        backends = [
            self.backends[(first + place) % len(self.backends)] for place in range(len(self.backends))
        ]
        for backend in backends if others else backends[:1]:
            start = time.monotonic()
            try:
                if copy.protocol == "http":
                    header, body = self._over_http(backend.http, copy, timeout)
                    seconds = time.monotonic() - start
                    return Answered(comparator_answers.from_http(body, header), seconds)
                body = self._over_grpc(backend.grpc, copy, timeout)
                seconds = time.monotonic() - start
                return Answered(comparator_answers.from_grpc(body), seconds)
            except _UnreachedError as error:
                problem = error
            except comparator_answers.UnreadableError as error:
                raise ArmError(str(error)) from error
        raise problem

    def _over_http(self, address: str, copy: Copy, timeout: float) -> tuple[int | None, bytes]:
        known: dict[str, http.client.HTTPConnection] = self._local.__dict__.setdefault("connections", {})
        fresh = address not in known
        host, _, port = address.rpartition(":")
        connection = known.setdefault(address, http.client.HTTPConnection(host, int(port), timeout=timeout))
        try:
            connection.timeout = timeout
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            connection.request("POST", copy.path, copy.body, dict(copy.headers))
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            known.pop(address).close()
            if not fresh and isinstance(error, http.client.RemoteDisconnected | ConnectionError):
                return self._over_http(address, copy, timeout)  # it was closed while nobody asked
            raise _no_answer(error, timeout) from error
        if len(body) > MOST_BYTES:
            known.pop(address).close()
            message = f"an answer of more than {MOST_BYTES:,} bytes"
            raise ArmError(message)
        if answer.status != _HTTP_OK:
            message = f"status {answer.status}: {body.decode(errors='replace')}"[:_SHOWN]
            raise ArmError(message)
        header = answer.headers.get("Inference-Header-Content-Length")
        return int(header) if header is not None else None, body

    def _over_grpc(self, address: str, copy: Copy, timeout: float) -> bytes:
        import grpc

        with self._lock:
            if address not in self._channels:
                channel = grpc.insecure_channel(address, options=GRPC_OPTIONS)
                self._channels[address] = channel.unary_unary(GRPC_METHOD)
        try:
            return bytes(self._channels[address](copy.body, timeout=timeout))
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE:
                message = f"not reached: {details}"[:_SHOWN]
                raise _UnreachedError(message) from error
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"no answer within {timeout:.1f} s"
                raise ArmError(message) from error
            message = f"{code.name}: {details}"[:_SHOWN]
            raise ArmError(message) from error


def _no_answer(error: Exception, timeout: float) -> ArmError:
    if isinstance(error, TimeoutError):
        return ArmError(f"no answer within {timeout:.1f} s")
    text = str(error) or type(error).__name__
    return _UnreachedError(f"not reached: {text}"[:_SHOWN])
