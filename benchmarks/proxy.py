"""What the door adds to a request: the same real Triton asked directly and through Envoy, in turns, HTTP and gRPC."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Self

from harness import host, host_line

from shipctl.release.router import Backend
from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic
from shipctl_plugins._envoy.environment import ENVOY_VERSION
from shipctl_plugins._envoy.proxy import Proxy
from shipctl_plugins._triton.environment import TRITON_VERSION, ensure_server_environment
from shipctl_plugins._triton.server import TritonServer

MODEL, REVISION, OTHER = "wide", "a" * 64, "b" * 64
BLOCK = 50
"""Requests in a row of one kind; short, so that whatever else the machine does meets all kinds alike."""
CONFIG = """
name: "wide"
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ %d ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 10 ] }]
"""

Ask = Callable[[], Any]


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    given = parser.parse_args()

    rounds = 10 if given.quick else 60
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="shipctl-bench-") as name:
        folder = Path(name)
        for width in (64, 16_384):
            measured = measure(folder / str(width), width, rounds)
            for way, samples in measured.items():
                label = f"{way.partition(' ')[0]}, {4 * width / 1024:g} KiB"
                row = rows.setdefault(label, {})
                cuts = quantiles(samples, n=20)
                key = way.partition(" ")[2]
                row |= {f"{key} median": median(samples) * 1e3, f"{key} p95": cuts[18] * 1e3}

    print(
        f"{host_line()}; Envoy {ENVOY_VERSION}, Triton {TRITON_VERSION}; {rounds * BLOCK} requests of each kind"
    )
    print()
    heads = ("one request at a time, ms", "median, direct", "door", "added", "p95, direct", "door", "added")
    print("| " + " | ".join(heads) + " |")
    print("|---|---|---|---|---|---|---|")
    for label, row in rows.items():
        cells = [
            cell
            for what in ("median", "p95")
            for cell in (
                row[f"direct {what}"], row[f"door {what}"], row[f"door {what}"] - row[f"direct {what}"],
            )
        ]  # fmt: skip
        print(f"| {label} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    if given.json:
        given.json.write_text(json.dumps({"host": host(), "milliseconds": rows}, indent=1))


def measure(folder: Path, width: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds per request for each protocol, direct and through the door."""
    write_model(folder / "models" / MODEL, width)
    environment = ensure_server_environment(print)
    server = TritonServer.start(
        environment, repository=folder / "models", folder=folder / "server", models=[MODEL], bound=True
    )
    proxy = Proxy(folder / "door", log=lambda _: None)
    try:
        open_door(proxy, server)
        samples: dict[str, list[float]] = {}
        direct, door = server.endpoints, proxy.endpoints
        with Clients(width) as clients:
            ways = {
                f"{protocol} {way}": clients.asking(protocol, where[protocol])
                for protocol in ("http", "grpc")
                for way, where in (("direct", direct), ("door", door))
            }
            for number in range(rounds + 1):
                for label, ask in ways.items():
                    taken = [timed(ask) for _ in range(BLOCK)]
                    if number:  # the first round opens connections
                        samples.setdefault(label, []).extend(taken)
        return samples
    finally:
        proxy.stop()
        server.stop()


def open_door(proxy: Proxy, server: TritonServer) -> None:
    """Open the door as it is in the middle of a release: weights, a segment, stickiness, one percent of copies."""
    proxy.ensure()
    epoch = proxy.lease.acquire("benchmark", 3600)
    ports = server.record.ports
    backend = Backend(name="server", http=f"127.0.0.1:{ports.http}", grpc=f"127.0.0.1:{ports.grpc}")
    traffic = Traffic(
        weights={REVISION: 75, OTHER: 25},
        fallback=REVISION,
        mirror=Mirror(percent=1, candidate=OTHER),
        sticky=Sticky(kind="header", name="x-user"),
        segments=(Segment(name="staff", header="x-staff", values=("yes",), revision=OTHER),),
    )
    backends = {REVISION: (backend,), OTHER: (backend,), "comparator": (backend,)}
    proxy.set(traffic, backends, etag=proxy.get().etag, epoch=epoch)


def timed(ask: Ask) -> float:
    """Return the seconds that one request takes."""
    begin = perf_counter()
    ask()
    return perf_counter() - begin


class Clients:
    """Triton's own clients with one input of ``width`` floats."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.open: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.open:
            client.close()

    def asking(self, protocol: str, address: str) -> Ask:
        """Return what asks once over a connection that stays."""
        import numpy as np
        import tritonclient.grpc
        import tritonclient.http

        module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
        client = module.InferenceServerClient(address.removeprefix("http://"))
        self.open.append(client)
        tensor = module.InferInput("x", [1, self.width], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, self.width), np.float32))
        return lambda: client.infer(MODEL, [tensor])


def write_model(folder: Path, width: int) -> None:
    """Write a linear layer as a model of a Triton repository."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.zeros((width, 10), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(CONFIG % width)


if __name__ == "__main__":
    main()
