"""Semantic versions in their order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version as PythonVersion

from shipctl import SpecError
from shipctl.store.versions import check_version, is_prerelease, is_version, looks_like_version, precedence

IN_ORDER = [
    "0.0.0",
    "0.0.9",
    "0.0.10",
    "0.9.0",
    "0.10.0",
    "1.0.0-0",
    "1.0.0-2",
    "1.0.0-10",
    "1.0.0--",
    "1.0.0-1a",
    "1.0.0-Beta",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0-rc.1.0",
    "1.0.0",
    "1.0.1-a",
    "1.2.0",
    "2.0.0",
    "10.0.0",
    f"{'9' * 5000}.0.0",
]

NUMBER = st.integers(0, 10**12).map(str)
IDENTIFIER = st.one_of(NUMBER, st.from_regex(r"[0-9]{0,3}[A-Za-z-][0-9A-Za-z-]{0,5}", fullmatch=True))
VERSION = st.builds(
    lambda core, before, build: (
        ".".join(core) + (f"-{'.'.join(before)}" if before else "") + (f"+{'.'.join(build)}" if build else "")
    ),
    st.tuples(NUMBER, NUMBER, NUMBER),
    st.lists(IDENTIFIER, max_size=3),
    st.lists(st.from_regex(r"[0-9A-Za-z-]{1,4}", fullmatch=True), max_size=2),
)


def test_versions_are_ordered_as_semver_says() -> None:
    for low, high in itertools.combinations(IN_ORDER, 2):
        assert precedence(low) < precedence(high)


def test_build_metadata_does_not_count() -> None:
    assert precedence("1.0.0+a") == precedence("1.0.0+b.7") == precedence("1.0.0")


@given(version=VERSION)
def test_a_version_is_one_and_is_above_its_prereleases(version: str) -> None:
    assert is_version(check_version(version))
    assert looks_like_version(version)
    core = version.partition("+")[0].partition("-")[0]
    assert is_prerelease(version) == (precedence(version) < precedence(core))
    assert precedence(f"{core}-0") <= precedence(version) or not is_prerelease(version)


@given(first=VERSION, second=VERSION, third=VERSION)
def test_the_order_is_total(first: str, second: str, third: str) -> None:
    low, middle, high = sorted([first, second, third], key=precedence)
    assert precedence(low) <= precedence(middle) <= precedence(high)
    assert precedence(low) <= precedence(high)


@given(
    first=st.tuples(*[st.integers(0, 40)] * 3, st.integers(0, 20)),
    second=st.tuples(*[st.integers(0, 40)] * 3, st.integers(0, 20)),
)
def test_release_candidates_are_ordered_as_packaging_orders_them(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    def text(parts: tuple[int, ...]) -> str:
        return ".".join(map(str, parts[:3])) + (f"-rc.{parts[3]}" if parts[3] else "")

    one, other = text(first), text(second)
    assert (precedence(one) < precedence(other)) == (PythonVersion(one) < PythonVersion(other))


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "1.0.0-a..b", "1.0.0\n", "1.0.٣"],
)
def test_what_is_no_version_is_refused(text: str) -> None:
    assert not is_version(text)
    with pytest.raises(SpecError) as caught:
        check_version(text)
    assert str(caught.value) == f"{text!r} is not a semantic version; write three numbers, such as 1.4.0"


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("1", True),
        ("v2", True),
        ("V1.x", True),
        ("1.0.0", True),
        ("v2-beta", True),
        ("vision", False),
        ("prod", False),
    ],
)
def test_what_a_person_takes_for_a_version(text: str, looks: bool) -> None:
    assert looks_like_version(text) is looks
