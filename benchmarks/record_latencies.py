"""Records latencies of a real Triton on this machine, for `benchmarks/analysis.py` to draw from.

    shipctl apply specs/digits.yaml
    python benchmarks/record_latencies.py specs/.shipctl/targets/local/triton/releases/digits/1

Starts a Triton of its own over a release that the local target has published, and sends requests one by one at random
times (a Poisson stream, over HTTP, from one thread), as users do. What else runs on the machine meanwhile is in the
recording: that is where bursts and autocorrelation come from.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from shipctl_plugins._triton.client import asking
from shipctl_plugins._triton.environment import ensure_server_environment
from shipctl_plugins._triton.server import TritonServer

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "data" / "triton-latencies.npz"
MODEL = "digits"
WARM_UP = 300


def record(server: TritonServer, requests: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return when each request was sent (seconds from the beginning) and how long it took (seconds)."""
    rng = np.random.default_rng(seed)
    images = np.load(ROOT / "specs" / "data" / "digits-golden.npz")["image"].astype(np.float32)
    address = f"127.0.0.1:{server.record.ports.http}"
    sent, took = np.empty(requests), np.empty(requests)
    with asking("http", address, MODEL, ["logits"]) as ask:
        for place in range(WARM_UP):
            ask({"image": images[place % len(images)][None]})
        due = begun = time.perf_counter()
        for place in range(requests):
            due += rng.exponential(1 / rate)
            time.sleep(max(0.0, due - time.perf_counter()))
            before = time.perf_counter()
            ask({"image": images[place % len(images)][None]})
            took[place] = time.perf_counter() - before
            sent[place] = before - begun
    return sent, took


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path, help="a Triton repository with the digits model")
    parser.add_argument("--requests", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=80.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORDED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = TritonServer.start(
            ensure_server_environment(print),
            repository=options.repository,
            folder=folder / "server",
            models=[MODEL],
            bound=True,
        )
        try:
            sent, took = record(server, options.requests, options.rate, options.seed)
        finally:
            server.stop()
    options.out.parent.mkdir(exist_ok=True)
    # ten microseconds and single milliseconds are enough, and compress well
    np.savez_compressed(
        options.out,
        sent_ms=np.round(sent * 1000).astype(np.uint32),
        took_10us=np.round(took * 1e5).astype(np.uint32),
    )
    half, tail = np.quantile(took, [0.5, 0.95]) * 1000
    print(f"{len(took)} requests in {sent[-1]:.0f} s: median {half:.2f} ms, p95 {tail:.2f} ms, {options.out}")


if __name__ == "__main__":
    main()
