"""Which files an ONNX model consists of, and whether its own is whole: seen from the outside, without onnx.

The graph may be larger than memory and onnx takes a third of a second to import, so a plan steps over the fields of the
protobuf message instead of parsing it: the wire format says how long each one is
(https://protobuf.dev/programming-guides/encoding/). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_SPARSE_TENSORS = (1, 2)
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_DEEPEST = 32
"""Graphs inside of graphs."""
_LONGEST_VARINT = 10

Span = tuple[int, int]
"""Where the bytes of a message begin and end."""


def external_files(path: Path) -> list[str]:
    """Return the files, as the graph at ``path`` names them, that hold data of its tensors; sorted.

    :raises ValueError: if the file is no ONNX model or is cut off; the message says what is wrong
    """
    if not path.stat().st_size:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graphs = [span for number, span in _messages(data, (0, len(data))) if number == _MODEL_GRAPH]
        if not graphs:
            raise ValueError("it is no ONNX model: there is no graph in it")
        return sorted({name for graph in graphs for name in _of_graph(data, graph, 0)})


def _of_graph(data: mmap.mmap, graph: Span, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    for number, span in _messages(data, graph):
        if number == _GRAPH_INITIALIZER:
            yield from _of_tensor(data, span)
        elif number == _GRAPH_SPARSE:
            for part, tensor in _messages(data, span):
                if part in _SPARSE_TENSORS:
                    yield from _of_tensor(data, tensor)
        elif number == _GRAPH_NODE:
            for part, attribute in _messages(data, span):
                if part == _NODE_ATTRIBUTE:
                    yield from _of_attribute(data, attribute, depth)


def _of_attribute(data: mmap.mmap, attribute: Span, depth: int) -> Iterator[str]:
    for number, span in _messages(data, attribute):
        if number in _ATTRIBUTE_TENSORS:
            yield from _of_tensor(data, span)
        elif number in _ATTRIBUTE_GRAPHS:
            yield from _of_graph(data, span, depth + 1)


def _of_tensor(data: mmap.mmap, tensor: Span) -> Iterator[str]:
    for number, span in _messages(data, tensor):
        if number == _TENSOR_EXTERNAL:
            entry = {part: data[begin:end] for part, (begin, end) in _messages(data, span)}
            if entry.get(_ENTRY_KEY) == b"location":
                yield entry.get(_ENTRY_VALUE, b"").decode("utf-8", "replace")


def _messages(data: mmap.mmap, within: Span) -> Iterator[tuple[int, Span]]:
    """Yield number and place of each length-delimited field of a message."""
    place, end = within
    while place < end:
        tag, place = _varint(data, place, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, place = _varint(data, place, end)
            continue
        if kind == _BYTES:
            length, place = _varint(data, place, end)
        elif kind in {_FIXED32, _FIXED64}:
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is no ONNX model")
        if place + length > end:
            message = f"it is cut off: {place + length - end} bytes are missing at its end"
            raise ValueError(message if end == len(data) else "it is no ONNX model")
        if kind == _BYTES:
            yield number, (place, place + length)
        place += length


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if place + index >= end:
            raise ValueError("it is cut off" if end == len(data) else "it is no ONNX model")
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004  (the bit that says that more follow)
            return value, place + index + 1
    raise ValueError("it is no ONNX model")
