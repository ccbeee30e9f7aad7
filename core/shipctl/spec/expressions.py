"""``${{ … }}`` in a spec: small Jinja2 expressions over the spec's variables.

A text that is exactly one expression keeps the type of its value (``${{ slo.latency.p95 }}`` is a duration);
in a longer text the values are written out. Jinja2 is imported when the first expression is met.

What an expression may do is decided from its syntax tree, before it is compiled: it names values, computes with
numbers, compares, joins texts, chooses with ``a if b else c``, and uses the filters and methods of
:mod:`shipctl.spec.sandbox`. None takes longer than a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isinf
from typing import TYPE_CHECKING, Any

from shipctl.spec.problems import listed, near, shorten
from shipctl.spec.sandbox import (
    FILTERS,
    MAX_INT,
    METHODS,
    TESTS,
    ExpressionError,
    as_text,
    bounded_work,
    environment,
    grow,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import nodes
    from jinja2.environment import TemplateExpression

ROOTS = ("vars", "env", "secrets", "matrix", "stages", "slo", "budget", "metadata")
"""The names that an expression can begin with."""
_HOW = {
    "vars": "declare it under 'vars'",
    "env": "list it under 'env' and set it before shipctl runs",
    "secrets": "declare it under 'secrets'",
    "matrix": "add the axis to the stage's 'matrix'",
    "stages": "name a stage of this spec",
    "slo": "set it under 'slo'",
    "budget": "set it under 'budget'",
    "metadata": "set it under 'metadata'",
}
MAX_LENGTH = 1000
MAX_EXPRESSIONS = 100
"""In one text."""
MAX_DEPTH = 40
MAX_STEPS = 12
"""Filters, tests, calls and comparisons in one expression: what can cost more than a microsecond."""
_OPEN = "${{"

_TOKEN = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\}\}|[{}]|[^'\"{}]+|.", re.DOTALL)
# Stage ids have hyphens, which Jinja2 reads as minus; a stage cannot be subtracted from, so nothing is lost
_STAGE_ID = re.compile(r"(?<![\w.])stages\.([A-Za-z0-9_]+(?:-+[A-Za-z0-9_]+)+|[0-9][A-Za-z0-9_]*)")

Path = tuple[str, ...]


class Anything:
    """In the scope of a static check: a value that is not known yet, so that anything may be asked of it."""

    def __repr__(self) -> str:
        return "ANYTHING"


ANYTHING = Anything()


@dataclass(frozen=True, slots=True)
class Reference:
    """A dotted name in an expression: ``vars.registry`` is ``("vars", "registry")``."""

    path: Path
    guarded: bool
    """It may be undefined: it stands before ``| default`` or in ``is defined``."""


def has_expression(value: object) -> bool:
    """Whether ``value``, or anything in it if it is a list or a mapping, holds ``${{``."""
    if isinstance(value, str):
        return _OPEN in value
    if isinstance(value, Mapping):
        return any(map(has_expression, value.values()))
    return isinstance(value, list | tuple) and any(map(has_expression, value))


def is_single_expression(text: str) -> bool:
    """Whether ``text`` is exactly one expression, so that its value keeps its type. Raises ExpressionError."""
    return len(_split(text.strip())) == 1 and text.lstrip().startswith(_OPEN)


def references(value: object) -> frozenset[Path]:
    """Return the dotted names that the expressions in ``value`` use, without evaluating anything.

    A computed step ends a name: ``vars[env.NAME]`` uses ``("vars",)`` and ``("env", "NAME")``.
    Raises ExpressionError for what cannot be read or is not allowed.
    """
    return frozenset(reference.path for reference in all_references(value))


def all_references(value: object) -> Iterator[Reference]:
    """Yield every reference in ``value`` in the order of the text. Raises ExpressionError as it comes to it."""
    if isinstance(value, str):
        if _OPEN in value:
            for part in _split(value.strip()):
                if isinstance(part, _Source):
                    yield from _parse(part.text)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from all_references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from all_references(item)


def evaluate(value: Any, scope: Mapping[str, Any]) -> Any:
    """Return ``value`` with every expression in it computed over ``scope``; ``value`` and ``scope`` stay as they are.

    ``scope`` maps names of :data:`ROOTS` to plain data (mappings, lists, texts, numbers, quantities).
    Raises ExpressionError, without a position, for an undefined name or anything that cannot be computed.
    """
    with bounded_work():
        return _evaluate(value, scope)


def _evaluate(value: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return _evaluate_text(value, scope) if _OPEN in value else value
    if isinstance(value, Mapping):
        return {key: _evaluate(item, scope) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_evaluate(item, scope) for item in value]
    return value


def missing(path: Path, scope: Mapping[str, Any]) -> str:
    """Return why ``path`` is not in ``scope``, or ``""`` if it is (or may be: below :data:`ANYTHING`)."""
    at: Any = scope
    for depth, name in enumerate(path):
        if isinstance(at, Anything):
            return ""
        if isinstance(at, Mapping):
            if name in at:
                at = at[name]
                continue
            hint = near(name, map(str, at))
            if not hint:
                hint = f"; {_HOW[path[0]]}" if depth == 1 else f"; there is {listed(map(str, at), 'nothing')}"
            return f"{'.'.join(path[: depth + 1])} is undefined{hint}"
        if isinstance(at, str) and name in METHODS:
            return ""
        return f"{'.'.join(path[: depth + 1])} is undefined; {'.'.join(path[:depth])} is not a mapping"
    return ""


@dataclass(frozen=True, slots=True)
class _Source:
    text: str


@lru_cache(maxsize=8192)
def _split(text: str) -> tuple[str | _Source, ...]:
    """Cut a text into its literal parts and its expressions."""
    parts: list[str | _Source] = []
    position = found = 0
    while (start := text.find(_OPEN, position)) >= 0:
        if start > position:
            parts.append(text[position:start])
        end = _end(text, start + len(_OPEN))
        source = text[start + len(_OPEN) : end].strip()
        if not source:
            raise ExpressionError("the expression is empty; write a name, such as ${{ vars.name }}")
        if len(source) > MAX_LENGTH:
            raise ExpressionError(f"the expression has more than {MAX_LENGTH} characters; compute less in it")
        parts.append(_Source(source))
        position = end + 2
        found += 1
        if found > MAX_EXPRESSIONS:
            raise ExpressionError(f"more than {MAX_EXPRESSIONS} expressions in one text; write less into it")
    if position < len(text) or not parts:
        parts.append(text[position:])
    return tuple(parts)


def _end(text: str, start: int) -> int:
    """Return where the ``}}`` stands that ends the expression, past texts and ``{…}`` in it."""
    depth = 0
    for token in _TOKEN.finditer(text, start, start + 2 * MAX_LENGTH):
        found = token[0]
        if depth == 0 and found == "}}":
            return token.start()
        if found == "{":
            depth += 1
        elif found in ("}", "}}"):
            if found == "}}" and depth == 1:  # the mapping ends and then the expression: '}}}'
                return token.start() + 1
            depth -= len(found)
    shown = shorten(text[start - len(_OPEN) :].splitlines()[0], 40)
    raise ExpressionError(f"the expression {shown} is not closed; end it with '}}}}'")


def _evaluate_text(text: str, scope: Mapping[str, Any]) -> Any:
    parts = _split(text.strip())
    if len(parts) == 1 and isinstance(parts[0], _Source):
        return plain(_compute(parts[0].text, scope))
    texts, size = [], 0
    for part in _split(text):
        written = as_text(_compute(part.text, scope)) if isinstance(part, _Source) else part
        size += len(written)
        grow(size)
        texts.append(written)
    return "".join(texts)


def _compute(source: str, scope: Mapping[str, Any]) -> Any:
    from jinja2 import TemplateError, Undefined, UndefinedError

    found = _parse(source)
    try:
        result = _compile(source)(**{root: scope[root] for root in ROOTS if root in scope})
    except UndefinedError:
        raise _undefined(source, found, scope) from None
    except ExpressionError:
        raise
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as exc:
        raise ExpressionError(
            f"{shorten(source)} cannot be computed ({exc}); check the types in it"
        ) from None
    if isinstance(result, Undefined):
        raise _undefined(source, found, scope)
    return result


def _undefined(source: str, found: tuple[Reference, ...], scope: Mapping[str, Any]) -> ExpressionError:
    """Return the error that names the first reference that is not in ``scope``."""
    for reference in found:
        said = "" if reference.guarded else missing(reference.path, scope)
        if said:
            return ExpressionError(said)
    return ExpressionError(f"a value in {shorten(source)} is undefined; use '| default' if it may be")


@lru_cache(maxsize=1024)
def _compile(source: str) -> TemplateExpression:
    return environment().compile_expression(_with_stage_ids(source), undefined_to_none=False)


def _with_stage_ids(source: str) -> str:
    if "stages." not in source:
        return source
    tokens = [token[0] for token in _TOKEN.finditer(source)]
    return "".join(t if t[0] in "'\"" else _STAGE_ID.sub(r"stages['\1']", t) for t in tokens)


@lru_cache(maxsize=8192)
def _parse(source: str) -> tuple[Reference, ...]:
    """Return the references of an expression that may be evaluated; raise ExpressionError for another."""
    from jinja2 import TemplateSyntaxError
    from jinja2.parser import Parser

    try:
        parser = Parser(environment(), _with_stage_ids(source), state="variable")
        tree = parser.parse_expression()
        rest = "" if parser.stream.eos else str(parser.stream.current)
    except TemplateSyntaxError as exc:
        raise ExpressionError(f"{shorten(source)} is not an expression ({exc.message}); check it") from None
    except (RecursionError, ValueError, MemoryError):
        raise ExpressionError("the expression is nested too deeply; compute less in it") from None
    if rest:
        raise ExpressionError(f"{shorten(source)} is not an expression (unexpected {rest!r}); check it")
    found: list[Reference] = []
    _inspect(tree, found)
    # 'vars.x if vars.x is defined else 1': what is asked for once may be undefined everywhere in the expression
    guarded = {reference.path for reference in found if reference.guarded}
    return tuple(Reference(r.path, r.guarded or r.path in guarded) for r in found)


_REFUSED = {
    "Pow": "'**' is not allowed in an expression; write the number",
    "Concat": "'~' is not allowed in an expression; join texts with '+', or put two ${{ }} side by side",
}
# what computes only with what is in it
_OPERATORS = frozenset({"Add", "And", "Div", "FloorDiv", "Mod", "Mul", "Neg", "Not", "Or", "Pos", "Sub"})
_PLAIN = _OPERATORS | {"Compare", "Dict", "List", "Operand", "Pair", "Tuple"}
_COUNTED = frozenset(("Call", "Filter", "Operand", "Test"))


def _inspect(tree: nodes.Node, found: list[Reference]) -> None:
    """Check every node against what is allowed and collect the references. Does not recurse."""
    waiting: list[tuple[nodes.Node, int, bool]] = [(tree, 0, False)]
    steps = 0
    while waiting:
        node, depth, guarded = waiting.pop()
        if depth > MAX_DEPTH:
            raise ExpressionError("the expression is nested too deeply; compute less in it")
        steps += type(node).__name__ in _COUNTED
        if steps > MAX_STEPS:
            raise ExpressionError(
                f"more than {MAX_STEPS} filters and comparisons; compute less in an expression"
            )
        reference = _reference(node)
        if reference is None:
            children, may_be_undefined = _check(node)
            guarded = guarded or may_be_undefined
        else:
            path, children = reference
            found.append(Reference(path, guarded))
        waiting += [(item, depth + 1, guarded) for item in reversed(children)]


def _check(node: Any) -> tuple[list[nodes.Node], bool]:
    """Check one node; return the nodes in it, and whether what they name may be undefined."""
    kind = type(node).__name__
    children = list(node.iter_child_nodes())
    if kind in _PLAIN:
        return children, False
    if kind in ("Filter", "Test"):
        return children, _check_named(node, kind)
    if kind == "Call":
        _check_call(node)
        return [node.node.node, *node.args], False
    if kind == "Const":
        value = node.value
        if isinstance(value, int | float) and (
            abs(value) > MAX_INT if isinstance(value, int) else isinf(value)
        ):
            raise ExpressionError(f"number {shorten(str(value), 30)} is too large; write a smaller one")
    elif kind == "CondExpr":
        if node.expr2 is None:
            raise ExpressionError("an 'if' in an expression needs its 'else'; write 'a if b else c'")
    elif kind == "Getattr":
        _check_attribute(node.attr)
    elif kind == "Getitem":
        _check_index(node)
    else:
        raise ExpressionError(_REFUSED.get(kind, f"{kind} is not allowed in an expression; write it without"))
    return children, False


def _reference(node: nodes.Node) -> tuple[Path, list[nodes.Node]] | None:
    """Return the dotted name that ``node`` is, and the computed parts in it; None if it is something else."""
    from jinja2 import nodes

    steps: list[str | None] = []
    rest: list[nodes.Node] = []
    at = node
    while isinstance(at, nodes.Getattr | nodes.Getitem):
        if isinstance(at, nodes.Getattr):
            _check_attribute(at.attr)
            steps.append(at.attr)
        elif isinstance(at.arg, nodes.Const) and isinstance(at.arg.value, str):
            steps.append(at.arg.value)
        else:
            _check_index(at)
            steps.append(None)
            rest.append(at.arg)
        at = at.node
    if not isinstance(at, nodes.Name):
        return None
    if at.name not in ROOTS:
        hint = near(at.name, ROOTS) or f"; there is {', '.join(ROOTS)} to use"
        raise ExpressionError(f"{at.name} is undefined{hint}")
    if len(steps) > MAX_DEPTH:
        raise ExpressionError("the expression is nested too deeply; compute less in it")
    steps.reverse()
    known = steps[: steps.index(None)] if None in steps else steps
    return (at.name, *(step for step in known if step is not None)), rest


def _check_index(node: Any) -> None:
    if type(node.arg).__name__ == "Slice":
        raise ExpressionError("slices are not allowed in an expression; use '| first', '| last' or one index")


def _check_attribute(name: str) -> None:
    if name.startswith("_"):
        raise ExpressionError(
            f"attribute {name!r} is not allowed in an expression; names in it begin with a letter"
        )


def _check_named(node: Any, kind: str) -> bool:
    """Check the name of a filter or test; return whether what it is applied to may be undefined."""
    sort, known = ("filter", sorted({*FILTERS, "default"})) if kind == "Filter" else ("test", sorted(TESTS))
    if node.name not in known:
        hint = near(node.name, known) or f"; there is {', '.join(known)}"
        raise ExpressionError(f"{sort} {node.name!r} is not allowed in an expression{hint}")
    if node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise ExpressionError(
            f"{sort} {node.name!r} takes its arguments by position; write them without names"
        )
    return node.name in ("default", "defined")


def _check_call(node: Any) -> None:
    name = getattr(node.node, "attr", None)
    if type(node.node).__name__ != "Getattr" or name not in METHODS:
        shown = f"{getattr(node.node, 'name', None) or name or 'this'}()"
        raise ExpressionError(
            f"{shown} may not be called in an expression; methods of text are {', '.join(sorted(METHODS))}"
        )
    if node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise ExpressionError(f"{name}() takes its arguments by position; write them without names")
