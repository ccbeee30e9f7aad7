"""One stage, one module, one class, one test file, all of the same name; and the installed metadata know them."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import pytest

from shipctl.release.metrics import MetricProvider
from shipctl.release.router import TrafficRouter
from shipctl.release.target import ReleaseTarget
from shipctl.stages.base import API_VERSION, ReleaseStage, Stage
from shipctl.stages.hookspecs import hookimpl

ROOT = Path(__file__).parents[2]
PLUGINS = ("stages", "stores", "sources", "targets", "routers", "metrics", "displays")
GROUPS = (*(f"shipctl.{name}" for name in PLUGINS), "console_scripts")


def declared(group: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if group == "console_scripts":
        return dict(project["scripts"])
    return dict(project["entry-points"][group])


STAGES = declared("shipctl.stages")
DISPLAYS = declared("shipctl.displays")
STORES = declared("shipctl.stores")
SOURCES = declared("shipctl.sources")
TARGETS = declared("shipctl.targets")
ROUTERS = declared("shipctl.routers")
METRICS = declared("shipctl.metrics")


OURS = [
    value
    for group in (STAGES, STORES, SOURCES, TARGETS, ROUTERS, METRICS, DISPLAYS)
    for value in group.values()
]


def load(value: str) -> Any:
    module, _, name = value.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("group", GROUPS)
def test_the_installed_metadata_say_what_pyproject_says(group: str) -> None:
    installed = {
        point.name: point.value for point in distribution("shipctl").entry_points if point.group == group
    }
    assert installed == declared(group), (
        "run `make install`: entry points changed after the last installation"
    )


def test_every_entry_point_of_ours_lies_in_the_plugin_package() -> None:
    groups = {point.group for point in distribution("shipctl").entry_points}
    assert groups == set(GROUPS)
    assert all(value.startswith("shipctl_plugins.") for value in OURS)


@pytest.mark.parametrize(("name", "value"), STAGES.items())
def test_module_and_class_are_named_after_the_stage(name: str, value: str) -> None:
    module, _, cls = value.partition(":")
    assert module.rpartition(".")[2] == name.replace("-", "_")
    assert cls == "".join(word.capitalize() for word in name.split("-"))


@pytest.mark.parametrize(("name", "value"), DISPLAYS.items())
def test_the_module_is_named_after_the_display(name: str, value: str) -> None:
    assert value.partition(":")[0].rpartition(".")[2] == name.replace("-", "_")


@pytest.mark.parametrize("value", STAGES.values())
def test_every_stage_imports_and_is_documented(value: str) -> None:
    stage = load(value)
    assert issubclass(stage, Stage | ReleaseStage)
    assert stage.api_version == API_VERSION
    assert stage.__doc__
    for name, field in stage.options_model.model_fields.items():
        assert field.description, f"option {name!r} of {value} has no description"


@pytest.mark.parametrize(("name", "value"), [*STORES.items(), *SOURCES.items()])
def test_module_and_class_are_named_after_the_scheme(name: str, value: str) -> None:
    kind = "store" if name in STORES else "source"
    assert value.rpartition(".")[2] == f"{name}_{kind}:{name.capitalize()}{kind.capitalize()}"


@pytest.mark.parametrize(("name", "value"), [*TARGETS.items(), *ROUTERS.items(), *METRICS.items()])
def test_module_and_class_begin_with_the_name_of_the_target_router_or_provider(name: str, value: str) -> None:
    module, _, cls = value.partition(":")
    assert module.rpartition(".")[2].startswith(name.replace("-", "_"))
    assert cls.startswith("".join(word.capitalize() for word in name.split("-")))


@pytest.mark.parametrize("value", [*TARGETS.values(), *ROUTERS.values(), *METRICS.values()])
def test_every_target_router_and_provider_imports_and_is_documented(value: str) -> None:
    plugin = load(value)
    assert issubclass(plugin, ReleaseTarget | TrafficRouter | MetricProvider)
    assert plugin.api_version == API_VERSION
    assert plugin.__doc__
    for name, field in plugin.options_model.model_fields.items():
        assert field.description, f"option {name!r} of {value} has no description"


@pytest.mark.parametrize("value", DISPLAYS.values())
def test_every_display_hears_how_a_stage_and_a_run_end(value: str) -> None:
    display = load(value)
    marker = f"{hookimpl.project_name}_impl"
    heard = {name for name in dir(display) if hasattr(getattr(display, name), marker)}
    assert {"shipctl_stage_finished", "shipctl_run_finished"} <= heard


@pytest.mark.parametrize("value", OURS)
def test_every_plugin_has_a_test_file_of_its_name(value: str) -> None:
    _, *folders, module = value.partition(":")[0].split(".")
    path = Path("tests", "plugins", *folders, f"test_{module}.py")
    assert (ROOT / path).is_file(), f"there should be a {path}"


def test_no_two_distributions_here_declare_the_same_stage() -> None:
    names = [point.name for point in entry_points(group="shipctl.stages")]
    assert sorted(names) == sorted(set(names))
