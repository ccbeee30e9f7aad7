"""Semantic versions: which texts are one, and which of two comes first."""

from __future__ import annotations

import re
from typing import TypeAlias, get_args

from shipctl.errors import SpecError
from shipctl.spec.fields import Named, Version
from shipctl.spec.problems import shorten

Precedence: TypeAlias = tuple[tuple[tuple[int, str], ...], bool, tuple[tuple[bool, int, str], ...]]

_VERSION = next(item for item in get_args(Version) if isinstance(item, Named))
_LOOKS_LIKE_ONE = re.compile(r"[vV]?[0-9]+([.+-].*)?")


def is_version(text: str) -> bool:
    """Whether ``text`` is a semantic version 2.0.0, such as `1.4.0` or `2.0.0-rc.1+build.5`."""
    return re.fullmatch(_VERSION.pattern, text) is not None


def looks_like_version(text: str) -> bool:
    """Whether a person would take ``text`` for a version, whether it is one or not: `2`, `v1.0`, `1.0.x`."""
    return _LOOKS_LIKE_ONE.fullmatch(text) is not None


def check_version(text: str) -> str:
    """Return ``text``.

    :raises SpecError: if it is no semantic version
    """
    if not is_version(text):
        message = f"{shorten(text)} is not {_VERSION.what}"
        raise SpecError(message)
    return text


def is_prerelease(version: str) -> bool:
    """Whether a semantic version is one before a release (`1.0.0-rc.1`)."""
    return "-" in version.partition("+")[0]


def precedence(version: str) -> Precedence:
    """Return what sorts semantic versions, by section 11 of https://semver.org/spec/v2.0.0.html.

    Build metadata does not count. A number compares by its length first, which is the same for numbers without
    leading zeros and needs no conversion of one with a thousand digits.
    """
    core, _, before = version.partition("+")[0].partition("-")
    numbers = tuple((len(part), part) for part in core.split("."))
    identifiers = tuple(
        (False, len(part), part) if part.isdigit() else (True, 0, part)
        for part in before.split(".")
        if before
    )
    return numbers, not before, identifiers
