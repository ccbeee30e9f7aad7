"""The layers of a built engine, from TensorRT's own descriptions of it.

Three forms are read: JSON of the engine inspector (and of `trtexec --exportLayerInfo`) with `Format/Datatype` as
TensorRT 10 writes it or `Datatype` as 11 does, and the lines below `Layers:` that a builder logs when its profiling
verbosity is detailed. The log is the only one that needs no GPU.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shipctl_plugins._onnx.quantized import Product

_WORDS = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16",
    "int8": "int8", "uint8": "uint8", "fp8": "fp8", "float8": "fp8", "int4": "int4", "fp4": "fp4",
    "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
_TYPE = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\s]*(?:\[|$))")
_DATATYPE = re.compile(r"\bDatatype: (\w+)")
_AROUND = frozenset(
    {
        "kgen",
        "reformat",
        "noop",
        "shape_call",
        "signal",
        "wait",
        "pointwise",
        "pointwisev2",
        "shuffle",
        "cast",
    }
)
"""Layer types that stand around a product (rescaling, copying) and do none, unless nothing else is there for it."""
_WIDTH = {
    "fp4": 4,
    "int4": 4,
    "fp8": 8,
    "int8": 8,
    "uint8": 8,
    "fp16": 16,
    "bf16": 16,
    "fp32": 32,
    "fp64": 64,
}
_FLOATS = {"fp16", "bf16", "fp32", "fp64"}


@dataclass(frozen=True)
class Layer:
    """One layer of an engine."""

    name: str
    kind: str
    inputs: frozenset[str]
    """Types of the tensors that it takes; empty where TensorRT does not tell them."""
    constants: frozenset[str]
    """Types of its weights."""
    nodes: frozenset[str]
    """Names of the ONNX nodes that it does."""

    @property
    def precision(self) -> str | None:
        """The narrowest type that it computes with; None for one that has no numbers to compute with."""
        return min((name for name in self.inputs if name in _WIDTH), key=_width, default=None)


def _width(name: str) -> tuple[int, str]:
    return _WIDTH[name], name


def layers_from_json(text: str) -> list[Layer]:
    """Return the layers of an engine inspector's JSON.

    Layers that are only names (another profiling verbosity) count, without types.

    :raises ValueError: if it is not one
    """
    document = json.loads(text)
    rows = document.get("Layers") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ValueError("it has no list of Layers")  # noqa: TRY004  (the content is wrong, not the caller)
    return [_from_row(row if isinstance(row, dict) else {"Name": str(row)}) for row in rows]


def _from_row(row: dict[str, Any]) -> Layer:
    constants = {_tensor_type(tensor) for tensor in row.get("Constants") or ()}
    weights = row.get("Weights")
    if isinstance(weights, dict):
        constants.add(_word(str(weights.get("Type", ""))))
    name = str(row.get("Name", ""))
    return Layer(
        name=name,
        kind=str(row.get("LayerType", "")),
        inputs=_known(_tensor_type(tensor) for tensor in row.get("Inputs") or ()),
        constants=_known(constants),
        nodes=_nodes(str(row.get("Metadata") or ""), name),
    )


def _tensor_type(tensor: dict[str, Any]) -> str | None:
    return _word(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""))


def _word(text: str) -> str | None:
    found = _TYPE.search(text)
    return _WORDS[found[1].lower()] if found else None


def _known(types: Iterable[str | None]) -> frozenset[str]:
    return frozenset(name for name in types if name)


def _nodes(metadata: str, name: str) -> frozenset[str]:
    # without metadata a fused layer is called after its parts, with + between
    return frozenset(_ONNX_LAYER.findall(metadata) or name.split(" + "))


def layers_from_log(lines: Iterable[str]) -> list[Layer]:
    """Return the layers of the last listing in a builder's log; none if there is no listing in it."""
    listing = next((text for text in reversed([*lines]) if text.startswith("Layers:\n")), "")
    rows = listing.partition("\n")[2].partition("\n\n")[0].splitlines()
    return [_from_line(row) for row in rows if row.startswith("Name: ")]


def _from_line(line: str) -> Layer:
    name, _, rest = line.removeprefix("Name: ").partition(", LayerType: ")
    kind, _, rest = rest.partition(", Inputs: ")
    inputs, _, rest = rest.partition(", Constants: ")
    constants, _, rest = rest.partition(", Outputs: ")
    return Layer(
        name=name,
        kind=kind,
        inputs=_known(_WORDS.get(word.lower()) for word in _DATATYPE.findall(inputs)),
        constants=_known(_WORDS.get(word.lower()) for word in _DATATYPE.findall(constants)),
        nodes=_nodes(rest.partition(", Metadata: ")[2], name),
    )


@dataclass(frozen=True)
class Inspection:
    """An engine against what it was asked to be."""

    layers: dict[str, int]
    """How many layers compute in each type."""
    rows: list[dict[str, str]]
    """Per product that was asked for less than 32 bits: name, operator, asked, found, verdict."""

    def named(self, verdict: str) -> list[str]:
        """Return the names of the products with a verdict: as asked, fell back, unseen."""
        return [row["node"] for row in self.rows if row["verdict"] == verdict]


def inspect(layers: Sequence[Layer], products: Sequence[Product]) -> Inspection:
    """Compare the types found with those asked for, product by product."""
    counted = Counter(layer.precision for layer in layers if layer.precision)
    rows = []
    for product in products:
        if product.compute in {"fp32", "fp64"} and product.weights is None:
            continue
        doing = _layers_of(product.name, layers)
        storing = [layer for layer in layers if product.storage and product.storage in layer.nodes]
        found = sorted({layer.precision for layer in doing if layer.precision}, key=_width)
        rows.append(
            {
                "node": product.name, "op_type": product.op_type, "asked": product.wanted,
                "found": ", ".join(found) or "unknown", "verdict": _verdict(product, doing, storing),
            }
        )  # fmt: skip
    return Inspection(dict(sorted(counted.items())), rows)


def _layers_of(node: str, layers: Sequence[Layer]) -> list[Layer]:
    mentions = [layer for layer in layers if node in layer.nodes and layer.inputs]
    return [layer for layer in mentions if layer.kind.lower() not in _AROUND] or mentions


def _verdict(product: Product, doing: Sequence[Layer], storing: Sequence[Layer]) -> str:
    if not doing:
        return "unseen"
    taken = frozenset[str]().union(*(layer.inputs for layer in doing))
    stored = taken.union(*(layer.constants | layer.inputs for layer in (*doing, *storing)))
    done = product.compute in taken or any(
        # what is narrower than a float that was asked for is no fallback (weak typing may choose it)
        product.compute in _FLOATS and _WIDTH.get(name, 99) < _WIDTH[product.compute]
        for name in taken
    )
    return "as asked" if done and (product.weights is None or product.weights in stored) else "fell back"
