"""A model whose weights are larger than memory: what does not compute with them never holds them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

LAYERS, WIDTH = 12, 8192
LAYER_BYTES = WIDTH * WIDTH * 4
LIMIT = 2**30
"""Bytes of memory for each process: a third of the weights."""
ROOM = 14 * 2**30
"""Bytes of disk: the model, its copy in the store, and what is in the making."""
SPEC = """
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: large, version: 1.0.0, owner: tests}
model:
  uri: model.onnx
  files: [model.onnx.data]
  inputs: [{name: x, dtype: float32, shape: [batch, 8192]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 8192]}]
stages:
  - {id: weights, uses: validate-weights}
  - {id: repository, uses: triton-config}
  - id: package
    uses: package
    needs: [weights]
    inputs: {model: model}
    with: {license: MIT, require: []}
  - {id: scan, uses: scan}
"""

# Whatever it starts has the same bound, which counts memory of its own and not the files that it maps.
LIMITED = (
    f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT})); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def write_large_model(folder: Path) -> None:
    """Write a chain of 12 products of 256 MiB each, their weights in a file beside the graph."""
    rows = np.random.default_rng(0).standard_normal((512, WIDTH), dtype=np.float32)
    weights, nodes = [], []
    with (folder / "model.onnx.data").open("wb") as file:
        for index in range(LAYERS):
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "model.onnx.data", "offset": index * LAYER_BYTES, "length": LAYER_BYTES}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            block = (rows * np.float32(0.01 * (index + 1))).tobytes()
            for _ in range(LAYER_BYTES // len(block)):
                file.write(block)
            source, target = (
                "x" if not index else f"h{index}",
                "y" if index == LAYERS - 1 else f"h{index + 1}",
            )
            nodes.append(helper.make_node("MatMul", [source, tensor.name], [target]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", [values[0]], [values[1]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def shipctl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, "-m", "shipctl.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_gigabytes_go_through_one(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < ROOM:
        pytest.skip(f"needs {ROOM // 2**30} GiB of disk")
    try:
        write_large_model(tmp_path)
        (tmp_path / "spec.yaml").write_text(SPEC)
        done = shipctl(tmp_path, "apply", "spec.yaml")
        assert done.returncode == 0, done.stdout + done.stderr

        report: dict[str, Any] = json.loads(shipctl(tmp_path, "report", "--json").stdout)["report"]
        ran = {stage["node"]: stage for stage in report["stages"]}
        assert {name: stage["status"] for name, stage in ran.items()} == dict.fromkeys(
            ("weights", "repository", "package", "scan"), "done"
        )
        assert max(stage["peak_memory"] for stage in ran.values()) < LIMIT
    finally:
        shutil.rmtree(tmp_path)


def test_the_bound_is_one() -> None:
    """What would hold the weights does not pass under it."""
    hold = f"held = bytearray({LAYERS * LAYER_BYTES})"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "-c", hold], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "MemoryError" in done.stderr
