"""What tests of live releases share: small models with known faults, specs for them, and load by a client of others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

Fault = Literal["slow", "errors", "wrong", "differs"]

WIDTH = 768
BIAS = 1e-4
"""Times a version's seed is what its model adds to each value."""
SLOW_ROUNDS = 500
"""Multiplications of a square matrix that a slow model does: some tens of milliseconds, which a busy machine is not."""


def seed_of(version: str) -> int:
    """Return the seed of a version's model."""
    return sum(ord(letter) for letter in version)


def write_model(path: Path, fault: Fault | None = None, *, seed: int = 0) -> None:
    """Write a small ONNX model from x (batch, 4) to y (batch, 3).

    ``slow``: takes several times as long; ``errors``: raises where the last column of x is 1; ``wrong``: other weights;
    ``differs``: answers as the good one does where the last column is 0, and otherwise not.
    """
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((3, 3)).astype(np.float32)
    if fault == "wrong":
        weights = -weights
    bias = np.float32(BIAS * seed) * np.ones(3, np.float32)  # so that each version has bytes of its own
    constants: dict[str, NDArray[Any]] = {
        "w": weights,
        "b": bias,
        "zero": np.array([0], np.int64),
        "three": np.array([3], np.int64),
        "four": np.array([4], np.int64),
        "axis": np.array([1], np.int64),
        "table": np.zeros(1 if fault == "errors" else 2, np.float32),
        "by": np.array([5.0 if fault == "differs" else 0.0], np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["x", "zero", "three", "axis"], ["head"]),
        helper.make_node("Slice", ["x", "three", "four", "axis"], ["flag"]),
        helper.make_node("Cast", ["flag"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["looked"], axis=0),
        helper.make_node("MatMul", ["head", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Add", ["sum", "looked"], ["checked"]),
        helper.make_node("Mul", ["flag", "by"], ["moved"]),
        helper.make_node("Add", ["checked", "moved"], ["answer"]),
    ]
    if fault == "slow":
        constants["square"] = np.eye(WIDTH, dtype=np.float32)
        constants["spread"] = np.ones((3, WIDTH), np.float32) / WIDTH
        constants["gather"] = np.zeros((WIDTH, 3), np.float32)
        nodes.append(helper.make_node("MatMul", ["answer", "spread"], ["wide0"]))
        nodes += [
            helper.make_node("MatMul", [f"wide{index}", "square"], [f"wide{index + 1}"])
            for index in range(SLOW_ROUNDS)
        ]
        nodes.append(helper.make_node("MatMul", [f"wide{SLOW_ROUNDS}", "gather"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["answer", "nothing"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["answer"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_golden(path: Path, model: Path) -> None:
    """Write inputs whose last column is 0, with the answers of ``model``."""
    import onnxruntime

    x = np.random.default_rng(3).standard_normal((8, 4)).astype(np.float32)
    x[:, 3] = 0
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    np.savez(path, x=x, y=session.run(["y"], {"x": x})[0])


SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {{name: m, version: {version}}}
slo: {{{latency}error_rate: 1%}}
budget: {{rollback: 300s}}
model:
  uri: models/{version}.onnx
  inputs: [{{name: x, dtype: float32, shape: [batch, 4]}}]
  outputs: [{{name: y, dtype: float32, shape: [batch, 3]}}]
data:
  golden: {{uri: golden.npz}}
stages:
  - {{id: repository, uses: triton-config}}
  - {{id: release, uses: {strategy}, with: {options}}}
"""


@dataclass
class Project:
    """A folder with models and a spec, as a user has it."""

    root: Path

    @property
    def spec(self) -> Path:
        """The spec."""
        return self.root / "spec.yaml"

    def write(
        self,
        version: str,
        fault: Fault | None = None,
        *,
        strategy: str = "canary",
        p95: str = "250ms",
        options: dict[str, Any] | None = None,
    ) -> None:
        """Write the spec and model of a version; ``p95`` may be empty where percentiles cannot be had."""
        (self.root / "models").mkdir(parents=True, exist_ok=True)
        model = self.root / "models" / f"{version}.onnx"
        write_model(model, fault, seed=seed_of(version))
        if not (self.root / "golden.npz").exists():
            write_golden(self.root / "golden.npz", model)
        text = SPEC.format(
            version=version,
            strategy=strategy,
            latency=f"latency: {{p95: {p95}}}, " if p95 else "",
            options=json.dumps(options or {"scaleDownDelay": "2s"}),
        )
        self.spec.write_text(text)

    def shipctl(self, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def command(*arguments: str) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "shipctl.cli", *arguments]

    def status(self) -> list[dict[str, Any]]:
        """Return what serves, by `shipctl status`."""
        answer = json.loads(self.shipctl("status", "spec.yaml", "--json").stdout)
        found: list[dict[str, Any]] = answer["targets"][0]["serving"]
        return found


@dataclass(frozen=True)
class Requests:
    """What became of the requests of a load."""

    all: tuple[dict[str, Any], ...]

    @property
    def failed(self) -> tuple[dict[str, Any], ...]:
        """Those without a right answer."""
        return tuple(line for line in self.all if "error" in line)

    def versions(self, since: float = 0.0) -> dict[str, int]:
        """Return how many requests each version has answered."""
        found: dict[str, int] = {}
        for line in self.all:
            if "version" in line and line["at"] >= since:
                found[line["version"]] = found.get(line["version"], 0) + 1
        return found

    @property
    def trouble(self) -> float:
        """Seconds from the first failed request to the last."""
        return self.failed[-1]["at"] - self.failed[0]["at"] if self.failed else 0.0


class Load:
    """A running load."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._read = 0
        self._lines: list[dict[str, Any]] = []

    def read(self) -> Requests:
        """Return what was written down so far."""
        if self._output.exists():
            with self._output.open("rb") as file:
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(end)
            self._lines += map(json.loads, whole.splitlines())
        return Requests(tuple(self._lines))


@contextmanager
def load(address: str, output: Path, *, rate: float = 100, ones: float = 0.0) -> Iterator[Load]:
    """Send requests to the model m behind ``address`` (host:port) until the block ends."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("load_client.py")),
        address,
        "m",
        str(rate),
        str(output),
    ]
    client = subprocess.Popen([*command, str(ones)], stdin=subprocess.PIPE)
    try:
        yield Load(output)
    finally:
        assert client.stdin is not None
        client.stdin.close()
        client.wait(30)
