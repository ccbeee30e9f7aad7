"""The quick answer to an unchanged apply: given only where looking would find nothing to do."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from shipctl import Hooks, apply
from shipctl.engine import uptodate
from support_engine import EngineProject, flip_bit

ARGUMENTS = ["apply", "spec.yaml"]
CHAIN = "- {id: a, uses: make, with: {text: aaaa, label: a}}\n- {id: b, uses: append, with: {label: b}}"


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Files count as settled at once, and the folder of this checkout, in which coverage writes, for nothing."""
    monkeypatch.setattr(uptodate, "_SETTLED_NS", 0)
    busy = {"", str(request.config.rootpath)}
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in busy])


def remembered(project: EngineProject) -> bool:
    assert apply(project.plan(), hooks=Hooks(installed=False), arguments=ARGUMENTS).exit_code == 0
    return uptodate.is_up_to_date(ARGUMENTS)


def test_an_unchanged_project_is_answered_at_once(project: EngineProject) -> None:
    assert not uptodate.is_up_to_date(ARGUMENTS)
    assert remembered(project.spec(CHAIN))
    assert uptodate.is_up_to_date(ARGUMENTS)
    assert not uptodate.is_up_to_date([*ARGUMENTS, "--retry"]), "another command line was not asked yet"


CHANGES: dict[str, Callable[[EngineProject], object]] = {
    "spec": lambda p: p.edit("aaaa", "bbbb"),
    "touched spec": lambda p: p.path.touch(),
    "blob": lambda p: flip_bit(p.blob_of("aaaa")),
    "missing blob": lambda p: p.blob_of("aaaay").unlink(),
    "result": lambda p: flip_bit(p.results()[0]),
    "missing result": lambda p: p.results()[1].unlink(),
    "new module": lambda p: (p.root / "shipctl_new.py").write_text(""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_moved_takes_the_ordinary_way(
    project: EngineProject, change: Callable[[EngineProject], object]
) -> None:
    assert remembered(project.spec(CHAIN))
    change(project)
    assert not uptodate.is_up_to_date(ARGUMENTS)


def test_an_environment_variable_that_counts_takes_the_ordinary_way(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAVOUR", "mint")
    assert remembered(project.spec(CHAIN, head="env: [FLAVOUR]"))
    monkeypatch.setenv("FLAVOUR", "rose")
    assert not uptodate.is_up_to_date(ARGUMENTS)


def test_an_edit_made_while_the_run_was_at_work_is_not_taken_for_old(project: EngineProject) -> None:
    project.spec(CHAIN)
    plan = project.plan()
    project.edit("aaaa", "bbbb")
    assert apply(plan, hooks=Hooks(installed=False), arguments=ARGUMENTS).exit_code == 0
    assert not uptodate.is_up_to_date(ARGUMENTS)


def test_a_measurement_is_remembered_no_longer_than_it_holds(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_test_stages.checks import Measure

    monkeypatch.setattr(Measure, "max_age", 60.0)
    assert remembered(project.spec("- {id: a, uses: make}\n- {id: m, uses: measure}"))
    assert uptodate.is_up_to_date(ARGUMENTS)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert not uptodate.is_up_to_date(ARGUMENTS)


@pytest.mark.parametrize(
    "stages",
    [
        CHAIN + "\n- {id: d, uses: file-deploy}",
        "- {id: a, uses: make}\n- {id: k, uses: check, with: {max: 0}}",
    ],
    ids=["a release asks its target", "a failure is told again"],
)
def test_some_answers_are_never_remembered(project: EngineProject, stages: str) -> None:
    project.spec(stages)
    apply(project.plan(), hooks=Hooks(installed=False), arguments=ARGUMENTS)
    assert not uptodate.is_up_to_date(ARGUMENTS)


def test_a_hook_of_others_hears_of_every_run(project: EngineProject) -> None:
    project.spec(CHAIN)
    assert Hooks().others
    apply(project.plan(), hooks=Hooks(), arguments=ARGUMENTS)
    assert not uptodate.is_up_to_date(ARGUMENTS)
