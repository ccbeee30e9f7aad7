"""Providers and targets by name: found, refused with a near name, and never more than one of them imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import PluginError, SpecError, UnavailableError
from shipctl.release.metrics import METRIC_GROUP, MetricContext
from shipctl.release.providers import check_provider, open_provider, provider_class
from shipctl.release.references import Reference, name_of
from shipctl.release.target import TARGET_GROUP
from shipctl.release.targets import check_target, open_target, target_class, target_name
from shipctl.stages.context import CheckContext, ReleaseContext

MODULE = """
from typing import Annotated, Literal
from pydantic import Field
from shipctl.errors import UnavailableError
from shipctl.release.metrics import MetricOptions, MetricProvider, Samples
from shipctl.release.target import Target, TargetOptions
from shipctl.spec.units import Duration


class Options(MetricOptions):
    every: Duration = Field(default=Duration("5s"), description="How often.")
    depth: int = Field(default=1, ge=0, description="How deep.")
    kind: Literal["mean", "median"] = Field(default="mean", description="Which.")


class Provider(MetricProvider):
    api_version = 1
    options_model = Options

    @classmethod
    def check(cls, options, ctx):
        raise UnavailableError(f"{ctx.pipeline}: {options.depth} is too deep")

    def query(self, revision, since, until):
        return Samples(revision=revision, since=since, until=until, value=float(self.options.depth))


class Later(Provider):
    api_version = 2


def function():
    pass


class HostOptions(TargetOptions):
    host: str = Field(description="Where.")


class Host(Target):
    api_version = 1
    options_model = HostOptions

    @classmethod
    def check(cls, options, ctx):
        raise UnavailableError(f"{options.host} cannot be reached")

    acquire = release = observe = apply = endpoints = status = down = lambda self, *_: None
"""
LATER = "was written for plugin API 2; this shipctl has version 1: set `api_version = 1` once it fits"
CTX = MetricContext(pipeline="p", model="m", versions={})


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[EntryPoint]]]:
    """Entry points into a module that no distribution has."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "measures_of_mine.py").write_text(MODULE)
    (tmp_path / "broken_measures.py").write_text("raise RuntimeError('no licence')\n")

    def make(group: str = METRIC_GROUP, **named: str) -> list[EntryPoint]:
        return [EntryPoint(name.replace("_", "-"), value, group) for name, value in named.items()]

    yield make
    for module in ("measures_of_mine", "broken_measures"):
        sys.modules.pop(module, None)


def test_a_name_alone_has_all_defaults(points: Callable[..., list[EntryPoint]]) -> None:
    installed = points(mine="measures_of_mine:Provider", broken="broken_measures:Provider")
    provider = open_provider("mine", CTX, installed)
    assert (type(provider).__name__, provider.ctx) == ("Provider", CTX)
    assert (provider.options.every, provider.options.depth) == (5.0, 1)
    assert provider.query("r", 0, 1).value == 1.0
    assert "broken_measures" not in sys.modules, "another plugin was imported"


@pytest.mark.parametrize(
    "reference",
    [
        {"uses": "mine", "with": {"depth": 3, "every": "1m"}},
        Reference.model_validate({"uses": "mine", "with": {"depth": 3, "every": "1m"}}),
    ],
)
def test_options_are_read(points: Callable[..., list[EntryPoint]], reference: Any) -> None:
    cls, options = provider_class(reference, points(mine="measures_of_mine:Provider"))
    assert (cls.__name__, options.depth, options.every) == ("Provider", 3, 60.0)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mime", "no metric provider named 'mime' is installed; did you mean 'mine'?"),
        ("xyz", "no metric provider named 'xyz' is installed; there are broken, mine"),
        ({"uses": ""}, "the metric provider: provider.uses is empty; add at least one character"),
        ({"with": {}}, "the metric provider: 'uses' is missing in provider; add it"),
        ({"uses": "mine", "wiht": {}}, "the metric provider: 'wiht' is not known in provider; did you mean 'with'?"),
        ({"uses": "mine", "with": [1]}, "the metric provider: provider.with must be a mapping, not a list; correct it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(points: Callable[..., list[EntryPoint]], reference: Any, said: str) -> None:
    installed = points(mine="measures_of_mine:Provider", broken="broken_measures:Provider")
    with pytest.raises(SpecError) as caught:
        provider_class(reference, installed)
    assert str(caught.value) == said


def test_all_that_is_wrong_is_told_at_once(points: Callable[..., list[EntryPoint]]) -> None:
    options = {"evry": "1m", "depth": "deep", "kind": "mode", "every": 5}
    with pytest.raises(SpecError) as caught:
        provider_class({"uses": "mine", "with": options}, points(mine="measures_of_mine:Provider"))
    assert str(caught.value).splitlines() == [
        "metric provider 'mine': 'evry' is not known in with; did you mean 'every'?",
        "metric provider 'mine': 5 is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
        "metric provider 'mine': with.depth must be a whole number, not 'deep'; correct it",
        "metric provider 'mine': with.kind must be 'mean' or 'median', not 'mode'; write that",
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("broken_measures:Provider", "does not import: RuntimeError: no licence"),
        ("measures_of_mine:No", "does not import: AttributeError: module 'measures_of_mine' has no attribute 'No'"),
        ("measures_of_mine:function", "is not a subclass of shipctl.MetricProvider"),
        ("measures_of_mine:Options", "is not a subclass of shipctl.MetricProvider"),
        ("measures_of_mine:Host", "is not a subclass of shipctl.MetricProvider"),
        ("measures_of_mine:Later", LATER),
    ],
)  # fmt: skip
def test_a_plugin_that_does_not_work_is_told(
    points: Callable[..., list[EntryPoint]], value: str, said: str
) -> None:
    with pytest.raises(PluginError) as caught:
        open_provider("mine", CTX, points(mine=value))
    assert str(caught.value) == f"metric provider 'mine' of an unknown distribution ({value}) {said}"


def test_two_of_one_name_are_refused(points: Callable[..., list[EntryPoint]]) -> None:
    twice = [*points(mine="measures_of_mine:Provider"), *points(mine="broken_measures:Provider")]
    with pytest.raises(PluginError) as caught:
        provider_class("mine", twice)
    assert str(caught.value) == (
        "metric provider 'mine' is declared by an unknown distribution (broken_measures:Provider) and "
        "an unknown distribution (measures_of_mine:Provider); uninstall one of them"
    )
    same = points(mine="measures_of_mine:Provider") * 2
    assert provider_class("mine", same)[0].__name__ == "Provider", "one that is found twice is one"


def test_a_provider_proves_itself_when_it_is_planned(
    points: Callable[..., list[EntryPoint]], tmp_path: Path
) -> None:
    ctx = CheckContext(project=tmp_path, pipeline="digits")
    installed = points(mine="measures_of_mine:Provider")
    with pytest.raises(UnavailableError, match=r"^digits: 7 is too deep$"):
        check_provider({"uses": "mine", "with": {"depth": 7}}, ctx, installed)


def test_targets_are_found_in_the_same_way(points: Callable[..., list[EntryPoint]], tmp_path: Path) -> None:
    installed = points(TARGET_GROUP, host="measures_of_mine:Host", provider="measures_of_mine:Provider")
    named = {"uses": "host", "with": {"host": "h"}}
    ctx = ReleaseContext(
        project=tmp_path, target_dir=tmp_path, pipeline="p", version="1.0.0", stage="s", revision="r", run="r"
    )
    target = open_target(named, ctx, installed)
    assert (type(target).__name__, target.options.host, target.ctx) == ("Host", "h", ctx)
    assert target_class(named, installed)[1].host == "h"
    assert target_name(named) == target_name("host") == "host"
    with pytest.raises(UnavailableError, match=r"^h cannot be reached$"):
        check_target(named, CheckContext(project=tmp_path, pipeline="p"), installed)
    with pytest.raises(SpecError, match=r"^no target named 'hosts' is installed; did you mean 'host'\?$"):
        target_class("hosts", installed)
    with pytest.raises(SpecError, match=r"^target 'host': 'host' is missing in with; add it$"):
        target_class("host", installed)
    with pytest.raises(PluginError, match=r"is not a subclass of shipctl\.ReleaseTarget$"):
        target_class("provider", installed)


@pytest.mark.parametrize(
    ("reference", "name"), [("x", "x"), ({"uses": "x"}, "x"), (Reference(uses="x"), "x"), ({"with": {}}, "")]
)
def test_a_name_can_be_told_without_looking(reference: Any, name: str) -> None:
    assert name_of(reference) == name


@pytest.mark.parametrize("name", ["access-log", "prometheus", "python", "triton", "webhook"])
def test_the_providers_that_come_with_shipctl_are_installed(name: str) -> None:
    from importlib.metadata import entry_points

    found = [point for point in entry_points(group=METRIC_GROUP) if point.name == name]
    assert len(found) == 1, "declare it in pyproject.toml, and install again"
