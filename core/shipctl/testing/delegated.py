"""The conformance kit for targets with an engine: what following relies on, as tests that an author inherits."""
# ruff: noqa: D102 - these are tests, though they are shipped: their names say what they check

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import ClassVar

import pytest

from shipctl.release.delegated import DelegatedTarget, Followed, Standing
from shipctl.release.strategy import Strategy, canary_steps
from shipctl.release.target import TARGET_GROUP, Candidate
from shipctl.stages.base import API_VERSION
from shipctl.testing.checks import frameworks_imported_by

_NOWHERE = "f" * 64


class DelegatedConformance:
    """Subclass it with the fixtures ``target`` and ``candidates``, and play the engine; pytest checks the target.

    ::

        class TestMyEngine(DelegatedConformance):
            name, plugin = "my-engine", MyEngine

            @pytest.fixture
            def target(self, tmp_path): ...  # an empty one, for one test

            @pytest.fixture
            def candidates(self, tmp_path): ...  # two, of one model

            def finish(self, target): ...  # the engine takes what it was told of to its end

            def give_up(self, target): ...  # the engine finds it bad, and goes back by its own rules

            def go_back(self, target): ...  # the engine does what an abort has told it

    What a test has left is stopped by `down`.
    """

    name: ClassVar[str]
    """The name of its entry point."""
    plugin: ClassVar[type[DelegatedTarget]]
    strategy: ClassVar[Strategy] = Strategy(name="canary", steps=canary_steps("1m"))
    """How candidates are handed over."""
    impossible: ClassVar[Strategy | None] = Strategy(name="shadow", mirror=10.0)
    """A strategy that the engine cannot follow; None if it can follow all."""

    def finish(self, target: DelegatedTarget) -> None:
        """Have the engine take what it was told of last to its end: it answers everything, and is stable."""
        raise AssertionError("say in `finish` how the engine comes to its end")

    def give_up(self, target: DelegatedTarget) -> None:
        """Have the engine find bad what it was told of last."""
        raise AssertionError("say in `give_up` how the engine gives up")

    def go_back(self, target: DelegatedTarget) -> None:
        """Have the engine do what an abort has told it, as far as it can now."""
        raise AssertionError("say in `go_back` how the engine goes back")

    def again(self, target: DelegatedTarget) -> DelegatedTarget:
        """Return another object for the same target, as another process would have."""
        return type(target)(target.options, target.ctx)

    @pytest.fixture(autouse=True)
    def _emptied(self, target: DelegatedTarget) -> Iterator[None]:
        yield
        target.down()

    # -- what it says about itself -------------------------------------------------------------------------

    def test_entry_point_names_this_class(self) -> None:
        found = [point.value for point in entry_points(group=TARGET_GROUP) if point.name == self.name]
        assert found == [f"{self.plugin.__module__}:{self.plugin.__qualname__}"]

    def test_it_is_declared_completely(self) -> None:
        assert self.plugin.api_version == API_VERSION
        model = self.plugin.options_model
        bare = [name for name, field in model.model_fields.items() if not field.description]
        assert bare == [], f"options without a description: {', '.join(bare)}"
        assert frameworks_imported_by(self.plugin.__module__) == []

    def test_it_says_what_the_engine_does_not_keep(self, target: DelegatedTarget) -> None:
        lines = list(self.plugin.not_enforced(self.strategy, target.options))
        assert lines, "no engine keeps everything: who drives has no lease"
        assert len(set(lines)) == len(lines)
        assert all(line and "\n" not in line and line[0].islower() for line in lines), lines

    def test_it_says_what_the_engine_cannot_do(self, target: DelegatedTarget) -> None:
        assert self.plugin.supports(self.strategy, target.options) is None
        if self.impossible is not None:
            why = self.plugin.supports(self.impossible, target.options)
            assert why
            assert "\n" not in why

    def test_an_empty_target_has_nothing(self, target: DelegatedTarget) -> None:
        seen = target.follow(_NOWHERE)
        assert (seen.standing, seen.stable, seen.current, seen.weight) == (Standing.ABSENT, None, None, 0)
        assert list(target.status()) == []
        assert list(target.down()) == []

    def test_manifests_ask_nobody_and_are_the_same_each_time(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        first = target.manifests(candidates[0])
        assert first == self.again(target).manifests(candidates[0])
        assert target.follow(candidates[0].revision).standing is Standing.ABSENT

    # -- the way forward -----------------------------------------------------------------------------------

    def test_what_is_handed_over_is_current_and_not_healthy_yet(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        assert target.submit(new, self.strategy).message
        for each in (target, self.again(target)):
            seen = each.follow(new.revision)
            assert (seen.stable, seen.current) == (old.revision, new.revision)
            assert seen.standing in {Standing.PROGRESSING, Standing.PAUSED}, (
                "what the engine said of the one before is taken for this one"
            )
            other = each.follow(old.revision)
            assert (other.stable, other.current) == (old.revision, new.revision)

    def test_handing_over_again_changes_nothing(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        target.submit(new, self.strategy)
        before = target.follow(new.revision)
        self.again(target).submit(new, self.strategy)
        assert target.follow(new.revision) == before
        self.finish(target)
        self.again(target).submit(new, self.strategy)
        assert self._whole(target, new), "it began anew what was done"

    def test_one_after_the_other_goes_through(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        assert [item.revision for item in target.status()] == [old.revision]
        self._released(target, new)
        assert [(item.revision, item.healthy) for item in target.status()] == [(new.revision, True)]
        assert target.follow(old.revision).weight == 0

    def test_going_on_where_nothing_waits_does_nothing(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, _ = candidates
        self._released(target, old)
        target.resume(old.revision)
        assert self._whole(target, old)

    # -- the way back --------------------------------------------------------------------------------------

    def test_what_the_engine_gives_up_is_degraded(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        target.submit(new, self.strategy)
        self.give_up(target)
        seen = target.follow(new.revision)
        assert seen.standing is Standing.DEGRADED
        assert seen.message, "the engine's words are lost"
        self._aborted(target, new, old.revision)

    def test_an_abort_goes_back_and_stays_there(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        target.submit(new, self.strategy)
        self._aborted(target, new, old.revision)
        before = target.follow(old.revision)
        self.again(target).abort(new.revision, old.revision)
        assert target.follow(old.revision) == before
        assert [item.revision for item in target.status()] == [old.revision]

    def test_what_was_aborted_can_be_handed_over_again(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        target.submit(new, self.strategy)
        self._aborted(target, new, old.revision)
        target.submit(new, self.strategy)
        assert target.follow(new.revision).standing in {Standing.PROGRESSING, Standing.PAUSED}
        self.finish(target)
        assert self._whole(target, new)

    def test_what_was_promoted_can_be_taken_back(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        self._released(target, old)
        self._released(target, new)
        self._aborted(target, new, old.revision)

    def test_a_first_one_goes_back_to_nothing(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        first, second = candidates
        target.submit(first, self.strategy)
        self._aborted(target, first, None)
        assert list(target.status()) == []
        self._released(target, second)

    def test_an_abort_of_nothing_does_nothing(
        self, target: DelegatedTarget, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        target.abort(new.revision, None)
        self._released(target, old)
        target.abort(new.revision, old.revision)
        self.go_back(target)
        assert self._whole(target, old)

    # -- helpers -------------------------------------------------------------------------------------------

    def _released(self, target: DelegatedTarget, candidate: Candidate) -> None:
        target.submit(candidate, self.strategy)
        self.finish(target)
        assert self._whole(target, candidate), target.follow(candidate.revision)

    def _aborted(self, target: DelegatedTarget, candidate: Candidate, stable: str | None) -> None:
        """Say it as often as a release would, and let the engine act in between."""
        for _ in range(5):
            self.again(target).abort(candidate.revision, stable)
            self.go_back(target)
            if self._is_back(target, candidate, stable):
                return
        raise AssertionError(f"it is not back: {target.follow(candidate.revision)}")

    def _is_back(self, target: DelegatedTarget, candidate: Candidate, stable: str | None) -> bool:
        seen = target.follow(candidate.revision)
        if stable is None:
            return seen.standing is Standing.ABSENT and not seen.weight
        home = target.follow(stable)
        return _healthy(home, stable) and not seen.weight

    def _whole(self, target: DelegatedTarget, candidate: Candidate) -> bool:
        seen = self.again(target).follow(candidate.revision)
        return _healthy(seen, candidate.revision) and seen.weight == 100  # noqa: PLR2004


def _healthy(seen: Followed, revision: str) -> bool:
    return seen.standing is Standing.HEALTHY and seen.stable == revision and seen.current == revision
