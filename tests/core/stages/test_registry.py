"""Finding plugins: lazily, one at a time, with every fault named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from shipctl import PluginError, SpecError
from shipctl.stages.registry import Registry


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "shipctl.stages")


def test_names_are_sorted_and_nothing_is_imported() -> None:
    registry = Registry([point("zeta", "no_such_zeta:Z"), point("alpha", "no_such_alpha:A")])
    assert registry.names() == ["alpha", "zeta"]
    assert registry.find("zeta").value == "no_such_zeta:Z"
    assert not {"no_such_zeta", "no_such_alpha"} & sys.modules.keys()


@pytest.mark.parametrize(("name", "hint"), [
    ("alpa", "did you mean 'alpha'?"), ("quite-different", "`shipctl stages list` shows what is installed"),
])  # fmt: skip
def test_an_unknown_name_comes_with_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        Registry([point("alpha", "a:A")]).find(name)
    assert str(caught.value) == f"no stage named {name!r} is installed; {hint}"


def test_one_name_twice_is_an_error_unless_it_is_the_same_thing() -> None:
    assert Registry([point("a", "m:A"), point("a", "m:A")]).find("a").value == "m:A"
    with pytest.raises(
        PluginError, match=r"stage 'a' is declared by .*\(m:A\) and .*\(n:A\); uninstall one of them"
    ):
        Registry([point("a", "m:A"), point("a", "n:A")]).load("a")


def test_a_class_is_loaded_once(test_stages: None) -> None:
    registry = Registry()
    assert registry.load("make") is registry.load("make")


@pytest.mark.parametrize(("value", "said"), [
    ("no_such_module:X", "does not import: ModuleNotFoundError: No module named 'no_such_module'"),
    ("json:nothing", "does not import: AttributeError: module 'json' has no attribute 'nothing'"),
    ("json:dumps", "is not a subclass of shipctl.Stage or shipctl.ReleaseStage"),
    ("json", "is not a subclass of shipctl.Stage or shipctl.ReleaseStage"),
])  # fmt: skip
def test_what_is_no_stage_is_named(value: str, said: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry([point("odd", value)]).load("odd")
    assert str(caught.value) == f"stage 'odd' of an unknown distribution ({value}) {said}"
