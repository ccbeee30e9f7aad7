"""The tree behind a spec: plain values that remember the file, line and column where they were written.

Nodes are never changed: including a file or overriding a value makes new parents around shared children, so
that every value keeps the place where its text really stands, whichever file or anchor it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from shipctl.spec.problems import Keys, Location, Part

Scalar: TypeAlias = str | int | float | bool | None

_NEWLINE = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A text that nodes were read from: a file, or the value of a command-line option (``is_file`` false)."""

    name: str
    text: str = field(repr=False)
    is_file: bool = True
    _lines: list[str] = field(default_factory=list, init=False, repr=False)

    def location(self, line: int, column: int) -> Location:
        """Return the place at ``line`` and ``column``, both from 0 as the scanner counts."""
        if not self.is_file:
            return Location(self.name)
        if not self._lines:
            self._lines.extend(_NEWLINE.split(self.text))
        shown = self._lines[line] if line < len(self._lines) else ""
        return Location(self.name, line + 1, column + 1, shown)


@dataclass(slots=True, eq=False)
class ScalarNode:
    """A text, a number, a boolean or nothing."""

    source: Source
    line: int
    column: int
    value: Scalar

    def plain(self) -> Scalar:
        """Return the value."""
        return self.value


@dataclass(slots=True, eq=False)
class ListNode:
    """A sequence."""

    source: Source
    line: int
    column: int
    items: list[Node]

    def plain(self) -> list[Any]:
        """Return a new list of plain values."""
        return [item.plain() for item in self.items]


@dataclass(slots=True, eq=False)
class Entry:
    """One ``key: value`` of a mapping, with the place of the key."""

    source: Source
    line: int
    column: int
    node: Node


@dataclass(slots=True, eq=False)
class MappingNode:
    """A mapping with text keys."""

    source: Source
    line: int
    column: int
    entries: dict[str, Entry]

    def plain(self) -> dict[str, Any]:
        """Return a new dict of plain values."""
        return {key: entry.node.plain() for key, entry in self.entries.items()}


Node: TypeAlias = ScalarNode | ListNode | MappingNode


def location(at: Node | Entry) -> Location:
    """Return where a node, or the key of an entry, was written."""
    return at.source.location(at.line, at.column)


def child(node: Node, key: str | int) -> Entry | Node | None:
    """Return the entry of a mapping or the item of a list, or None."""
    if isinstance(node, MappingNode):
        return node.entries.get(key) if isinstance(key, str) else None
    if isinstance(node, ListNode) and isinstance(key, int) and 0 <= key < len(node.items):
        return node.items[key]
    return None


def locate(root: Node, keys: Keys, part: Part = "value") -> Location:
    """Return where ``keys`` stands below ``root``: its key or its value.

    What is not there is located at its nearest parent: at that parent's key, or its start if it has none.
    An item of a list has no key, so both parts are its start. An empty value (``key:``) is at its key.
    """
    node, found = root, root
    at: Entry | Node = root
    for key in keys:
        step = child(node, key)
        if step is None:
            # an item of 'needs: onnx' is the text itself, and what a mapping lacks is told at the mapping's key
            return location(node if isinstance(node, ScalarNode) and node.value is not None else at)
        at = step
        node = found = step.node if isinstance(step, Entry) else step
    if part == "key" or (isinstance(found, ScalarNode) and found.value is None):
        return location(at)
    return location(found)


def walk(node: Node, keys: Keys = ()) -> Iterator[tuple[Keys, ScalarNode]]:
    """Yield every scalar below ``node`` with its path."""
    if isinstance(node, ScalarNode):
        yield keys, node
    elif isinstance(node, ListNode):
        for index, item in enumerate(node.items):
            yield from walk(item, (*keys, index))
    else:
        for key, entry in node.entries.items():
            yield from walk(entry.node, (*keys, key))


def count(node: Node, seen: dict[int, int] | None = None) -> int:
    """Return how many nodes there are once every alias is written out, without writing it out."""
    seen = {} if seen is None else seen
    known = seen.get(id(node))
    if known is None:
        known = 1
        if isinstance(node, ListNode):
            known += sum(count(item, seen) for item in node.items)
        elif isinstance(node, MappingNode):
            known += sum(count(entry.node, seen) for entry in node.entries.values())
        seen[id(node)] = known
    return known
