from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from shipctl.spec.units import Duration, Percentage, Rate, Size

FLOATS = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
QUANTITIES = st.one_of(
    FLOATS.map(Duration),
    FLOATS.map(Rate),
    st.floats(min_value=0, max_value=1).map(Percentage),
    st.integers(min_value=0, max_value=2**63 - 1).map(Size),
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("100ms", 0.1),
        ("5m", 300),
        ("1h30m", 5400),
        ("1d", 86400),
        ("0s", 0),
        ("1.5s", 1.5),
        ("7us", 7e-6),
        ("3ns", 3e-9),
        ("1e3s", 1000),
    ],
)
def test_duration_reads_text_with_units(text: str, seconds: float) -> None:
    assert Duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 2**33), ("500MB", 500_000_000), ("0.5GiB", 2**29), ("1B", 1), ("3kB", 3000), (4096, 4096)],
)
def test_size_reads_text_with_units_and_bare_bytes(text: str | int, count: int) -> None:
    assert Size(text) == count


def test_rate_is_per_second() -> None:
    assert (Rate("200/s"), Rate("12/m"), Rate("36/h")) == (Rate(200), Rate(0.2), Rate(0.01))


def test_percentage_is_a_fraction() -> None:
    assert (Percentage("0.5%"), Percentage(0.97), Percentage("100%")) == (
        Percentage(0.005),
        Percentage(0.97),
        Percentage(1),
    )


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (Duration(0.1), "100ms"),
        (Duration(5400), "90m"),
        (Duration(86400), "1d"),
        (Duration(0), "0s"),
        (Duration(1.23456789), "1.23456789s"),
        (Size(2**33), "8GiB"),
        (Size(500_000_000), "500MB"),
        (Size(12345), "12345B"),
        (Size(0), "0B"),
        (Rate("12/m"), "0.2/s"),
        (Percentage(0.005), "0.5%"),
        (Percentage(0.97), "97%"),
    ],
)
def test_text_is_canonical(quantity: object, text: str) -> None:
    assert str(quantity) == text
    assert repr(quantity) == f"{type(quantity).__name__}({text!r})"


@given(QUANTITIES)
def test_every_quantity_survives_text_json_and_pickle(quantity: Any) -> None:
    kind = type(quantity)
    adapter = TypeAdapter(kind)
    assert kind(str(quantity)) == quantity
    assert adapter.validate_json(adapter.dump_json(quantity)) == quantity
    assert (
        adapter.validate_python(json.loads(json.dumps(adapter.dump_python(quantity, mode="json"))))
        == quantity
    )
    copied = pickle.loads(pickle.dumps(quantity))
    assert (type(copied), copied) == (kind, quantity)


@given(st.text())
def test_any_text_is_read_or_refused_with_a_message(text: str) -> None:
    for kind in (Duration, Size, Rate, Percentage):
        said = ""
        try:
            kind(text)
        except ValueError as exc:
            said = str(exc)
        assert said == "" or f"is not a {kind.__name__.lower()}; write " in said


DURATION = "is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s"
SIZE = "is not a size; write a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 8GiB"
RATE = "is not a rate; write a number with /s, /m or /h, such as 200/s"
PERCENTAGE = "is not a percentage; write a number from 0% to 100%, such as 0.5%, or a fraction from 0 to 1"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Duration, "5 parsecs", f"'5 parsecs' {DURATION}"),
        (Duration, 30, f"30 {DURATION}"),
        (Duration, "30", f"'30' {DURATION}"),
        (Duration, "-1s", f"'-1s' {DURATION}"),
        (Duration, "infs", f"'infs' {DURATION}"),
        (Duration, "1e999s", f"'1e999s' {DURATION}"),
        (Duration, True, f"True {DURATION}"),
        (Duration, None, f"None {DURATION}"),
        (Duration, "9" * 100 + "s", f"'{'9' * 63}… {DURATION}"),
        (Size, -1, f"-1 {SIZE}"),
        (Size, 1.5, f"1.5 {SIZE}"),
        (Size, "1.5B", f"'1.5B' {SIZE}"),
        (Size, "9999999PiB", f"'9999999PiB' {SIZE}"),
        (Size, 2**63, f"9223372036854775808 {SIZE}"),
        (Rate, 200, f"200 {RATE}"),
        (Rate, "200/d", f"'200/d' {RATE}"),
        (Percentage, 97, f"97 {PERCENTAGE}"),
        (Percentage, "101%", f"'101%' {PERCENTAGE}"),
        (Percentage, float("nan"), f"nan {PERCENTAGE}"),
        (Percentage, -0.1, f"-0.1 {PERCENTAGE}"),
    ],
)
def test_what_is_no_quantity_is_refused(kind: type[Any], value: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    assert [error["msg"] for error in caught.value.errors()] == [message]


@pytest.mark.parametrize("kind", [Duration, Rate])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_no_quantity_are_refused_in_code(kind: type[Any], value: float) -> None:
    with pytest.raises(ValueError, match="is not a"):
        kind(value)


def test_a_duration_scaled_stays_a_duration() -> None:
    p95 = Duration("100ms")
    assert (str(p95 * 2), str(2 * p95), str(p95 / 2), p95 / Duration("50ms")) == ("200ms", "200ms", "50ms", 2)
    assert isinstance(p95 * 2, Duration)
    assert isinstance(Rate("10/s") * 2, Rate)
    assert not isinstance(p95 / p95, Duration)


def test_fields_take_quantities_and_describe_them_in_the_json_schema() -> None:
    class Options(BaseModel):
        interval: Duration = Duration(15)
        memory: Size = Size("1GiB")

    assert Options().model_dump(mode="json") == {"interval": "15s", "memory": "1GiB"}
    assert isinstance(Options(interval=Duration("1m")).interval, Duration)
    schema = Options.model_json_schema()["properties"]
    assert schema["interval"]["type"] == "string"
    assert [arm["type"] for arm in schema["memory"]["anyOf"]] == ["string", "integer"]
