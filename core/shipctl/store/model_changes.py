"""Every way in which what is true of a registered model may change.

Each function takes a state and returns the next one, or raises to refuse; :class:`Unchanged` says that there is
nothing to do. They are pure, so that a writer whom another one overtook is judged again by the newer state. Where they
take a version, that is one which :func:`~shipctl.store.model_state.resolve` has returned for the same state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from shipctl.errors import GateError, SpecError
from shipctl.spec.problems import listed, near, shorten
from shipctl.store.model_state import AbTest, Arm, ModelState, VersionState, resolve, unknown_reference
from shipctl.store.versions import is_prerelease, looks_like_version, precedence

STAGES = ("none", "development", "staging", "production", "archived")
"""Where a version can stand in its life; `none` is where it begins."""
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_KEY = re.compile(r"(header|cookie):[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_WHOLE = 100.0
_MIN_ARMS = 2


class Unchanged(Exception):  # noqa: N818  (it is no error)
    """What was asked for is so already; nothing is written."""


class Use(NamedTuple):
    """Something that a version is needed for."""

    what: str
    """In words: `alias production points at it`."""
    way_out: str
    """What to do first."""


def register(name: str, state: ModelState, version: str, new: VersionState) -> ModelState:
    """Add a version.

    :raises Unchanged: if it is there with the same digest
    :raises GateError: if it is there with another one, or was retired
    """
    there = state.versions.get(version)
    if there is not None and there.retired is not None:
        message = f"{name} {version} was retired; a version is never used again: raise metadata.version"
        raise GateError(message)
    if there is not None and there.digest != new.digest:
        message = (
            f"{name} {version} is already registered with another digest ({there.digest[:12]}… and not "
            f"{new.digest[:12]}…); versions are immutable: raise metadata.version"
        )
        raise GateError(message)
    if there is not None:
        raise Unchanged
    if new.parent is None:
        new = new.model_copy(update={"parent": _before(state, version)})
    return _next(state, versions={**state.versions, version: new})


def _before(state: ModelState, version: str) -> str | None:
    """Return the highest version below ``version``; a release comes after a release."""
    candidates = [
        other
        for other in state.sorted()
        if precedence(other) < precedence(version)
        and state.versions[other].retired is None
        and (is_prerelease(version) or not is_prerelease(other))
    ]
    return candidates[-1] if candidates else None


def set_aliases(state: ModelState, version: str, aliases: Iterable[str]) -> ModelState:
    """Let aliases point at a version.

    :raises SpecError: if one cannot be an alias
    :raises Unchanged: if they do
    """
    wanted = {check_alias(alias): version for alias in aliases}
    if all(state.aliases.get(alias) == version for alias in wanted):
        raise Unchanged
    return _next(state, aliases={**state.aliases, **wanted})


def drop_aliases(name: str, state: ModelState, aliases: Iterable[str]) -> ModelState:
    """Remove aliases.

    :raises SpecError: if one is not there
    """
    gone = set(aliases)
    for alias in sorted(gone - set(state.aliases)):
        raise unknown_reference(name, state, alias)
    return _next(state, aliases={alias: v for alias, v in state.aliases.items() if alias not in gone})


def set_stage(state: ModelState, version: str, stage: str) -> ModelState:
    """Say where a version stands in its life.

    :raises SpecError: if there is no such stage
    :raises Unchanged: if it stands there
    """
    if stage not in STAGES:
        message = (
            f"there is no stage {shorten(stage)}{near(stage, STAGES) or '; there are ' + listed(STAGES)}"
        )
        raise SpecError(message)
    value = None if stage == "none" else stage
    if state.versions[version].stage == value:
        raise Unchanged
    return _with_version(state, version, stage=value)


def set_tags(state: ModelState, version: str | None, tags: Mapping[str, str]) -> ModelState:
    """Set tags of a version, or of the model where that is None.

    :raises SpecError: if a key cannot be one
    :raises Unchanged: if they are so
    """
    check_tags(tags)
    return _retagged(state, version, {**_tags(state, version), **tags})


def drop_tags(name: str, state: ModelState, version: str | None, keys: Iterable[str]) -> ModelState:
    """Remove tags of a version, or of the model where that is None.

    :raises SpecError: if one is not there
    """
    tags, gone = _tags(state, version), set(keys)
    for key in sorted(gone - set(tags)):
        where = name if version is None else f"{name}@{version}"
        hint = near(key, tags) or f"; it has {listed(sorted(tags), 'no tags')}"
        raise SpecError(f"{where} has no tag {shorten(key)}{hint}")
    return _retagged(state, version, {key: value for key, value in tags.items() if key not in gone})


def configure_ab(name: str, state: ModelState, ab: AbTest | None) -> ModelState:
    """Set the A/B test, or remove it.

    :raises SpecError: if it makes no sense
    :raises Unchanged: if it is so
    """
    if ab is None:
        if state.ab is None:
            raise Unchanged
        return _next(state, ab=None)
    arms = tuple(arm.model_copy(update={"version": resolve(name, state, arm.version)}) for arm in ab.arms)
    _check_arms(name, arms)
    if ab.key is not None and not _KEY.fullmatch(ab.key):
        message = (
            f"{shorten(ab.key)} recognises no user; write header:NAME or cookie:NAME, such as header:x-user"
        )
        raise SpecError(message)
    new = ab.model_copy(update={"arms": arms})
    if state.ab is not None and new == state.ab.model_copy(update={"started": new.started}):
        raise Unchanged
    return _next(state, ab=new)


def _check_arms(name: str, arms: tuple[Arm, ...]) -> None:
    versions = [arm.version for arm in arms]
    if len(arms) < _MIN_ARMS:
        message = f"an A/B test of {name} needs two arms or more; write --arm VERSION=WEIGHT for each"
        raise SpecError(message)
    for version in versions:
        if versions.count(version) > 1:
            message = f"{name}@{version} is an arm twice; give each arm a version of its own"
            raise SpecError(message)
    total = math.fsum(arm.weight for arm in arms)
    if not math.isclose(total, _WHOLE, abs_tol=1e-6):
        message = f"the weights of the arms are {total:g} together; they are percentages, so let them be 100"
        raise SpecError(message)


def retire(
    name: str,
    state: ModelState,
    version: str,
    *,
    at: float,
    reason: str | None,
    force: bool,
    elsewhere: Iterable[Use] = (),
) -> ModelState:
    """Retire a version, which nothing resolves to any more and whose files may go after some time.

    :param elsewhere: what needs it outside of the registry
    :param force: drop the aliases and the A/B test that need it; what is elsewhere is left as it is
    :raises GateError: if something needs it and ``force`` is not given
    :raises Unchanged: if it is retired
    """
    if state.versions[version].retired is not None:
        raise Unchanged
    uses = [*_uses(name, state, version), *elsewhere]
    if uses and not force:
        lines = "".join(f"\n  {use.what}: {use.way_out}" for use in uses)
        message = f"{name}@{version} is needed and was not retired (or give --force --reason TEXT):{lines}"
        raise GateError(message)
    after = _with_version(state, version, retired=at, reason=reason)
    arms = after.ab.arms if after.ab is not None else ()
    return after.model_copy(
        update={
            "aliases": {alias: target for alias, target in after.aliases.items() if target != version},
            "ab": None if any(arm.version == version for arm in arms) else after.ab,
        }
    )


def _uses(name: str, state: ModelState, version: str) -> list[Use]:
    uses = [
        Use(
            f"alias {alias} points at it",
            f"`shipctl registry alias {name}@VERSION {alias}`, or `shipctl registry alias {name} {alias} --delete`",
        )
        for alias in state.aliases_of(version)
    ]
    if state.ab is not None and any(arm.version == version for arm in state.ab.arms):
        uses.append(
            Use(f"it is an arm of the A/B test {state.ab.name}", f"`shipctl registry ab {name} --clear`")
        )
    return uses


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return ``tags``.

    :raises SpecError: if a key cannot be one
    """
    for key in tags:
        if not _TAG.fullmatch(key):
            message = f"{shorten(key)} is no key of a tag; write letters, digits and . _ - / in it"
            raise SpecError(message)
    return dict(tags)


def check_alias(alias: str) -> str:
    """Return ``alias``.

    :raises SpecError: if it cannot be one, because it looks like a version or means something already
    """
    if looks_like_version(alias):
        message = f"{shorten(alias)} looks like a version, so it cannot be an alias; write a word, such as production"
        raise SpecError(message)
    if alias == "latest":
        message = "'latest' cannot be an alias: the name of a model alone means its highest version"
        raise SpecError(message)
    if not _ALIAS.fullmatch(alias):
        message = (
            f"{shorten(alias)} is no alias; write lower-case letters, digits, '-' and '_', a letter first"
        )
        raise SpecError(message)
    return alias


def _tags(state: ModelState, version: str | None) -> dict[str, str]:
    return state.tags if version is None else state.versions[version].tags


def _retagged(state: ModelState, version: str | None, tags: dict[str, str]) -> ModelState:
    if tags == _tags(state, version):
        raise Unchanged
    return _next(state, tags=tags) if version is None else _with_version(state, version, tags=tags)


def _with_version(state: ModelState, version: str, **fields: Any) -> ModelState:
    changed = state.versions[version].model_copy(update=fields)
    return _next(state, versions={**state.versions, version: changed})


def _next(state: ModelState, **fields: Any) -> ModelState:
    return state.model_copy(update={"number": state.number + 1, **fields})
