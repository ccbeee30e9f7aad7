"""The conformance kit for metric providers: what the analysis relies on, as tests that a plugin's author inherits."""
# ruff: noqa: D102 - these are tests, though they are shipped: their names say what they check

from __future__ import annotations

import json
import math
import time
from importlib.metadata import entry_points
from typing import ClassVar

import pytest

from shipctl.errors import StageError
from shipctl.release.metrics import METRIC_GROUP, MetricOptions, MetricProvider, Samples
from shipctl.stages.base import API_VERSION
from shipctl.testing.checks import frameworks_imported_by


class MetricProviderConformance:
    """Subclass it with a fixture ``provider`` over a source that you fill, and pytest checks what shipctl relies on.

    ::

        class TestMyMetrics(MetricProviderConformance):
            name, plugin = "my-metrics", MyMetrics
            revision = "b" * 64

            @pytest.fixture
            def provider(self): ...

            def happen(self, provider, requests, errors): ...  # make requests, return (since, until)

            def take_away(self, provider): ...  # stop the source
    """

    name: ClassVar[str]
    """The name of its entry point."""
    plugin: ClassVar[type[MetricProvider]]
    revision: ClassVar[str]
    """The revision that :meth:`happen` makes requests for."""
    other: ClassVar[str | None] = None
    """Another revision that the context knows, and that gets none; None where there is no such thing."""
    counts: ClassVar[bool] = True
    """Whether it tells how many requests there were, exactly."""
    covers: ClassVar[bool] = True
    """Whether it knows itself how much of a window it has seen; one that asks somebody else may only pass that on."""
    secret: ClassVar[str | None] = None
    """A token that the provider was given and that must not be seen anywhere."""

    def happen(self, provider: MetricProvider, requests: int, errors: int) -> tuple[float, float]:
        """Make so many requests for :attr:`revision`, of which so many fail, and return begin and end of their window.

        Returns when they can be asked for.
        """
        raise AssertionError("say in `happen` how requests are made")

    def take_away(self, provider: MetricProvider) -> None:
        """Make the source unreachable."""
        raise AssertionError("say in `take_away` how the source is stopped")

    # -- what it says about itself -------------------------------------------------------------------------

    def test_entry_point_names_this_class(self) -> None:
        found = [point.value for point in entry_points(group=METRIC_GROUP) if point.name == self.name]
        assert found == [f"{self.plugin.__module__}:{self.plugin.__qualname__}"], (
            f"{found} is declared for {self.name}"
        )

    def test_it_is_for_this_api_version(self) -> None:
        assert self.plugin.api_version == API_VERSION

    def test_declaration_is_complete(self) -> None:
        model = self.plugin.options_model
        assert issubclass(model, MetricOptions)
        assert "__doc__" in vars(self.plugin)
        assert self.plugin.__doc__, "it has no docstring"
        bare = [name for name, field in model.model_fields.items() if not field.description]
        assert bare == [], f"options without a description: {', '.join(bare)}"
        assert model.model_config.get("extra") == "forbid", "its options accept unknown keys"
        json.dumps(model.model_json_schema())

    def test_module_imports_no_framework(self) -> None:
        """A provider lives in shipctl's own process: frameworks belong inside functions, or elsewhere."""
        assert frameworks_imported_by(self.plugin.__module__) == []

    # -- what it answers -----------------------------------------------------------------------------------

    def test_an_answer_is_about_what_was_asked(self, provider: MetricProvider) -> None:
        since, until = self.happen(provider, 20, 3)
        found = provider.query(self.revision, since, until)
        assert (found.revision, found.since, found.until) == (self.revision, since, until)
        assert found.query, "it does not say what it asked"
        assert found.raw, "it does not say what was answered"
        self._consistent(found)
        if self.counts:
            assert (found.requests, found.errors) == (20, 3)
        if self.covers:
            assert found.coverage > 0, "it vouches for nothing, though the window is over"

    def test_windows_do_not_mix(self, provider: MetricProvider) -> None:
        first = self.happen(provider, 10, 10)
        found = [provider.query(self.revision, *first)]
        second = self.happen(provider, 30, 0)
        found.append(provider.query(self.revision, *second))
        for each in found:
            self._consistent(each)
        if self.counts:
            assert [(each.requests, each.errors) for each in found] == [(10, 10), (30, 0)]

    def test_no_requests_are_no_numbers(self, provider: MetricProvider) -> None:
        self.happen(provider, 10, 0)
        window = self.happen(provider, 0, 0)
        found = provider.query(self.revision, *window)
        assert (found.requests, found.errors, found.durations or (), found.value) == (0, 0, (), None)

    def test_another_revision_is_not_counted(self, provider: MetricProvider) -> None:
        if self.other is None:
            pytest.skip("there is no other revision")
        window = self.happen(provider, 10, 0)
        found = provider.query(self.other, *window)
        assert (found.requests, found.errors, found.durations or (), found.value) == (0, 0, (), None)

    def test_a_window_that_is_not_over_is_not_covered(self, provider: MetricProvider) -> None:
        if not self.covers:
            pytest.skip("it passes on what somebody else says")
        self.happen(provider, 10, 0)
        later = time.time() + 3600
        found = provider.query(self.revision, later, later + 10)
        assert (found.coverage, found.requests, found.value) == (0, 0, None)

    def test_an_empty_window_is_no_fault(self, provider: MetricProvider) -> None:
        since, _ = self.happen(provider, 10, 0)
        found = provider.query(self.revision, since, since)
        assert found.requests == 0
        self._consistent(found)

    def test_a_source_that_went_away_is_an_error_each_time(self, provider: MetricProvider) -> None:
        """Never the numbers of before."""
        window = self.happen(provider, 10, 0)
        provider.query(self.revision, *window)
        self.take_away(provider)
        for _ in range(3):
            with pytest.raises(StageError) as caught:
                provider.query(self.revision, *window)
            message = str(caught.value)
            assert message[:1].islower() or message.startswith(("http", "`")), (
                f"{message!r} begins with a capital"
            )
            self._unseen(message)

    def test_nothing_secret_is_recorded(self, provider: MetricProvider) -> None:
        if self.secret is None:
            pytest.skip("it has no secret")
        window = self.happen(provider, 10, 0)
        found = provider.query(self.revision, *window)
        self._unseen(
            f"{found.query} {found.raw} {self.plugin.options_model.model_dump_json(provider.options)}"
        )

    # -- helpers -------------------------------------------------------------------------------------------

    def _consistent(self, found: Samples) -> None:
        assert found.errors <= found.requests
        assert 0 <= found.coverage <= 1
        if found.durations is not None:
            assert len(found.durations) <= found.requests
            assert all(math.isfinite(each) and each >= 0 for each in found.durations)
        if found.times is not None:
            assert found.durations is not None
            assert len(found.times) == len(found.durations)
            assert all(found.since <= each <= found.until for each in found.times)
            assert list(found.times) == sorted(found.times), "they are not in the order in which they came"
        assert found.value is None or math.isfinite(found.value)

    def _unseen(self, text: str) -> None:
        assert self.secret is None or self.secret not in text, "a secret can be seen"
