"""Makes a tree with positions out of YAML that nobody has checked.

Only the scanner and the parser of ruamel.yaml are used; values are made here from its events, because

* the bounds (depth, number of nodes, also after aliases are written out) must hold *before* anything is
  built: a "billion laughs" file of 300 bytes stands for a billion values;
* every key and value keeps its place, also through anchors and merge keys, so that errors point at the text;
* only the scalars of the YAML 1.2 core schema are read: ``no`` and ``2026-01-01`` are text, not False and a
  date, and no tag can make an object.

The bounds are what this scanner, which is written in Python, reads within a second: about one microsecond per
character and 15 to 20 per value.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.scanner import Scanner

from shipctl.errors import SpecError
from shipctl.spec import nodes
from shipctl.spec.nodes import Entry, ListNode, MappingNode, Node, Scalar, ScalarNode, Source
from shipctl.spec.problems import Problem, near, shorten

MAX_DEPTH = 64
MAX_NODES = 20_000
"""Keys and values as written."""
MAX_EXPANDED = 100_000
"""Values once every alias is written out."""

# C0 and C1 controls but tab and line ends, the Unicode line ends that YAML 1.1 and editors count differently,
# surrogates and non-characters, and the marks that make text read in another order than it is parsed in
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_MAX_DIGITS = 24
_MAX_SHOWN = 60
_STR_TAG = "tag:yaml.org,2002:str"


def end_of(text: str) -> tuple[int, int]:
    """Return line and column, from 0, of the end of ``text``."""
    lines = re.split(r"\r\n|\r|\n", text)
    return len(lines) - 1, len(lines[-1])


def error_at(source: Source, line: int, column: int, message: str) -> SpecError:
    """Return the error for a place counted from 0, with its excerpt."""
    return SpecError(str(Problem(source.location(line, column), message)))


class _BoundedScanner(Scanner):
    """Stops at too many open brackets, each of which costs time with every further token."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:  # noqa: N803 - its name there
        if len(self.flow_context) >= MAX_DEPTH:
            raise _TooDeepError(self.reader.line, self.reader.column)
        super().fetch_flow_collection_start(TokenClass, to_push)


class _TooDeepError(Exception):
    def __init__(self, line: int, column: int) -> None:
        super().__init__()
        self.line, self.column = line, column


def compose(source: Source) -> Node | None:
    """Return the tree of the one document in ``source``, or None if there is nothing but comments.

    Raises SpecError with the position of the first thing that is wrong or out of bounds.
    """
    bad = _FORBIDDEN.search(source.text)
    if bad:
        line, column = end_of(source.text[: bad.start()])
        where = source.location(line, column)
        # without the excerpt: the character could do anything to a terminal
        raise SpecError(
            f"{where}: character U+{ord(bad[0]):04X} may not stand in a spec; save plain UTF-8 text"
        )
    parser = YAML(typ="safe", pure=True)
    parser.Scanner = _BoundedScanner
    composer = _Composer(source)
    try:
        for event in parser.parse(source.text):
            composer.feed(event)
    except _TooDeepError as exc:
        raise error_at(source, exc.line, exc.column, _too_deep()) from None
    except MarkedYAMLError as exc:
        raise _explain(source, exc) from None
    except (YAMLError, RecursionError, ValueError) as exc:
        raise SpecError(
            f"{source.location(0, 0)}: is not YAML ({str(exc) or type(exc).__name__}); check the file"
        ) from exc
    root = composer.root
    if root is not None and nodes.count(root) > MAX_EXPANDED:
        raise error_at(source, root.line, root.column, _too_much())
    return root


def _too_much() -> str:
    return f"the aliases stand for more than {MAX_EXPANDED} values; write less with aliases"


def _too_deep() -> str:
    return f"more than {MAX_DEPTH} levels are nested here; write the spec flatter"


class _Frame:
    """A collection that is being read."""

    __slots__ = ("anchor", "key", "merges", "merging", "node")

    def __init__(self, node: ListNode | MappingNode, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: tuple[str, int, int] | None = None
        self.merging = False  # the key that waits for its value is '<<'
        self.merges: list[Node] | None = None


class _Composer:
    """Builds the tree from events, one frame per open collection; nothing here recurses."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.root: Node | None = None
        self._frames: list[_Frame] = []
        self._anchors: dict[str, Node | None] = {}  # None while the anchored collection is still open
        self._depth: dict[int, int] = {}  # levels below a node that an anchor names, for what aliases add
        self._documents = 0
        self._nodes = 0
        self._merged_keys = 0

    def feed(self, event: Any) -> None:
        kind = type(event)
        if kind is ScalarEvent:
            self._scalar(event)
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            self._open(event)
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            self._close()
        elif kind is AliasEvent:
            self._alias(event)
        elif kind is DocumentStartEvent:
            self._documents += 1
            if self._documents > 1:
                raise self._fail(
                    event, "a second document starts here; a spec is one document, remove the '---'"
                )

    def _fail(self, event: Any, message: str) -> SpecError:
        return error_at(self.source, event.start_mark.line, event.start_mark.column, message)

    def _count(self, event: Any) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._fail(
                event,
                f"the file has more than {MAX_NODES} keys and values; move stages into files named under include",
            )

    def _open(self, event: Any) -> None:
        self._count(event)
        if len(self._frames) >= MAX_DEPTH:
            raise self._fail(event, _too_deep())
        frame = self._frames[-1] if self._frames else None
        if frame and frame.key is None and isinstance(frame.node, MappingNode):
            raise self._fail(event, "a key must be text; write 'name: value'")
        if event.tag is not None and str(event.tag) != "!":
            raise self._fail(event, _tag_message(event.tag))
        mark = event.start_mark
        node: ListNode | MappingNode
        if type(event) is MappingStartEvent:
            node = MappingNode(self.source, mark.line, mark.column, {})
        else:
            node = ListNode(self.source, mark.line, mark.column, [])
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._frames.append(_Frame(node, event.anchor))

    def _close(self) -> None:
        frame = self._frames.pop()
        if frame.merges is not None and isinstance(frame.node, MappingNode):
            self._merge(frame.node, frame.merges)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = frame.node
        self._place(frame.node, None)

    def _scalar(self, event: Any) -> None:
        self._count(event)
        frame = self._frames[-1] if self._frames else None
        mark = event.start_mark
        if frame and frame.key is None and isinstance(frame.node, MappingNode):
            self._key(event, frame)
            return
        value = self._value(event)
        node = ScalarNode(self.source, mark.line, mark.column, value)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        self._place(node, event)

    def _value(self, event: Any) -> Scalar:
        text: str = event.value
        tag = event.tag
        if tag is not None and str(tag) != "!":
            if str(tag) != _STR_TAG:
                raise self._fail(event, _tag_message(tag))
            return text
        if event.style is not None or tag is not None:
            bad = _FORBIDDEN.search(text) if event.style == '"' else None
            if bad:
                code = ord(bad[0])
                raise self._fail(
                    event, f"an escape here stands for character U+{code:04X}, which is refused; remove it"
                )
            return text
        if text in _WORDS:
            return _WORDS[text]
        if text[0] not in "-+.0123456789":
            return text
        try:
            return _number(text)
        except ValueError as exc:
            raise self._fail(event, str(exc)) from None

    def _key(self, event: Any, frame: _Frame) -> None:
        mark = event.start_mark
        node = frame.node
        text: str = event.value
        merge = text == "<<" and event.style is None
        if not isinstance(self._value(event), str):
            raise self._fail(event, f"key {text or 'null'} is not text; put it in quotes: {text!r}")
        if merge and frame.merges is not None:
            raise self._fail(event, "key '<<' is written twice; merge a list: '<<: [*one, *two]'")
        if not merge and isinstance(node, MappingNode) and text in node.entries:
            first = node.entries[text].line + 1
            raise self._fail(
                event, f"key {shorten(text)} is written twice, first in line {first}; remove one of them"
            )
        if event.anchor is not None:
            self._anchors[event.anchor] = ScalarNode(self.source, mark.line, mark.column, text)
        frame.merging = merge
        frame.key = (text, mark.line, mark.column)

    def _alias(self, event: Any) -> None:
        self._count(event)
        name = event.anchor
        shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
        if name not in self._anchors:
            hint = near(name, self._anchors) or "; define it above"
            raise self._fail(event, f"alias *{shown} has no anchor &{shown} before it{hint}")
        node = self._anchors[name]
        if node is None:
            raise self._fail(event, f"alias *{shown} stands inside of its own anchor; take it out")
        if len(self._frames) + self._levels(node) > MAX_DEPTH:
            raise self._fail(event, _too_deep())
        frame = self._frames[-1] if self._frames else None
        if frame and frame.key is None and isinstance(frame.node, MappingNode):
            raise self._fail(event, f"alias *{shown} may not be a key; write the key out")
        self._place(node, event)

    def _levels(self, node: Node) -> int:
        """Return how many levels ``node`` is deep; at most MAX_DEPTH because each alias was checked."""
        known = self._depth.get(id(node))
        if known is None:
            known = 0
            if isinstance(node, ListNode):
                known = 1 + max((self._levels(item) for item in node.items), default=0)
            elif isinstance(node, MappingNode):
                known = 1 + max((self._levels(entry.node) for entry in node.entries.values()), default=0)
            self._depth[id(node)] = known
        return known

    def _place(self, node: Node, event: Any) -> None:
        """Put a finished node where it belongs: the top, a list, or behind its key."""
        if not self._frames:
            self.root = node
            return
        frame = self._frames[-1]
        if isinstance(frame.node, ListNode):
            frame.node.items.append(node)
            return
        if frame.key is None:  # _key sees to it; kept so that a mistake there cannot lose a value
            raise self._fail(event, "a value has no key; write 'name: value'")
        (text, line, column), frame.key = frame.key, None
        if frame.merging:
            frame.merges = self._merged(node, line, column)
        else:
            frame.node.entries[text] = Entry(self.source, line, column, node)

    def _merged(self, node: Node, line: int, column: int) -> list[Node]:
        found: list[Node] = list(node.items) if isinstance(node, ListNode) else [node]
        if not found or not all(isinstance(item, MappingNode) for item in found):
            raise error_at(
                self.source, line, column, "'<<' merges mappings; write '<<: *anchor' or '<<: [*one, *two]'"
            )
        return found

    def _merge(self, into: MappingNode, merges: list[Node]) -> None:
        """Add what is not written in ``into`` itself; of several mappings the first that has a key wins."""
        for merged in merges:
            if isinstance(merged, MappingNode):
                self._merged_keys += len(merged.entries)
                if self._merged_keys > MAX_EXPANDED:
                    raise error_at(self.source, into.line, into.column, _too_much())
                for key, entry in merged.entries.items():
                    into.entries.setdefault(key, entry)


def _tag_message(tag: Any) -> str:
    return f"tag {str(tag)[:_MAX_SHOWN]} is not allowed; remove it (put text in quotes)"


def _number(text: str) -> Scalar:
    """Read a number of the YAML 1.2 core schema; text that is none stays text."""
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"number {text[:_MAX_DIGITS]}… is too large; put text in quotes")
        base = {"0o": 8, "0x": 16}.get(text[:2])
        value = int(text[2:], base) if base else int(text)
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"number {text} is too large; put text in quotes")
        return value
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"number {text[:_MAX_DIGITS]} is too large; put text in quotes")
        return number
    if _SPECIAL_FLOAT.fullmatch(text):
        raise ValueError(f"{text} is not a usable number; put text in quotes")
    return text


def _explain(source: Source, exc: MarkedYAMLError) -> SpecError:
    """Turn the scanner's error into one sentence that says what to do."""
    mark = exc.problem_mark or exc.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    problem, context = exc.problem or "", exc.context or ""
    here = source.location(line, column).source
    if "\\t" in problem or here[:column].strip(" ") == "\t" or here[column : column + 1] == "\t":
        message = "a tab may not indent YAML; use spaces"
    elif "mapping values are not allowed" in problem:
        message = "a ':' may not stand here; check the indentation, or put a text with ': ' in quotes"
    elif "unexpected end of stream" in problem and "quoted" in context and exc.context_mark:
        line, column = exc.context_mark.line, exc.context_mark.column
        message = "the quoted text that starts here never ends; close it"
    elif "expected ',' or" in problem and exc.context_mark:
        bracket = "[" if "sequence" in context else "{"
        opened = f"line {exc.context_mark.line + 1}, column {exc.context_mark.column + 1}"
        message = f"the '{bracket}' of {opened} is not closed, or a ',' is missing here"
        message += "; put an expression inside of brackets in quotes" if "${{" in here else "; close it"
    elif "<stream end>" in problem:
        message = "the text ends where a value has to follow; complete it"
    elif "could not find expected ':'" in problem:
        if exc.context_mark:
            line, column = exc.context_mark.line, exc.context_mark.column
        message = "a ':' is missing after this key; write 'name: value'"
    elif "expected <block end>" in problem:
        message = "the indentation does not fit the lines above; align it"
    elif "cannot start any token" in problem:
        message = f"{here[column : column + 1]!r} may not start a value; put it in quotes"
    else:
        said = f"{context}: {problem}" if context else problem
        message = f"is not YAML ({said}); check indentation and quotes here"
    return error_at(source, line, column, message)
