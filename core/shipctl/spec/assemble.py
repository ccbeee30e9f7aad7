"""Puts a spec together: the files that it includes, then ``--set`` overrides and the variables of an environment.

All of it works on trees with positions and makes new trees, so that every value still points at where it was
written, be it an included file or the command line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shipctl.errors import SpecError
from shipctl.spec import nodes
from shipctl.spec.composer import MAX_DEPTH, MAX_EXPANDED, compose
from shipctl.spec.nodes import Entry, ListNode, MappingNode, Node, ScalarNode, Source
from shipctl.spec.problems import Location, Problem, Problems, listed, near, shorten
from shipctl.spec.yaml import MAX_BYTES, Document, load_document

MAX_FILES = 32


@dataclass
class Files:
    """The files read so far for one spec."""

    documents: list[Document] = field(default_factory=list)
    open: list[Path] = field(default_factory=list)
    """The chain of includes that led here, resolved."""
    done: set[Path] = field(default_factory=set)


def load_files(path: Path, files: Files) -> MappingNode:
    """Return the tree of the spec at ``path`` laid over what it includes, and remember every file in ``files``.

    Mappings are merged and the including file wins; stages are put one after the other, those of the included
    files first; every other list is replaced. A file that is included by several is taken once.
    Raises SpecError for a file that cannot be read and for files that include each other.
    """
    document = load_document(path)
    files.documents.append(document)
    if len(files.documents) > MAX_FILES or sum(len(d.text) for d in files.documents) > MAX_BYTES:
        raise SpecError(
            f"{Location(str(path))}: with this file the spec has more than {MAX_FILES} files or {MAX_BYTES}"
            " characters; include less"
        )
    files.open.append(path.resolve())
    root: MappingNode | None = None
    for item in _included(document.root):
        included = Path(os.path.normpath(path.parent / str(item.value)))
        if included.resolve() in files.open:
            chain = " -> ".join(p.name for p in (*files.open, included))
            raise _error(item, f"the files include each other: {chain}; take one out")
        if not included.exists():
            raise _error(
                item, f"{shorten(str(item.value))} does not exist; include a file relative to this one"
            )
        if included.resolve() in files.done:
            continue
        part = load_files(included, files)
        root = part if root is None else merge(root, part)
    files.done.add(files.open.pop())
    if files.open:
        kept = {key: entry for key, entry in document.root.entries.items() if key != "include"}
        own = MappingNode(document.root.source, document.root.line, document.root.column, kept)
    else:
        own = document.root
    merged = own if root is None else merge(root, own)
    if nodes.count(merged) > MAX_EXPANDED:
        raise _error(document.root, f"the spec has more than {MAX_EXPANDED} values; write less with aliases")
    return merged


def _included(root: MappingNode) -> list[ScalarNode]:
    """Return the file names under ``include``; what is no text is left to validation."""
    entry = root.entries.get("include")
    if entry is None:
        return []
    items = entry.node.items if isinstance(entry.node, ListNode) else [entry.node]
    return [
        item for item in items if isinstance(item, ScalarNode) and isinstance(item.value, str) and item.value
    ]


def merge(base: MappingNode, over: MappingNode, *, top: bool = True) -> MappingNode:
    """Return ``base`` with ``over`` laid on it. At the top level the lists under ``stages`` are joined."""
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        node = entry.node
        if below is not None:
            if isinstance(below.node, MappingNode) and isinstance(node, MappingNode):
                node = merge(below.node, node, top=False)
            elif top and key == "stages" and isinstance(below.node, ListNode) and isinstance(node, ListNode):
                node = ListNode(node.source, node.line, node.column, [*below.node.items, *node.items])
        entries[key] = Entry(entry.source, entry.line, entry.column, node)
    return MappingNode(over.source, over.line, over.column, entries)


@dataclass(frozen=True)
class Override:
    """One ``--set path=value``."""

    path: tuple[str, ...]
    node: Node

    @property
    def location(self) -> Location:
        """The command-line option, as it was written."""
        return nodes.location(self.node)


def parse_override(text: str, problems: Problems) -> Override | None:
    """Read ``a.b=value``; the value is YAML, so that ``20`` is a number and ``[a, b]`` a list.

    That there is no ``=`` or that a step is empty is a problem. Raises SpecError if the value is no YAML.
    """
    name = f"--set {text if len(text) <= 80 else text[:80] + '…'}"  # noqa: PLR2004 - the length of a line
    left, equals, right = text.partition("=")
    path = tuple(left.strip().split("."))
    if not equals or not all(path) or len(path) > MAX_DEPTH or len(right) > MAX_BYTES:
        problems.add(Location(name), "is no override; write --set path.to.key=value")
        return None
    source = Source(name, right, is_file=False)
    node = compose(source)
    if node is None or not (isinstance(node, ScalarNode) or right.lstrip().startswith(("[", "{"))):
        node = ScalarNode(source, 0, 0, right)  # 'note: x' is a text here, and nothing is nothing
    return Override(path, node)


def apply_override(root: MappingNode, override: Override, problems: Problems) -> MappingNode:
    """Return ``root`` with the value put in. Stages and tensors can be named by id, name or index.

    A step that does not exist in a list, or that leads into a plain value, is a problem at the option; unknown
    keys of mappings are found when the spec is validated.
    """
    path = override.path
    if path[0] in ("vars", "environments") and len(path) > 1:
        known = _names(root, path[0])
        if path[0] == "vars":
            known |= {
                name for e in _entries_of(root, "environments").values() for name in _names(e.node, "vars")
            }
        if path[1] not in known:
            what = "variable" if path[0] == "vars" else "environment"
            hint = near(path[1], known) or f"; there is {listed(sorted(known))}"
            problems.add(override.location, f"there is no {what} {shorten(path[1])}{hint}")
            return root
    try:
        changed = _replace(root, path, 0, override)
    except _NoSuchStepError as exc:
        problems.add(override.location, str(exc))
        return root
    return changed if isinstance(changed, MappingNode) else root  # a path has a step, so it is a mapping


class _NoSuchStepError(Exception):
    """The path of an override leads nowhere; the message says why."""


def _replace(node: Node, path: tuple[str, ...], depth: int, override: Override) -> Node:
    if depth == len(path):
        return override.node
    step, said = path[depth], ".".join(path[:depth])
    source = override.node.source
    if isinstance(node, ListNode):
        index = _index(node, step, said)
        items = list(node.items)
        items[index] = _replace(items[index], path, depth + 1, override)
        return ListNode(node.source, node.line, node.column, items)
    if isinstance(node, ScalarNode):
        if node.value is not None:
            raise _NoSuchStepError(f"{said} is a value, not a mapping; end the path there")
        node = MappingNode(source, 0, 0, {})  # 'slo:' with nothing behind it
    below = node.entries.get(step)
    inner = _replace(below.node if below else MappingNode(source, 0, 0, {}), path, depth + 1, override)
    entry = Entry(below.source, below.line, below.column, inner) if below else Entry(source, 0, 0, inner)
    return MappingNode(node.source, node.line, node.column, {**node.entries, step: entry})


def _index(node: ListNode, step: str, said: str) -> int:
    names = [_name_of(item) for item in node.items]
    if step in names:
        return names.index(step)
    if step.isascii() and step.isdigit() and int(step[:9]) < len(node.items):
        return int(step)
    known = [name for name in names if name]
    hint = (
        near(step, known) or f"; there is {listed(known, f'0 to {len(names) - 1}' if names else 'nothing')}"
    )
    raise _NoSuchStepError(f"there is no {shorten(step)} in {said}{hint}")


def _name_of(node: Node) -> str:
    if isinstance(node, MappingNode):
        for key in ("id", "uses", "name"):
            entry = node.entries.get(key)
            if entry and isinstance(entry.node, ScalarNode):
                return str(entry.node.value)
    return ""


def overlay(root: MappingNode, name: str, problems: Problems) -> tuple[MappingNode, frozenset[str]]:
    """Return ``root`` with the variables of environment ``name`` in its ``vars``, and the names of these.

    That there is no such environment is a problem at ``-e``.
    """
    known = _names(root, "environments")
    if name not in known:
        hint = near(name, known) or f"; there is {listed(sorted(known), 'none in this spec')}"
        problems.add(Location(f"-e {name}"), f"there is no environment {shorten(name)}{hint}")
        return root, frozenset()
    changed = _entries_of(_entries_of(root, "environments")[name].node, "vars")
    if not changed:
        return root, frozenset()
    below = root.entries.get("vars")
    base = below.node.entries if below and isinstance(below.node, MappingNode) else {}
    at = below or root
    mapping = MappingNode(at.source, at.line, at.column, {**base, **changed})
    merged = {**root.entries, "vars": Entry(at.source, at.line, at.column, mapping)}
    return MappingNode(root.source, root.line, root.column, merged), frozenset(changed)


def _entries_of(node: Node, key: str) -> dict[str, Entry]:
    if isinstance(node, MappingNode):
        entry = node.entries.get(key)
        if entry and isinstance(entry.node, MappingNode):
            return entry.node.entries
    return {}


def _names(node: Node, key: str) -> set[str]:
    return set(_entries_of(node, key))


def _error(node: Node, message: str) -> SpecError:
    return SpecError(str(Problem(nodes.location(node), message)))
