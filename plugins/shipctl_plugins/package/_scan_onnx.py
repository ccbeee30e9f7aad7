"""ONNX files: operators from outside, and data that is read from somewhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from shipctl_plugins.package._scan_findings import Findings

if TYPE_CHECKING:
    import onnx

_OUTSIDE = re.compile(r"^(?:[/\\]|[A-Za-z]:)|\\|\x00")
"""Absolute on some system, or with a separator of another one."""


def look_at_onnx(
    content: bytes, file: str, found: Findings, folder: Path | None
) -> dict[str, set[str]] | None:
    """Look at a model and return its operators by domain, or None if the bytes are no ONNX model.

    ``folder`` is where its external data lies; None inside an archive, where there is none. Nothing of the external
    data is read.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return None
    if not model.HasField("graph") or not (model.graph.node or model.graph.initializer or model.graph.output):
        return None
    found.models += 1
    local = {(function.domain, function.name) for function in model.functions}
    operators: dict[str, set[str]] = {}
    for node in _nodes(model):
        if (node.domain, node.op_type) not in local:
            operators.setdefault(node.domain or "ai.onnx", set()).add(node.op_type)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            _external(tensor, file, found, folder)
    return operators


def _external(tensor: onnx.TensorProto, file: str, found: Findings, folder: Path | None) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = entries.get("location", "")
    if not place or _OUTSIDE.search(place) or ".." in PurePosixPath(place).parts:
        message = f"tensor {tensor.name!r} is read from {place!r}, outside of the model's folder"
        found.add("onnx-external", "critical", file, message, place or "none")
        return
    path = folder / place if folder is not None else None
    if path is None or not path.is_file():
        found.add(
            "onnx-external",
            "high",
            file,
            f"tensor {tensor.name!r} is read from {place!r}, which is not there",
            place,
        )
        return
    if any(
        part.is_symlink()
        for part in (path, *path.parents)
        if part != folder and part.is_relative_to(folder or part)
    ):
        found.add(
            "onnx-external", "critical", file, f"tensor {tensor.name!r} is read from {place!r}, a link", place
        )
        return
    try:
        start, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        start = length = -1
    if start < 0 or length < 0 or start + length > path.stat().st_size:
        message = f"tensor {tensor.name!r} is read from bytes that {place!r} does not have"
        found.add("onnx-external", "high", file, message, place)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _top_graphs(model):
        yield from _nodes_of(graph.node)
    for function in model.functions:
        yield from _nodes_of(function.node)


def _nodes_of(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _nodes_of(graph.node)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _top_graphs(model):
        yield from _initializers(graph)
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)
            for graph in _graphs(attribute):
                yield from _initializers(graph)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    yield from attribute.tensors
    if attribute.HasField("t"):
        yield attribute.t
    sparse = [
        *attribute.sparse_tensors,
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
    ]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _top_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield model.graph
    for training in model.training_info:
        yield from (training.initialization, training.algorithm)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs
