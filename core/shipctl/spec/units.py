"""Quantities that carry their unit: durations, sizes, rates and percentages.

Each is a number (``Duration`` seconds, ``Size`` bytes, ``Rate`` per second, ``Percentage`` a fraction), so
that it computes and compares as one; written in a spec, or in JSON, it has a unit, because ``timeout: 5``
has been read both as seconds and as minutes. ``str()`` gives the canonical text, which reads back as exactly
the same value.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from pydantic_core import PydanticCustomError, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?"
_MAX_TEXT = 64
_MAX_DIGITS = 24

_TIME = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "PiB": 2**50,
}
_DURATION_PART = rf"{_NUMBER}(?:ns|us|ms|s|m|h|d)"


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as exc:  # unreachable for what the patterns let through, kept as the clear error
        raise ValueError(f"{text!r} is not a number") from exc


def _plain(value: Decimal) -> str:
    """Write a decimal without an exponent while that stays short."""
    value = value.normalize()
    written = f"{value:f}"
    return written if len(written) <= _MAX_DIGITS else str(value)


class _Quantity(ABC):
    """What the four kinds share: reading text, refusing what is no quantity, and pydantic's two schemas."""

    _noun: ClassVar[str]
    _help: ClassVar[str]
    _pattern: ClassVar[re.Pattern[str]]
    _bare: ClassVar[bool] = False
    """Whether a number without a unit may stand in a spec."""

    @classmethod
    def _fail(cls, value: object) -> NoReturn:
        shown = repr(value)
        shown = shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}…"
        raise ValueError(f"{shown} is not a {cls._noun}; write {cls._help}")

    @classmethod
    def _read(cls, value: object) -> float:
        """Return the number that ``value`` (text with a unit, or a number in the base unit) stands for."""
        if isinstance(value, str):
            if len(value) > _MAX_TEXT or not cls._pattern.fullmatch(value):
                cls._fail(value)
            return cls._parse(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            cls._fail(value)
        return value

    @classmethod
    @abstractmethod
    def _parse(cls, text: str) -> float:
        """Return the number that ``text``, which matches the pattern, stands for."""

    @classmethod
    def _from_document(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        try:
            if not cls._bare and not isinstance(value, str):
                cls._fail(value)
            return cls(value)  # type: ignore[call-arg]
        except ValueError as exc:
            # the message as it is, without pydantic's "Value error, "
            raise PydanticCustomError("quantity", "{text}", {"text": str(exc)}) from None

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._from_document,
            serialization=core_schema.plain_serializer_function_ser_schema(
                str, return_schema=core_schema.str_schema(), when_used="json"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^{cls._pattern.pattern}$",
            "description": f"{cls._noun}: {cls._help}",
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class _Scaled(_Quantity, float):
    """A quantity that keeps its unit when it is multiplied or divided by a number."""

    __slots__ = ()

    def __mul__(self, factor: float) -> Self:
        return type(self)(float(self) * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Any:
        quotient = float(self) / divisor
        return quotient if isinstance(divisor, _Scaled) else type(self)(quotient)


class Duration(_Scaled):
    """A length of time in seconds. ``Duration(0.1)``, ``Duration("100ms")`` and ``Duration("1h30m")`` all work.

    In a spec the unit is required. Multiplied or divided by a number it stays a duration.
    Raises ValueError for what is negative, not finite, or has no unit.
    """

    __slots__ = ()
    _noun = "duration"
    _help = "a number with ns, us, ms, s, m, h or d, such as 30s"
    _pattern = re.compile(rf"(?:{_DURATION_PART})+")

    def __new__(cls, value: str | float) -> Self:
        """Read text with a unit, or take a number in the base unit."""
        seconds = float(cls._read(value))
        if not (math.isfinite(seconds) and seconds >= 0):
            cls._fail(value)
        return super().__new__(cls, seconds)

    @classmethod
    def _parse(cls, text: str) -> float:
        total = Decimal(0)
        for number, unit in re.findall(rf"({_NUMBER})(ns|us|ms|s|m|h|d)", text):
            total += _decimal(number) * _TIME[unit]
        return float(total)

    def __str__(self) -> str:
        seconds = Decimal(float.__repr__(self))
        for unit in ("d", "h", "m", "s", "ms", "us", "ns"):
            amount = seconds / _TIME[unit]
            if amount == amount.to_integral_value() and 0 < amount < 10**6:
                return f"{int(amount)}{unit}"
        return f"{_plain(seconds)}s"


class Size(_Quantity, int):
    """A number of bytes. Text has a unit (``8GiB`` is 2**33, ``500MB`` is 5e8); a bare integer is bytes.

    Raises ValueError for what is negative, not a whole number of bytes, or not below 2**63.
    """

    __slots__ = ()
    _noun = "size"
    _help = "a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 8GiB"
    _pattern = re.compile(rf"{_NUMBER}(?:[kKMGTP]B|[KMGTP]iB|B)")
    _bare = True

    def __new__(cls, value: str | int) -> Self:
        """Read text with a unit, or take a number in the base unit."""
        count = cls._read(value)
        if isinstance(count, float) or not 0 <= count < 2**63:
            cls._fail(value)
        return super().__new__(cls, count)

    @classmethod
    def _parse(cls, text: str) -> float:
        number = re.match(_NUMBER, text)
        if number is None:  # the pattern has matched before
            cls._fail(text)
        count = _decimal(number[0]) * _BYTES[text[number.end() :]]
        if count >= 2**63 or count != count.to_integral_value():
            cls._fail(text)
        return int(count)

    def __str__(self) -> str:
        for unit in ("PiB", "TiB", "GiB", "MiB", "KiB", "PB", "TB", "GB", "MB", "KB"):
            amount, rest = divmod(int(self), _BYTES[unit])
            if amount and not rest:
                return f"{amount}{unit}"
        return f"{int(self)}B"

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        text = {"type": "string", "pattern": f"^{cls._pattern.pattern}$"}
        return {
            "anyOf": [text, {"type": "integer", "minimum": 0}],
            "description": f"{cls._noun}: {cls._help}",
        }


class Rate(_Scaled):
    """A frequency per second: ``200/s``, ``12/m`` (a fifth per second) or ``5/h``; the unit is required.

    Raises ValueError for what is negative, not finite, or has no unit.
    """

    __slots__ = ()
    _noun = "rate"
    _help = "a number with /s, /m or /h, such as 200/s"
    _pattern = re.compile(rf"{_NUMBER}/[smh]")

    def __new__(cls, value: str | float) -> Self:
        """Read text with a unit, or take a number in the base unit."""
        rate = float(cls._read(value))
        if not (math.isfinite(rate) and rate >= 0):
            cls._fail(value)
        return super().__new__(cls, rate)

    @classmethod
    def _parse(cls, text: str) -> float:
        number, unit = text.split("/")
        return float(_decimal(number) / _TIME[unit])

    def __str__(self) -> str:
        return f"{_plain(Decimal(float.__repr__(self)))}/s"


class Percentage(_Quantity, float):
    """A fraction from 0 to 1, written ``0.5%`` or as the bare fraction ``0.005``.

    Raises ValueError for what is outside of 0 to 100 %, so that ``min: 97`` is no silent nonsense.
    """

    __slots__ = ()
    _noun = "percentage"
    _help = "a number from 0% to 100%, such as 0.5%, or a fraction from 0 to 1"
    _pattern = re.compile(rf"{_NUMBER}%")
    _bare = True

    def __new__(cls, value: str | float) -> Self:
        """Read text with a unit, or take a number in the base unit."""
        fraction = float(cls._read(value))
        if not 0 <= fraction <= 1:  # also refuses NaN
            cls._fail(value)
        return super().__new__(cls, fraction)

    @classmethod
    def _parse(cls, text: str) -> float:
        return float(_decimal(text[:-1]) / 100)

    def __str__(self) -> str:
        return f"{_plain(Decimal(float.__repr__(self)) * 100)}%"

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        text = {"type": "string", "pattern": f"^{cls._pattern.pattern}$"}
        fraction = {"type": "number", "minimum": 0, "maximum": 1}
        return {"anyOf": [text, fraction], "description": f"{cls._noun}: {cls._help}"}
