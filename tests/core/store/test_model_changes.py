"""Whatever is done to a model in whatever order, its state stays sound."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from shipctl.errors import GateError, SpecError
from shipctl.store import model_changes as changes
from shipctl.store.model_changes import Unchanged
from shipctl.store.model_state import AbTest, Arm, ModelState, VersionState, resolve
from shipctl.store.versions import is_prerelease, precedence

Change: TypeAlias = Callable[[ModelState], ModelState]

VERSIONS = st.sampled_from(["0.9.0", "1.0.0-rc.1", "1.0.0", "1.0.0+b", "1.1.0", "2.0.0-a", "10.0.0"])
ALIASES = st.sampled_from(["production", "staging", "blue"])
REFS = st.one_of(VERSIONS, ALIASES)
TAGS = st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=3), max_size=2)


def register(version: str, digest: str, parent: str | None) -> Change:
    def change(state: ModelState) -> ModelState:
        new = VersionState(digest=digest, entry=state.number + 1, details="d", registered=1.0, parent=parent)
        return changes.register("m", state, version, new)

    return change


def arms(first: str, second: str, weight: int) -> AbTest:
    parts = (Arm(version=first, weight=weight), Arm(version=second, weight=100 - weight))
    return AbTest(name="t", arms=parts, started=1.0)


def on(ref: str, change: Callable[[ModelState, str], ModelState], *, retired: bool = False) -> Change:
    """Return a change of the version that ``ref`` means when it is made."""
    return lambda state: change(state, resolve("m", state, ref, retired=retired))


def alias(ref: str, aliases: list[str]) -> Change:
    return on(ref, lambda state, version: changes.set_aliases(state, version, aliases))


def unalias(aliases: list[str]) -> Change:
    return lambda state: changes.drop_aliases("m", state, aliases)


def stage(ref: str, value: str) -> Change:
    return on(ref, lambda state, version: changes.set_stage(state, version, value))


def tag(ref: str | None, tags: dict[str, str]) -> Change:
    if ref is None:
        return lambda state: changes.set_tags(state, None, tags)
    return on(ref, lambda state, version: changes.set_tags(state, version, tags), retired=True)


def untag(keys: list[str]) -> Change:
    return lambda state: changes.drop_tags("m", state, None, keys)


def ab(first: str, second: str, weight: int | None) -> Change:
    return lambda state: changes.configure_ab("m", state, arms(first, second, weight) if weight else None)


def retire(ref: str, force: bool) -> Change:
    return on(
        ref,
        lambda state, version: changes.retire("m", state, version, at=2.0, reason="r", force=force),
        retired=True,
    )


NAMES = st.lists(ALIASES, min_size=1, max_size=2)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(register, VERSIONS, st.sampled_from(["x", "y"]), st.none() | VERSIONS),
    st.builds(alias, REFS, NAMES),
    st.builds(unalias, NAMES),
    st.builds(stage, REFS, st.sampled_from(changes.STAGES)),
    st.builds(tag, st.none() | REFS, TAGS),
    st.builds(untag, st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2)),
    st.builds(ab, REFS, REFS, st.none() | st.integers(1, 99)),
    st.builds(retire, REFS, st.booleans()),
)


def check(before: ModelState, after: ModelState) -> None:
    """Assert what holds of every state, and of every step from one to the next."""
    alive = {version for version, known in after.versions.items() if known.retired is None}
    assert set(after.aliases.values()) <= alive
    assert after.ab is None or {arm.version for arm in after.ab.arms} <= alive
    assert after.ab is None or sum(arm.weight for arm in after.ab.arms) == 100
    assert after.number == before.number + 1
    assert set(before.versions) <= set(after.versions)
    for version, was in before.versions.items():
        now = after.versions[version]
        assert (now.digest, now.entry, now.registered) == (was.digest, was.entry, was.registered)
        assert was.retired is None or now.retired == was.retired
    assert ModelState.model_validate_json(after.model_dump_json()) == after
    assert after != before.model_copy(update={"number": after.number})
    latest = after.latest()
    releases = [version for version in alive if not is_prerelease(version)]
    assert (latest is None) == (not releases)
    assert latest is None or precedence(latest) == max(map(precedence, releases))
    for ref in (*after.versions, *after.aliases):
        with suppress(SpecError):
            assert resolve("m", after, ref) in alive


@given(steps=st.lists(CHANGES, max_size=30))
def test_every_history_leaves_a_sound_state(steps: list[Change]) -> None:
    state = ModelState()
    for step in steps:
        try:
            after = step(state)
        except (SpecError, GateError, Unchanged):
            continue
        check(state, after)
        state = after


@given(steps=st.lists(CHANGES, max_size=15), step=CHANGES)
def test_a_change_that_was_made_changes_nothing_again(steps: list[Change], step: Change) -> None:
    state = ModelState()
    for change in (*steps, step):
        before = state
        with suppress(SpecError, GateError, Unchanged):
            state = change(state)
            with suppress(SpecError, GateError, Unchanged):
                again = change(state)
                # only a name that has moved meanwhile can mean something else the second time
                assert (before.aliases, before.ab) != (again.aliases, again.ab)
