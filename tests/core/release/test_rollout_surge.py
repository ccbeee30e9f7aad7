"""A rolling release where there is no room for two whole revisions: replicas are replaced a few at a time."""

from __future__ import annotations

import pytest

from shipctl.release.surge import Surge
from shipctl.release.target import Action, Observation, Prepare, Replicas, ScaleDown, Shift
from shipctl.release.traffic import Traffic
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from support_rollout import NEW, OLD, Driven, strategy

ALL = 4
ONE_MORE = Surge(maxSurge=1, maxUnavailable=0)


class Replacing(Driven):
    """A target with room for five replicas; one takes a look to be ready, and traffic goes by ready replicas."""

    def __init__(self, **changes: object) -> None:
        super().__init__(strategy("rolling", surge=ONE_MORE, **changes))
        self.wanted = {OLD: ALL}
        self.ready = {OLD: ALL}
        self.stuck = False
        """Whether no replica of NEW becomes ready any more."""
        self.seen: list[tuple[int, int]] = []

    def observe(self) -> Observation:
        for name in self.wanted:
            if name == NEW and self.stuck:
                continue
            self.ready[name] = self.wanted[name]
        self.seen.append((sum(self.wanted.values()), sum(self.ready.values())))
        self.replicas = {
            name: Replicas(version=name[0], wanted=wanted, ready=self.ready[name])
            for name, wanted in self.wanted.items()
        }
        total = sum(self.ready.values()) or 1
        share = round(100 * self.ready.get(NEW, 0) / total)
        serving = self.traffic.weight(NEW) > 0
        if not serving or share == 0:
            self.traffic = Traffic.only(OLD)
        elif share == 100:
            self.traffic = Traffic.only(NEW).model_copy(update={"fallback": self.traffic.fallback})
        else:
            self.traffic = Traffic(weights={OLD: 100 - share, NEW: share}, fallback=OLD)
        return super().observe()

    def apply(self, action: Action) -> None:
        match action:
            case Prepare(surge=surge):
                assert surge == ONE_MORE
                self.wanted.setdefault(NEW, 1)
                self.ready.setdefault(NEW, 0)
                self.acts.append("prepare")
            case Shift(traffic=traffic, surge=surge):
                assert surge == ONE_MORE
                goal, other = (NEW, OLD) if traffic.weight(NEW) else (OLD, NEW)
                self.acts.append(f"shift to {goal[0]}")
                if self.ready[goal] == self.wanted[goal] and sum(self.wanted.values()) > ALL:
                    self.wanted[other] -= 1
                    self.ready[other] = min(self.ready[other], self.wanted[other])
                elif self.wanted[goal] < ALL:
                    self.wanted[goal] += 1
                share = round(100 * self.ready[NEW] / sum(self.ready.values()))
                weights = {OLD: 100 - share, NEW: share}
                kept = {name: weight for name, weight in weights.items() if weight}
                only = self.wanted[other] == 0 and self.ready[goal] == ALL
                self.traffic = traffic if only else Traffic(weights=kept, fallback=OLD)
                self.shifted = self.now
            case ScaleDown(revision=revision):
                assert not self.traffic.weight(revision)
                del self.wanted[revision], self.ready[revision]
                self.acts.append(f"scale-down {revision[0]}")
            case _:
                super().apply(action)


def run(driven: Replacing, steps: int = 400) -> None:
    for _ in range(steps):
        if driven.phase.is_final:
            return
        driven.step()
    raise AssertionError(f"no end after {steps} steps: {driven.messages[-1]}")


def test_replicas_are_replaced_within_the_bounds_and_the_old_ones_end_last() -> None:
    driven = Replacing(analysis=None)
    run(driven)
    assert driven.phase is Phase.DONE
    assert driven.wanted == {NEW: ALL}
    assert max(total for total, _ in driven.seen) <= ALL + 1
    assert min(ready for _, ready in driven.seen) >= ALL
    assert driven.acts[0] == "prepare"
    assert driven.acts[-1] == "scale-down a"
    assert driven.acts.count("shift to b") > ALL


def test_one_that_is_bad_is_replaced_back_and_never_stopped_before() -> None:
    driven = Replacing()
    driven.outcome = Outcome.FAIL
    run(driven)
    assert driven.phase is Phase.ROLLED_BACK
    assert driven.wanted == {OLD: ALL}
    assert max(total for total, _ in driven.seen) <= ALL + 1
    assert min(ready for _, ready in driven.seen) >= ALL
    assert driven.acts[-1] == "scale-down b"


def test_what_was_replaced_wholly_can_still_be_gone_back_to_while_it_is_watched() -> None:
    driven = Replacing(analysis=None)
    for _ in range(400):
        driven.step()
        if driven.phase is Phase.WATCHING:
            break
    assert driven.wanted[OLD] == 0
    driven.abort = "by ada"
    run(driven)
    assert driven.phase is Phase.ROLLED_BACK
    assert driven.wanted == {OLD: ALL}
    assert driven.stable == OLD


@pytest.mark.parametrize("looks", [4, 6, 8])
def test_one_that_gets_stuck_on_the_way_is_given_up_after_the_deadline(looks: int) -> None:
    driven = Replacing(analysis=None)
    for _ in range(looks):
        driven.step()
    driven.stuck = True
    run(driven, 2000)
    assert driven.phase in {Phase.ROLLED_BACK, Phase.REJECTED}
    assert driven.wanted.get(OLD) == ALL
