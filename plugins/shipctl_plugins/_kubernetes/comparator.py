"""The comparator in a cluster: ``python -m shipctl_plugins._kubernetes.comparator --app NAME --namespace NAMESPACE``.

It takes the copies of requests that a gateway or a mesh makes, asks the stable revision and the candidate by their
Services, and keeps what came of it until somebody reads it: whoever drives the release, through the API server. It
talks to no API server itself, and needs no rights.

Copies come to two ports, which are all that a router sends anything to. The third port is for whoever drives the
release, and out of reach for those whose requests are copied::

    GET /comparisons?since=PLACE    what was found, see :mod:`shipctl_plugins._triton.comparator_feed`
    POST /compare                   {"stable": REVISION, "candidate": REVISION}: compare these from now on
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from shipctl.release.router import Backend
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._triton.comparator_feed import PATH, Feed
from shipctl_plugins._triton.comparator_log import Log
from shipctl_plugins._triton.comparator_queue import Comparator, Pair
from shipctl_plugins._triton.comparator_receiver import Server, start

HTTP, GRPC, RESULTS = 8000, 8001, 8002
"""Ports."""
COMPARE = "/compare"
WORKERS = 4
BUDGET = 24 << 20
"""Bytes of bodies at most; pods have less memory than machines."""
LOG_BYTES = 12 << 20
"""Of a full log; there are two."""
TIMEOUT_S = 30.0
_REVISION = re.compile(r"[0-9a-f]{64}")
_ORDER_BYTES = 4096


class Comparing:
    """What the third port is about."""

    def __init__(self, app: App, comparator: Comparator, log: Log, at: Mapping[str, Backend]) -> None:
        """``at`` is where revisions are that have no Service of their own."""
        self.app = app
        self.comparator = comparator
        self.feed = Feed(comparator, log)
        self._at = at

    def turn_to(self, order: bytes) -> None:
        """Compare what ``order`` says.

        :raises ValueError: if it says nothing of the kind
        """
        found = json.loads(order)
        stable, candidate = (str(found.get(name, "")) for name in ("stable", "candidate"))
        if not (_REVISION.fullmatch(stable) and _REVISION.fullmatch(candidate)):
            message = "write {stable: REVISION, candidate: REVISION} with revisions of 64 digits"
            raise ValueError(message)
        pair = Pair(
            stable=(self._backend(stable),),
            candidate=(self._backend(candidate),),
            stable_revision=stable,
            candidate_revision=candidate,
            timeout=TIMEOUT_S,
        )
        if pair != self.comparator.pair:
            self.comparator.turn_to(pair)
            say(f"comparing {candidate[:12]} with {stable[:12]}")

    def _backend(self, revision: str) -> Backend:
        # a name that was built from digits only: nobody has this process ask anything else
        name = self.app.of(revision)
        host = f"{name}.{self.app.namespace}.svc"
        return self._at.get(revision) or Backend(name=name, http=f"{host}:{HTTP}", grpc=f"{host}:{GRPC}")


class Results(ThreadingHTTPServer):
    """The third port."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, comparing: Comparing) -> None:
        self.comparing = comparing
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Listen for IPv4, too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: Results

    def do_GET(self) -> None:
        """Give what was found."""
        url = urlsplit(self.path)
        if url.path != PATH:
            self._answer(HTTPStatus.NOT_FOUND, b"there is /comparisons?since=PLACE\n")
            return
        since = parse_qs(url.query).get("since", [""])[-1]
        self._answer(HTTPStatus.OK, self.server.comparing.feed.answer(since))

    def do_POST(self) -> None:
        """Compare something else."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != COMPARE or length > _ORDER_BYTES:
            self.close_connection = True
            self._answer(HTTPStatus.NOT_FOUND, b"there is /compare\n")
            return
        try:
            self.server.comparing.turn_to(self.rfile.read(length))
        except (ValueError, AttributeError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
            return
        self._answer(HTTPStatus.OK, b"")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def say(message: str) -> None:
    """Write one line."""
    print(message, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """Receive copies until SIGTERM."""
    given = _parser().parse_args(arguments)
    shutil.rmtree(given.folder, ignore_errors=True)  # what an earlier process has not told nobody asks for
    given.folder.mkdir(parents=True)
    log = Log(given.folder, LOG_BYTES)
    comparator = Comparator(None, log, BUDGET)
    app = App(given.app, given.namespace, pipeline=given.app)
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    signal.signal(signal.SIGINT, lambda *_: done.set())
    bracketed = f"[{given.host}]" if ":" in given.host else given.host
    keep = start(comparator, f"{bracketed}:{given.grpc}", WORKERS)
    results = Results(given.host, given.results, Comparing(app, comparator, log, dict(given.at)))
    for server in (results, Server(comparator, given.host, given.http)):
        serve = partial(server.serve_forever, 0.5)
        threading.Thread(target=serve, daemon=True).start()
    say(f"the comparator of {given.app} in {given.namespace} takes copies")
    done.wait()
    keep.stop(None)
    comparator.tell()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shipctl_plugins._kubernetes.comparator",
        description="Compare the answers of two revisions to copies of requests.",
    )
    parser.add_argument("--app", required=True, metavar="NAME", help="the name of the target in the cluster")
    parser.add_argument("--namespace", required=True, help="where it is")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/tmp/comparisons"),  # noqa: S108  (a volume of the pod's own)
        help="where the log is kept; what is in it is removed (default: %(default)s)",
    )
    anywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (a pod's)
    parser.add_argument("--host", default=anywhere, help="where it listens (default: %(default)s)")
    for name, port in (("http", HTTP), ("grpc", GRPC), ("results", RESULTS)):
        parser.add_argument(f"--{name}", type=int, default=port, help="a port (default: %(default)s)")
    parser.add_argument(
        "--at",
        type=_at,
        action="append",
        default=[],
        metavar="REVISION=HOST:PORT,HOST:PORT",
        help="where a revision is over HTTP and gRPC, if not at its Service",
    )
    return parser


def _at(text: str) -> tuple[str, Backend]:
    revision, _, addresses = text.partition("=")
    http, _, grpc = addresses.partition(",")
    return revision, Backend(name=revision[:12], http=http, grpc=grpc or http)


if __name__ == "__main__":
    main()
    os._exit(0)  # who still asks a revision is not waited for
