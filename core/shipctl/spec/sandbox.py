"""The Jinja2 sandbox that expressions run in: it computes with plain data, and never for long.

Jinja2's own sandbox keeps code away from Python's internals and still computes ``7**(7**8)`` for seconds or
fills the memory with ``'a' * 10**9``. Here every node, filter and method is on a list, all arithmetic goes
through :func:`binary`, and everything that can make a text or a list longer is measured *before* it is made.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from shipctl.errors import SpecError

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

MAX_RESULT = 64 * 1024
"""Characters of one text; a value in a list or a mapping counts as :data:`ITEM` characters."""
ITEM = 32
MAX_WORK = 1024 * 1024
"""Characters that one evaluation may touch, all steps together: about 10 ms."""
MAX_INT = 2**63

METHODS = frozenset({"endswith", "lower", "removeprefix", "removesuffix", "startswith", "upper"})
"""The methods of texts that may be called."""

_left: ContextVar[list[int] | None] = ContextVar("work left", default=None)

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


class ExpressionError(SpecError):
    """An expression cannot be read or computed. The message has no position: who evaluates knows it."""


def is_number(value: object) -> bool:
    """Whether ``value`` is a number to compute with; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind(value: object) -> str:
    """Name the kind of a value for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if is_number(value):
        return "a number"
    if isinstance(value, str):
        return "text"
    return (
        "a mapping"
        if isinstance(value, Mapping)
        else "a list"
        if isinstance(value, list | tuple)
        else "a value"
    )


def as_text(value: object) -> str:
    """Return how a value reads inside of a text: as YAML and JSON write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None or isinstance(value, list | tuple | Mapping):
        plain(value)  # bounded before it is written
        return limited(json.dumps(value, ensure_ascii=False, default=str))
    return str(value)


def limited(text: str) -> str:
    """Return ``text`` unless it is too long."""
    grow(len(text))
    return text


@contextmanager
def bounded_work(amount: int = MAX_WORK) -> Iterator[None]:
    """Allow everything computed inside, together, to touch ``amount`` characters; an outer bound stays in force."""
    token = _left.set([amount]) if _left.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _left.reset(token)


def grow(size: int) -> None:
    """Refuse a result of ``size`` characters before it is made, and count it as work."""
    if size > MAX_RESULT:
        raise ExpressionError(
            f"the result is larger than {MAX_RESULT // 1024} KiB; compute less in an expression"
        )
    left = _left.get()
    if left is not None:
        left[0] -= size
        if left[0] < 0:
            raise ExpressionError("the expressions compute too much; write the values out")


def plain(value: object) -> Any:
    """Return a copy of ``value`` as plain data (so that nobody can change the scope through a result).

    Raises ExpressionError if it is too large or is no plain data.
    """
    left = MAX_RESULT

    def copy(value: object, depth: int) -> Any:
        nonlocal left
        left -= len(value) if isinstance(value, str) else ITEM
        if left < 0:
            grow(MAX_RESULT + 1)
        if value is None or isinstance(value, str | int | float):
            return value
        if depth:
            if isinstance(value, Mapping):
                return {str(key): copy(item, depth - 1) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [copy(item, depth - 1) for item in value]
        raise ExpressionError("the result is not plain data; compute a text, a number, a list or a mapping")

    copied = copy(value, 64)
    grow(MAX_RESULT - left)
    return copied


def binary(symbol: str, left: Any, right: Any) -> Any:
    """Compute ``left symbol right`` for numbers; ``+`` also joins two texts or two lists."""
    if is_number(left) and is_number(right):
        result = _ARITHMETIC[symbol](left, right)
        if not math.isfinite(result) or (isinstance(result, int) and abs(result) > MAX_INT):
            raise ExpressionError(
                f"the result of {symbol!r} is too large for a number; compute with smaller ones"
            )
        return result
    if symbol == "+" and isinstance(left, str) and isinstance(right, str):
        grow(len(left) + len(right))
        return left + right
    if symbol == "+" and isinstance(left, list) and isinstance(right, list):
        grow(ITEM * (len(left) + len(right)))
        return left + right
    hint = "; write numbers as text with '| string'" if symbol == "+" else "; it computes with numbers only"
    raise ExpressionError(f"{symbol!r} cannot take {kind(left)} and {kind(right)}{hint}")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ExpressionError(f"'| {name}' takes text, not {kind(value)}; use '| string' before it")
    return value


def _items(value: object, name: str) -> Any:
    if not isinstance(value, list | tuple) or not value:
        shown = "an empty list" if isinstance(value, list | tuple) else kind(value)
        raise ExpressionError(f"'| {name}' takes a list with items, not {shown}; use '| default' before it")
    return value


def _replace(value: object, old: object, new: object) -> str:
    text = _text(value, "replace")
    if not (isinstance(old, str) and old and isinstance(new, str)):
        raise ExpressionError("'| replace' takes two texts, the first not empty; write replace('old', 'new')")
    grow(len(text) + text.count(old) * (len(new) - len(old)))
    return text.replace(old, new)


def _join(value: object, separator: object = "") -> str:
    if not isinstance(value, list | tuple) or not isinstance(separator, str):
        raise ExpressionError(f"'| join' takes a list and a text, not {kind(value)}; write join(',')")
    grow(len(separator) * len(value))
    texts, size = [], 0
    for item in value:
        text = as_text(item)
        size += len(text) + len(separator)
        grow(size)
        texts.append(text)
    return separator.join(texts)


def _length(value: object) -> int:
    if not isinstance(value, str | list | tuple | Mapping):
        raise ExpressionError(
            f"'| length' takes text, a list or a mapping, not {kind(value)}; use '| string' before it"
        )
    return len(value)


def _number(convert: Callable[[Any], Any], name: str) -> Callable[[object], Any]:
    def filter_(value: object) -> Any:
        try:
            result = convert(value[:64] if isinstance(value, str) else value)
        except (TypeError, ValueError, OverflowError):
            raise ExpressionError(f"'| {name}' cannot read {kind(value)}; give it a number") from None
        if not math.isfinite(result) or abs(result) > MAX_INT:
            raise ExpressionError(f"'| {name}' has no usable number as result; give it a smaller one")
        return result

    return filter_


def _round(value: object, digits: object = 0) -> Any:
    if not is_number(value) or not isinstance(digits, int) or not 0 <= digits <= 15:  # noqa: PLR2004 - a double has no more
        raise ExpressionError(
            f"'| round' takes a number and 0 to 15 digits, not {kind(value)}; write round(2)"
        )
    return round(value, digits) if digits else round(value)  # type: ignore[call-overload]


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": _number(abs, "abs"),
    "first": lambda value: _items(value, "first")[0],
    "float": _number(float, "float"),
    "int": _number(int, "int"),
    "join": _join,
    "last": lambda value: _items(value, "last")[-1],
    "length": _length,
    "lower": lambda value: _text(value, "lower").lower(),
    "max": lambda value: max(_items(value, "max")),
    "min": lambda value: min(_items(value, "min")),
    "replace": _replace,
    "round": _round,
    "string": lambda value: limited(as_text(value)),
    "tojson": lambda value: limited(json.dumps(plain(value), ensure_ascii=False)),
    "trim": lambda value: _text(value, "trim").strip(),
    "upper": lambda value: _text(value, "upper").upper(),
}
"""All filters but ``default``, which alone accepts what is undefined."""
TESTS = frozenset({"defined", "none", "number", "string"})


@cache
def environment() -> SandboxedEnvironment:
    """Return the one environment that expressions are compiled in; imports Jinja2 (about 30 ms)."""
    from jinja2 import StrictUndefined

    def strict(function: Callable[..., Any]) -> Callable[..., Any]:
        def filter_(*arguments: Any) -> Any:
            for argument in arguments:
                if isinstance(argument, StrictUndefined):
                    str(argument)  # raises the error that names it
                if isinstance(argument, str | list | tuple | Mapping):
                    grow(len(argument) * (1 if isinstance(argument, str) else ITEM))
            return function(*arguments)

        return filter_

    # constants are not folded: filters would run while compiling, where their work is not counted
    sandbox = _sandbox_class()(undefined=StrictUndefined, optimized=False, cache_size=0, autoescape=False)
    sandbox.globals.clear()
    sandbox.filters.clear()
    sandbox.filters.update({name: strict(function) for name, function in FILTERS.items()})
    sandbox.filters["default"] = lambda value, other="": (
        other if isinstance(value, StrictUndefined) else value
    )
    sandbox.tests.clear()
    sandbox.tests.update(
        defined=lambda value: not isinstance(value, StrictUndefined),
        none=strict(lambda value: value is None),
        number=strict(is_number),
        string=strict(lambda value: isinstance(value, str)),
    )
    return sandbox


def _sandbox_class() -> type[SandboxedEnvironment]:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(_ARITHMETIC)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for value in (left, right):
                if isinstance(value, StrictUndefined):
                    str(value)  # raises the error that names it
            return binary(operator, left, right)

        def getattr(self, obj: Any, attribute: str) -> Any:
            """Look only into mappings, so that ``vars.items`` is a variable and never a method of dict."""
            if isinstance(obj, str) and attribute in METHODS:
                return getattr(str(obj), attribute)
            return self.getitem(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(obj, StrictUndefined):
                return obj  # so that 'vars.a.b | default(1)' works when there is no vars.a
            usable = isinstance(argument, str) if isinstance(obj, Mapping) else type(argument) is int
            if usable and isinstance(obj, Mapping | list | tuple):
                with suppress(LookupError):
                    return obj[argument]
            return self.undefined(obj=obj, name=argument)

        def is_safe_callable(self, obj: Any) -> bool:
            return isinstance(getattr(obj, "__self__", None), str) and getattr(obj, "__name__", "") in METHODS

    return Sandbox
