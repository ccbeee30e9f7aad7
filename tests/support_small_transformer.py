"""A small transformer encoder as nodes and weights, for tests of graph optimisations."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from shipctl.signature import Signature, TensorSpec

TOKENS, HIDDEN, HEADS, INNER, CLASSES = 8, 32, 4, 64, 10
SIGNATURE = Signature(
    inputs=(TensorSpec(name="tokens", dtype="float32", shape=("batch", TOKENS, HIDDEN)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", CLASSES)),),
)
Parts = tuple[list[NodeProto], dict[str, Any], Signature]


def small_transformer(blocks: int = 2) -> Parts:
    """Return nodes, weights and signature of an encoder with attention written out (opset 20 or newer)."""
    rng = np.random.default_rng(7)
    nodes: list[NodeProto] = []
    weights: dict[str, Any] = {
        "split": np.array([0, 0, HEADS, HIDDEN // HEADS]), "merge": np.array([0, 0, HIDDEN]),
        "scale": np.float32((HIDDEN // HEADS) ** 0.5), "axes": np.array([1]),
    }  # fmt: skip

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def linear(source: str, name: str, size: tuple[int, int]) -> str:
        weights[f"{name}.w"] = (rng.standard_normal(size) / size[0] ** 0.5).astype(np.float32)
        weights[f"{name}.b"] = rng.standard_normal(size[1]).astype(np.float32) / 10
        return add("Add", [add("MatMul", [source, f"{name}.w"], name), f"{name}.b"], f"{name}_bias")

    def norm(source: str, name: str) -> str:
        weights[f"{name}.w"], weights[f"{name}.b"] = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
        return add("LayerNormalization", [source, f"{name}.w", f"{name}.b"], name, axis=-1, epsilon=1e-5)

    def heads(source: str, name: str, order: list[int]) -> str:
        return add(
            "Transpose", [add("Reshape", [source, "split"], f"{name}_split")], f"{name}_turn", perm=order
        )

    last = norm("tokens", "first")
    for index in range(blocks):
        prefix = f"block{index}"
        query, key, value = (linear(last, f"{prefix}.{part}", (HIDDEN, HIDDEN)) for part in ("q", "k", "v"))
        query = heads(query, f"{prefix}.q", [0, 2, 1, 3])
        key = heads(key, f"{prefix}.k", [0, 2, 3, 1])
        value = heads(value, f"{prefix}.v", [0, 2, 1, 3])
        scores = add("Div", [add("MatMul", [query, key], f"{prefix}.qk"), "scale"], f"{prefix}.div")
        mixed = add(
            "MatMul", [add("Softmax", [scores], f"{prefix}.softmax", axis=-1), value], f"{prefix}.mix"
        )
        turned = add("Transpose", [mixed], f"{prefix}.back", perm=[0, 2, 1, 3])
        out = linear(add("Reshape", [turned, "merge"], f"{prefix}.merge"), f"{prefix}.o", (HIDDEN, HIDDEN))
        last = norm(add("Add", [out, last], f"{prefix}.skip1"), f"{prefix}.n1")
        inner = add("Gelu", [linear(last, f"{prefix}.f1", (HIDDEN, INNER))], f"{prefix}.gelu")
        out = linear(inner, f"{prefix}.f2", (INNER, HIDDEN))
        last = norm(add("Add", [out, last], f"{prefix}.skip2"), f"{prefix}.n2")
    pooled = add("ReduceMean", [last, "axes"], "pool", keepdims=0)
    weights["head.w"] = rng.standard_normal((HIDDEN, CLASSES)).astype(np.float32)
    nodes.append(helper.make_node("Gemm", [pooled, "head.w"], ["logits"], "head"))
    return nodes, weights, SIGNATURE
