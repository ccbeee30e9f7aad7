"""The conformance kit for traffic routers: what targets rely on, as tests that the author of a router inherits."""
# ruff: noqa: D102 - these are tests, though they are shipped: their names say what they check

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from shipctl.errors import StageError
from shipctl.release.router import Backend, Routed, TrafficRouter
from shipctl.release.target import Capability, StaleEpochError
from shipctl.release.traffic import WHOLE, Traffic

PATIENCE = 30.0
"""Seconds within which pods that a ratio needs are ready."""
ASKED = 200
"""Requests by which a distribution is told; half and half is then further than 20 % off once in 10 million times."""
PAUSE = 0.005
"""Seconds between two requests of a client that never stops asking."""


@dataclass
class Answers:
    """What a client got that never stopped asking."""

    by: Counter[str | None] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextmanager
def asking(ask: Callable[[], str | None], pause: float = PAUSE) -> Iterator[Answers]:
    """Keep asking while the block runs, with a pause in seconds; no answer, and an exception, are failures."""
    answers, end = Answers(), threading.Event()

    def run() -> None:
        while not end.is_set():
            try:
                said = ask()
            except Exception as exc:  # noqa: BLE001  (a request fails in any way)
                answers.failures.append(f"{type(exc).__name__}: {exc}")
            else:
                answers.by[said] += 1
                if said is None:
                    answers.failures.append("the door was closed")
            end.wait(pause)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        end.set()
        thread.join()


class RouterConformance:
    """Subclass it with the fixtures ``router`` and ``backends``, and pytest checks what targets rely on.

    ::

        class TestMyRouter(RouterConformance):
            @pytest.fixture
            def router(self, tmp_path): ...  # one that is closed

            @pytest.fixture
            def backends(self): ...  # two revisions, each with replicas that answer

            def epoch(self, router): ...  # take the lease

            def take_over(self, router): ...  # have somebody else take it

            def ask(self, router): ...  # one request: the revision that answered, None where it is closed
    """

    rounds: ClassVar[bool] = False
    """Whether weights become what replicas allow, and not what was said; replicas may have to start for that."""
    divides: ClassVar[bool] = True
    """Whether it has the capability WEIGHTS; if not, one revision gets everything, and there are no shares to test."""
    pause: ClassVar[float] = PAUSE
    """Seconds between two requests of a client that never stops; more where asking costs a lot."""

    def epoch(self, router: TrafficRouter) -> int:
        """Take or renew the lease and return its epoch."""
        raise AssertionError("say in `epoch` how the lease is taken")

    def take_over(self, router: TrafficRouter) -> int:
        """Have somebody else take the lease, and return the new epoch."""
        raise AssertionError("say in `take_over` how somebody else takes the lease")

    def ask(self, router: TrafficRouter) -> str | None:
        """Send one request and return the revision that answered; None where the router is closed."""
        raise AssertionError("say in `ask` how a request is sent")

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        """Send so many requests, between which nothing changes, and return what :meth:`ask` would for each.

        One by one, unless you override it: where `ask` looks up what a request would come to, one look is enough.
        """
        return [self.ask(router) for _ in range(times)]

    def test_it_says_what_it_can_do(self, router: TrafficRouter) -> None:
        assert (Capability.WEIGHTS in router.capabilities) == self.divides

    def test_it_is_closed_at_first(self, router: TrafficRouter) -> None:
        assert router.get().traffic.weights == {}
        assert self.ask(router) is None

    @pytest.mark.parametrize("weight", [0, 1, 50, 99, 100])
    def test_what_was_set_is_in_effect(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]], weight: int
    ) -> None:
        if not self.divides and weight not in {0, WHOLE}:
            pytest.skip("it gives one revision everything, so there are no shares")
        one, two = backends
        before = time.time()
        said = self._set(router, backends, weight)
        assert said == router.get(), "what it says at once is not what is the case"
        assert sum(said.traffic.weights.values()) == WHOLE
        assert said.backends == dict(backends)
        assert said.since is not None
        assert before - 1 <= said.since <= time.time() + 1
        if not self.rounds:
            assert (said.traffic.weight(one), said.traffic.weight(two)) == (WHOLE - weight, weight)
        answers = Counter(self.ask_many(router, ASKED))
        assert set(answers) <= {one, two}
        assert abs(answers[two] - ASKED * said.traffic.weight(two) / WHOLE) <= ASKED / 5
        if weight in {0, WHOLE}:
            assert set(answers) == {two if weight else one}

    def test_the_same_again_changes_nothing(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]]
    ) -> None:
        first = self._set(router, backends, 50)
        time.sleep(0.05)
        assert self._set(router, backends, 50) == first
        stale = router.set(self._half(backends, 50), backends, etag="of long ago", epoch=self.epoch(router))
        assert stale == first, "what is so already needs no comparison"

    def test_a_change_names_the_state_that_it_was_made_from(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]]
    ) -> None:
        old = router.get().etag
        first = self._set(router, backends, 50)
        assert first.etag not in {"", old}
        with pytest.raises(StageError):
            router.set(self._half(backends, 10), backends, etag=old, epoch=self.epoch(router))
        assert router.get() == first

    def test_who_was_overtaken_changes_nothing(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]]
    ) -> None:
        before = self._set(router, backends, 50)
        past = self.epoch(router)
        assert self.take_over(router) > past
        with pytest.raises(StaleEpochError):
            router.set(self._half(backends, 10), backends, etag=before.etag, epoch=past)
        assert router.get() == before

    def test_nobody_gets_requests_who_has_no_replicas(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]]
    ) -> None:
        one = next(iter(backends))
        before = self._set(router, backends, 0)
        with pytest.raises(StageError):
            router.set(
                self._half(backends, 50), {one: backends[one]}, etag=before.etag, epoch=self.epoch(router)
            )
        assert router.get() == before
        assert set(self.ask_many(router, 20)) == {one}

    def test_moving_fails_no_request(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]]
    ) -> None:
        self._set(router, backends, 0)
        with asking(lambda: self.ask(router), self.pause) as answers:
            for weight in (5, 25, 50, 100, 0, 100, 50, 0):
                self._set(router, backends, weight)
                time.sleep(0.1)
        assert answers.failures == []
        assert set(answers.by) == set(backends)

    def test_it_can_be_closed(
        self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]]
    ) -> None:
        before = self._set(router, backends, 50)
        router.set(Traffic(), backends, etag=before.etag, epoch=self.epoch(router))
        assert router.get().traffic.weights == {}
        assert self.ask(router) is None

    # -- helpers -------------------------------------------------------------------------------------------

    def _half(self, backends: Mapping[str, tuple[Backend, ...]], weight: int) -> Traffic:
        one, two = backends
        if not self.divides:
            weight = WHOLE if weight >= WHOLE / 2 else 0
        return Traffic(weights={one: WHOLE - weight, two: weight}, fallback=one)

    def _set(self, router: TrafficRouter, backends: Mapping[str, tuple[Backend, ...]], weight: int) -> Routed:
        until = time.monotonic() + PATIENCE
        while True:
            etag = router.get().etag
            said = router.set(self._half(backends, weight), backends, etag=etag, epoch=self.epoch(router))
            if said.since is not None or not self.rounds or time.monotonic() > until:
                return said
