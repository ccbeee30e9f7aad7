"""What is true of one registered model: versions, aliases, tags, an A/B test.

The state is written whole with every entry of the model's log, so it holds what may change and little else: what a
version is (its package, metrics, lineage) stands once, in the details of the entry that registered it, and the state
keeps that entry's number and the digest of its details. A state of five hundred versions is about 150 kB; with the
packages' manifests in it, it would be megabytes, again with every alias that moves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError

from shipctl.errors import SpecError, StoreError
from shipctl.records import Record
from shipctl.spec.problems import listed, near, shorten
from shipctl.store.versions import is_prerelease, looks_like_version, precedence

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class VersionState(Record):
    """One version, as far as it may change."""

    digest: str = Field(description="Digest of the ModelPackage.")
    entry: int = Field(description="Number of the log's entry that registered it.")
    details: str = Field(description="SHA-256 (hex) of that entry's details, as canonical JSON.")
    registered: float = Field(description="When, in seconds since the epoch.")
    parent: str | None = Field(default=None, description="The version that it came after.")
    stage: str | None = Field(default=None, description="Where it stands in its life; None is `none`.")
    tags: dict[str, str] = Field(default_factory=dict, description="Its tags.")
    retired: float | None = Field(default=None, description="When it was retired; None if it was not.")
    reason: str | None = Field(default=None, description="Why it was retired.")


class Arm(Record):
    """One of the versions that an A/B test compares."""

    version: str = Field(description="The version.")
    weight: float = Field(gt=0, description="Its share of the traffic, in percent.")


class AbTest(Record):
    """How traffic is divided between versions for an A/B test. It is kept here; a release carries it out."""

    name: str = Field(description="What the test is called.")
    arms: tuple[Arm, ...] = Field(description="The versions with their shares, which are 100 together.")
    key: str | None = Field(
        default=None, description="What a user is recognised by: `header:NAME`, `cookie:NAME`."
    )
    metric: str | None = Field(default=None, description="The metric that decides.")
    started: float = Field(description="When, in seconds since the epoch.")


class ModelState(Record):
    """All that is true of one model after an entry of its log."""

    number: int = Field(default=0, description="Number of that entry.")
    versions: dict[str, VersionState] = Field(default_factory=dict, description="By version.")
    aliases: dict[str, str] = Field(default_factory=dict, description="Alias to version.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the model as a whole.")
    ab: AbTest | None = Field(default=None, description="The A/B test, if there is one.")

    @classmethod
    def of(cls, name: str, state: Mapping[str, Any]) -> Self:
        """Read the state that an entry carries.

        :raises StoreError: if this version of shipctl cannot
        """
        try:
            return cls.model_validate(dict(state))
        except ValidationError as exc:
            message = (
                f"cannot read what the registry says of {name} ({exc.error_count()} errors): a newer version of "
                "shipctl wrote it; update this one"
            )
            raise StoreError(message) from exc

    def sorted(self) -> list[str]:
        """Return all versions, lowest first; of those that differ in build metadata only, first the older one."""
        return sorted(self.versions, key=lambda version: (precedence(version), self.versions[version].entry))

    def latest(self) -> str | None:
        """Return the highest version that is not retired and no pre-release, None if there is none."""
        usable = (v for v in self.sorted() if self.versions[v].retired is None and not is_prerelease(v))
        return max(usable, key=lambda v: (precedence(v), self.versions[v].entry), default=None)

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """Return the aliases that point at a version, sorted."""
        return tuple(sorted(alias for alias, target in self.aliases.items() if target == version))

    def children(self, version: str) -> tuple[str, ...]:
        """Return the versions whose parent is ``version``, lowest first."""
        return tuple(other for other in self.sorted() if self.versions[other].parent == version)


def check_name(name: str) -> str:
    """Return ``name``.

    :raises SpecError: if no model can be called that
    """
    if not _NAME.fullmatch(name):
        message = (
            f"{shorten(name)} is no name of a model; write at most 63 lower-case letters, digits and '-'"
        )
        raise SpecError(message)
    return name


class Reference(NamedTuple):
    """NAME, NAME@VERSION or NAME@ALIAS."""

    name: str
    ref: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference.

        :raises SpecError: if it cannot be one
        """
        name, at, ref = text.partition("@")
        if not _NAME.fullmatch(name) or (at and not ref) or "@" in ref:
            message = f"{shorten(text)} names no model; write NAME, NAME@VERSION or NAME@ALIAS, such as digits@1.0.0"
            raise SpecError(message)
        return cls(name, ref or None)


def resolve(name: str, state: ModelState, ref: str | None, *, retired: bool = False) -> str:
    """Return the version that ``ref`` (a version, an alias, or None for the highest release) means.

    ``retired`` allows a version that was retired.

    :raises SpecError: if there is none
    """
    if ref is None:
        return _latest(name, state)
    version = ref if ref in state.versions else state.aliases.get(ref)
    if version is None:
        raise unknown_reference(name, state, ref)
    found = state.versions[version]
    if found.retired is not None and not retired:
        why = f" ({found.reason})" if found.reason else ""
        message = f"{name}@{version} was retired{why}; use another version{_usable(state)}"
        raise SpecError(message)
    return version


def _latest(name: str, state: ModelState) -> str:
    version = state.latest()
    if version is not None:
        return version
    left = [version for version in state.sorted() if state.versions[version].retired is None]
    if left:
        message = (
            f"{name} has only pre-releases: {listed(reversed(left))}; name one, such as {name}@{left[-1]}"
        )
    else:
        message = (
            f"all versions of {name} were retired: {listed(reversed(state.sorted()))}; register a new one"
        )
    raise SpecError(message)


def unknown_reference(name: str, state: ModelState, ref: str) -> SpecError:
    """Return the error for a version or alias that a model does not have."""
    if looks_like_version(ref):
        hint = near(ref, state.sorted()) or _usable(state)
        return SpecError(f"{name} has no version {ref}{hint}")
    if ref == "latest":
        return SpecError(
            f"{name} has no alias latest; its highest version is {name} without anything behind it"
        )
    hint = near(ref, state.aliases) or f"; it has {listed(sorted(state.aliases), 'no aliases')}"
    return SpecError(f"{name} has no alias {shorten(ref)}{hint}")


def _usable(state: ModelState) -> str:
    left = [version for version in reversed(state.sorted()) if state.versions[version].retired is None]
    return f"; there are {listed(left, 'none that are not retired')}"
