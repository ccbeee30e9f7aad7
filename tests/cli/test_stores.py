"""Which store a command works on."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.store.models import ModelRegistry
from shipctl.testing.fixtures import SampleProject
from support_cli import SPEC, Call
from support_registry import folder_store, registered


def spec(store: str) -> str:
    return f"{SPEC}store: {store}\n"


@pytest.fixture(autouse=True)
def no_store_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHIPCTL_STORE", raising=False)


def chosen(call: Call, *arguments: str) -> str:
    result = call("registry", "list", "--json", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return str(result.document["store"])


def test_without_anything_it_is_the_projects_own(project: SampleProject, call: Call) -> None:
    assert chosen(call) == (project.root / ".shipctl" / "store").as_uri()


def test_a_spec_without_a_store_means_the_projects_own(light: SampleProject, call: Call) -> None:
    assert chosen(call) == (light.root / ".shipctl" / "store").as_uri()
    assert chosen(call, "--spec", "spec.yaml") == (light.root / ".shipctl" / "store").as_uri()


def test_the_environment_names_one_where_no_spec_does(
    light: SampleProject, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "env"))
    assert chosen(call) == (tmp_path / "env").as_uri()
    light.write({"spec.yaml": spec("published")})
    assert chosen(call) == (light.root / "published").as_uri()


def test_the_store_of_the_spec_here_is_meant_and_relative_to_it(light: SampleProject, call: Call) -> None:
    (light.root / "spec.yaml").unlink()
    light.write({"specs/light.yaml": spec("published")})
    assert chosen(call) == (light.root / "specs" / "published").as_uri()
    assert chosen(call, "--spec", "specs/light.yaml") == (light.root / "specs" / "published").as_uri()


def test_the_option_wins_and_is_relative_to_the_current_folder(
    light: SampleProject, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPCTL_STORE", "/elsewhere")
    light.write({"spec.yaml": spec("published")})
    assert chosen(call, "--store", "other") == (light.root / "other").as_uri()


def test_an_environment_of_the_spec_may_change_it(light: SampleProject, call: Call) -> None:
    changing = (
        f"{SPEC}vars: {{where: here}}\nstore: '${{{{ vars.where }}}}'\n"
        "environments: {production: {vars: {where: there}}}\n"
    )
    light.write({"spec.yaml": changing})
    assert chosen(call) == (light.root / "here").as_uri()
    assert chosen(call, "-e", "production") == (light.root / "there").as_uri()
    assert chosen(call, "--set", "vars.where=elsewhere") == (light.root / "elsewhere").as_uri()


def test_several_specs_that_agree_are_no_question(light: SampleProject, call: Call, tmp_path: Path) -> None:
    text = spec(str(tmp_path / "shared"))
    light.write({"spec.yaml": text, "specs/a.yaml": text, "specs/b.yaml": text})
    assert chosen(call) == (tmp_path / "shared").as_uri()


def test_several_specs_that_differ_are_a_question(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": spec("published"), "other.yaml": SPEC})
    result = call("registry", "list")
    assert (result.exit_code, result.stderr) == (
        2,
        (
            "error: the specs here name different stores; choose one with --store URI or --spec SPEC:\n"
            f"  {light.root / '.shipctl' / 'store'} in other.yaml\n  published in spec.yaml\n"
        ),
    )
    assert chosen(call, "--spec", "spec.yaml") == (light.root / "published").as_uri()


def test_a_scheme_that_nobody_knows_is_said(project: SampleProject, call: Call) -> None:
    result = call("registry", "list", "--store", "gs://models")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: cannot open the store 'gs://models': no plugin for gs:// is installed"
    )


def test_a_project_remembers_the_ends_of_logs_and_notices_that_one_was_cut(
    project: SampleProject, call: Call
) -> None:
    store = project.root / ".shipctl" / "store"
    registered(ModelRegistry(folder_store(store)), "1.0.0", "1.1.0")
    assert call("registry", "list").exit_code == 0
    assert (project.root / ".shipctl" / "heads.json").exists()
    (store / "registry" / "digits" / "00000002.json").unlink()
    result = call("registry", "list")
    assert result.exit_code == 1
    assert (
        "ends at entry 1, and entry 2 was seen here before: entries were taken away at its end"
        in result.stderr
    )


def test_outside_of_a_project_nothing_is_written(project: SampleProject, call: Call, tmp_path: Path) -> None:
    registered(ModelRegistry(folder_store(tmp_path / "shared")), "1.0.0")
    (project.root / ".shipctl").rmdir()
    before = sorted(project.root.rglob("*"))
    assert call("registry", "list", "--store", str(tmp_path / "shared")).lines == [
        "digits  1.0.0       1 version"
    ]
    assert sorted(project.root.rglob("*")) == before
