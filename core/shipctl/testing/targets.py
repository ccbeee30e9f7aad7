"""The conformance kit for targets: what releases rely on, as tests that the author of a target inherits."""
# ruff: noqa: D102 - these are tests, though they are shipped: their names say what they check

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import ClassVar

import pytest

from shipctl.errors import LockedError, StageError
from shipctl.release.target import (
    TARGET_GROUP,
    Action,
    Candidate,
    Capability,
    Commit,
    Observation,
    Preflight,
    Prepare,
    ScaleDown,
    Shift,
    StaleEpochError,
    Target,
)
from shipctl.release.traffic import WHOLE, Traffic
from shipctl.stages.verdicts import Outcome
from shipctl.testing.routers import ASKED, PAUSE, asking

_NOWHERE = "f" * 64
_POLL_S = 0.05


class TargetConformance:
    """Subclass it with the fixtures ``target`` and ``candidates``, and pytest checks what releases rely on.

    ::

        class TestMyTarget(TargetConformance):
            name, plugin = "my-target", MyTarget

            @pytest.fixture
            def target(self, tmp_path): ...  # an empty one, for one test

            @pytest.fixture
            def candidates(self, tmp_path): ...  # two that work, of one model

            def ask(self, target): ...  # one request through the door: the revision that answered

    What a test has left is stopped by `down`, which is allowed to who holds the lease.
    """

    name: ClassVar[str]
    """The name of its entry point."""
    plugin: ClassVar[type[Target]]
    patience: ClassVar[float] = 60.0
    """Seconds within which a candidate that works is ready."""
    pause: ClassVar[float] = PAUSE
    """Seconds between two requests of a client that never stops; more where asking costs a lot."""

    def ask(self, target: Target) -> str | None:
        """Send one request through the door and return the revision that answered; None where the door is closed.

        Any exception is a failed request.
        """
        raise AssertionError("say in `ask` how a request is sent through the door")

    def ask_many(self, target: Target, times: int) -> list[str | None]:
        """Send so many requests, between which nothing changes, and return what :meth:`ask` would for each.

        One by one, unless you override it: where `ask` looks up what a request would come to, one look is enough.
        """
        return [self.ask(target) for _ in range(times)]

    def again(self, target: Target) -> Target:
        """Return another object for the same target, as another process would have."""
        return type(target)(target.options, target.ctx)

    def clean_up(self, target: Target) -> None:
        """Stop everything at the end of a test: by `down`, unless you override it with something quicker."""
        target.down()

    @pytest.fixture(autouse=True)
    def _emptied(self, target: Target) -> Iterator[None]:
        yield
        self.clean_up(target)

    # -- what it says about itself -------------------------------------------------------------------------

    def test_entry_point_names_this_class(self) -> None:
        found = [point.value for point in entry_points(group=TARGET_GROUP) if point.name == self.name]
        assert found == [f"{self.plugin.__module__}:{self.plugin.__qualname__}"]

    def test_an_empty_target_has_nothing(self, target: Target) -> None:
        seen = target.observe()
        assert (seen.stable, seen.previous, seen.replicas, seen.traffic.weights) == (None, None, {}, {})
        assert list(target.status()) == []
        assert list(target.down()) == []

    # -- who may act ---------------------------------------------------------------------------------------

    def test_a_lease_has_one_holder(self, target: Target) -> None:
        first = target.acquire("one")
        assert target.acquire("one") == first, "a renewal is no new epoch"
        with pytest.raises(LockedError, match="one"):
            self.again(target).acquire("two")
        target.release(first)
        second = self.again(target).acquire("two")
        assert second > first
        target.release(first)  # it is somebody else's by now
        with pytest.raises(LockedError, match="two"):
            target.acquire("one")
        target.release(second)  # `down` may wait for whoever has it

    def test_who_was_overtaken_does_nothing(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        past = self._released(target, old)
        self._prepared(target, new, past)
        target.release(past)
        target.acquire("another")
        before = target.observe(new.revision)
        acts: list[Action] = [
            Prepare(),
            Preflight(),
            Shift(traffic=Traffic.only(new.revision)),
            Commit(expected=old.revision, revision=new.revision),
            ScaleDown(revision=new.revision),
        ]
        for act in acts:
            with pytest.raises(StaleEpochError):
                target.apply(act, new, past)
        assert target.observe(new.revision) == before

    # -- what the acts do ----------------------------------------------------------------------------------

    def test_looking_changes_nothing(self, target: Target, candidates: tuple[Candidate, Candidate]) -> None:
        self._released(target, candidates[0])
        assert target.observe() == target.observe() == self.again(target).observe()

    def test_preparing_again_starts_nothing_again_and_moves_nothing(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        first = candidates[0]
        epoch = target.acquire("test")
        self._prepared(target, first, epoch)
        before = target.observe(first.revision)
        target.apply(Prepare(), first, epoch)
        assert target.observe(first.revision) == before
        assert before.traffic.revisions == frozenset()
        assert before.replicas[first.revision].version == first.version
        assert before.stable is None

    def test_a_preflight_tells_what_it_found_and_moves_nothing(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        epoch = self._released(target, old)
        before = target.observe()
        target.apply(Prepare(), new, epoch)
        applied = target.apply(Preflight(), new, epoch)
        assert applied.verdicts
        assert {verdict.outcome for verdict in applied.verdicts} == {Outcome.PASS}
        after = target.observe()
        assert (after.stable, after.traffic, after.shifted) == (
            before.stable, before.traffic, before.shifted
        )  # fmt: skip

    def test_who_is_not_ready_gets_no_traffic(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        epoch = self._released(target, old)
        before = target.observe()
        weights = {old.revision: 50, new.revision: 50}
        half = Shift(traffic=Traffic(weights=weights, fallback=old.revision))
        with pytest.raises(StageError):
            target.apply(half, new, epoch)
        assert target.observe() == before
        target.apply(Prepare(), new, epoch)
        try:
            target.apply(half, new, epoch)
        except StageError:
            assert target.observe().traffic == before.traffic
        else:
            assert target.observe(new.revision).ready(new.revision), "it got traffic while it was not ready"

    def test_a_first_release_opens_the_door(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        first = candidates[0]
        self._released(target, first, preflight=True)
        seen = target.observe()
        assert seen.stable == first.revision
        assert seen.traffic.weights == {first.revision: WHOLE}
        assert seen.ready(first.revision)
        assert seen.shifted is not None
        assert seen.shifted <= target.ctx.now()
        assert self.ask(target) == first.revision
        assert [serving.revision for serving in target.status()] == [first.revision]
        assert target.endpoints(), "it does not say where the door is"

    def test_a_commit_compares(self, target: Target, candidates: tuple[Candidate, Candidate]) -> None:
        old, new = candidates
        epoch = self._released(target, old)
        self._prepared(target, new, epoch)
        before = target.observe()
        for expected in (None, new.revision):
            with pytest.raises(StageError):
                target.apply(Commit(expected=expected, revision=new.revision), new, epoch)
        assert target.observe().stable == before.stable == old.revision
        target.apply(Shift(traffic=Traffic.only(new.revision)), new, epoch)
        for _ in range(2):
            target.apply(Commit(expected=old.revision, revision=new.revision), new, epoch)
            assert target.observe().stable == new.revision
        assert target.observe().previous == old.revision, "the one before it is still warm"

    def test_weights_are_read_back(self, target: Target, candidates: tuple[Candidate, Candidate]) -> None:
        if Capability.WEIGHTS not in target.capabilities:
            pytest.skip("it has no weights")
        old, new = candidates
        epoch = self._released(target, old)
        self._prepared(target, new, epoch)
        for weight in (1, WHOLE // 2, 95, 0):
            self._shifted(target, old, new, weight, epoch)

    def _shifted(self, target: Target, old: Candidate, new: Candidate, weight: int, epoch: int) -> None:
        weights = {old.revision: WHOLE - weight, new.revision: weight}
        shift = Shift(traffic=Traffic(weights=weights, fallback=old.revision))
        target.apply(shift, new, epoch)
        seen = target.observe(new.revision)
        assert sum(seen.traffic.weights.values()) == WHOLE
        assert set(seen.traffic.weights) <= {old.revision, new.revision}
        assert bool(seen.traffic.weight(new.revision)) == bool(weight)
        target.apply(shift, new, epoch)
        again = target.observe(new.revision)
        assert (again.traffic, again.shifted) == (seen.traffic, seen.shifted), (
            "the same again changed something"
        )
        answers = Counter(self.ask_many(target, ASKED))
        assert set(answers) <= {old.revision, new.revision}
        if weight in {0, WHOLE // 2}:
            expected = ASKED * seen.traffic.weight(new.revision) / WHOLE
            assert abs(answers[new.revision] - expected) <= ASKED / 5
            assert bool(answers[new.revision]) == bool(weight)

    def test_a_promotion_fails_no_request(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        """And stable has all its replicas for as long as it is stable."""
        old, new = candidates
        epoch = self._released(target, old)
        with asking(lambda: self.ask(target), self.pause) as answers:
            self._prepared(target, new, epoch)
            if Capability.WEIGHTS in target.capabilities:
                half = {old.revision: WHOLE // 2, new.revision: WHOLE // 2}
                target.apply(Shift(traffic=Traffic(weights=half, fallback=old.revision)), new, epoch)
                assert target.observe().ready(old.revision)
                time.sleep(0.5)
            target.apply(Shift(traffic=Traffic.only(new.revision)), new, epoch)
            assert target.observe().ready(old.revision), "stable was scaled down before the commit"
            target.apply(Commit(expected=old.revision, revision=new.revision), new, epoch)
            assert target.observe().ready(old.revision), (
                "the one before has to be kept until it is scaled down"
            )
            target.apply(ScaleDown(revision=old.revision), new, epoch)
            time.sleep(0.5)
        assert answers.failures == []
        assert set(answers.by) == {old.revision, new.revision}
        assert self.ask(target) == new.revision

    def test_the_way_back_fails_no_request_and_leaves_stable_whole(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        epoch = self._released(target, old)
        with asking(lambda: self.ask(target), self.pause) as answers:
            self._prepared(target, new, epoch)
            target.apply(Shift(traffic=Traffic.only(new.revision)), new, epoch)
            target.apply(Commit(expected=old.revision, revision=new.revision), new, epoch)
            target.apply(Shift(traffic=Traffic.only(old.revision)), new, epoch)
            target.apply(Commit(expected=new.revision, revision=old.revision), new, epoch)
            for _ in range(2):
                target.apply(ScaleDown(revision=new.revision), new, epoch)
                seen = target.observe(new.revision)
                assert not seen.ready(new.revision)
                assert seen.ready(old.revision)
            time.sleep(0.3)
        assert answers.failures == []
        seen = target.observe()
        assert (seen.stable, seen.traffic.weights) == (old.revision, {old.revision: WHOLE})
        assert self.ask(target) == old.revision

    def test_nobody_is_scaled_down_who_serves(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        old, new = candidates
        epoch = self._released(target, old)
        with pytest.raises(StageError):
            target.apply(ScaleDown(revision=old.revision), None, epoch)
        self._prepared(target, new, epoch)
        target.apply(Shift(traffic=Traffic.only(new.revision)), new, epoch)
        with pytest.raises(StageError):
            target.apply(ScaleDown(revision=new.revision), new, epoch)
        with pytest.raises(StageError):
            target.apply(ScaleDown(revision=old.revision), new, epoch)  # still stable
        seen = target.observe(new.revision)
        assert seen.ready(old.revision)
        assert seen.ready(new.revision)
        assert self.ask(target) == new.revision

    def test_scaling_down_what_is_not_there_is_no_fault(
        self, target: Target, candidates: tuple[Candidate, Candidate]
    ) -> None:
        epoch = self._released(target, candidates[0])
        before = target.observe()
        target.apply(ScaleDown(revision=candidates[1].revision), candidates[1], epoch)
        target.apply(ScaleDown(revision=_NOWHERE), None, epoch)
        assert target.observe() == before

    def test_another_process_goes_on(self, target: Target, candidates: tuple[Candidate, Candidate]) -> None:
        old, new = candidates
        epoch = self._released(target, old)
        self._prepared(target, new, epoch)
        target.release(epoch)
        heir = self.again(target)
        epoch = heir.acquire("heir")
        assert heir.observe(new.revision).ready(new.revision)
        heir.apply(Prepare(), new, epoch)
        heir.apply(Shift(traffic=Traffic.only(new.revision)), new, epoch)
        heir.apply(Commit(expected=old.revision, revision=new.revision), new, epoch)
        assert target.observe().stable == new.revision
        assert self.ask(target) == new.revision
        heir.release(epoch)  # `down` may wait for whoever has it

    def test_down_stops_everything(self, target: Target, candidates: tuple[Candidate, Candidate]) -> None:
        epoch = self._released(target, candidates[0])
        self._prepared(target, candidates[1], epoch)
        assert list(target.down()), "it does not say what it stopped"
        seen = target.observe()
        assert (seen.stable, seen.traffic.weights) == (None, {})
        assert not any(replicas.ready for replicas in seen.replicas.values())
        assert list(target.status()) == []
        assert list(target.down()) == []
        try:
            said = self.ask(target)
        except Exception:  # noqa: BLE001  (nobody listens there any more)
            said = None
        assert said is None

    # -- helpers -------------------------------------------------------------------------------------------

    def _prepared(self, target: Target, candidate: Candidate, epoch: int) -> Observation:
        """Prepare a candidate and wait until it is ready."""
        target.apply(Prepare(), candidate, epoch)
        deadline = time.monotonic() + self.patience
        while not (seen := target.observe(candidate.revision)).ready(candidate.revision):
            assert time.monotonic() < deadline, f"not ready within {self.patience:g} s: {seen.replicas}"
            time.sleep(_POLL_S)
        target.acquire("test")  # what takes long must not cost the lease
        return seen

    def _released(self, target: Target, candidate: Candidate, *, preflight: bool = False) -> int:
        """Release a candidate on an empty target and return the epoch.

        A preflight may cost more than all other acts together: it is left out where a test is about something else.
        """
        epoch = target.acquire("test")
        self._prepared(target, candidate, epoch)
        if preflight:
            target.apply(Preflight(), candidate, epoch)
        target.apply(Shift(traffic=Traffic.only(candidate.revision)), candidate, epoch)
        target.apply(Commit(expected=None, revision=candidate.revision), candidate, epoch)
        return epoch
