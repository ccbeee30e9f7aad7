"""The history of releases whose records their targets keep for every machine."""

from __future__ import annotations

from pathlib import Path

from shipctl.engine.past import history
from support_approvals import gated
from support_engine import EngineProject, project, test_stages

__all__ = ["project", "test_stages"]

HEAD = """
vars: {shared: "", asks: 'no'}
environments:
  staging: {vars: {shared: FOLDER}}
  production: {}
"""


def spec(project: EngineProject, folder: Path, version: str = "1.0.0", more: str = "") -> EngineProject:
    head = HEAD.replace("FOLDER", str(folder))
    return gated(project, version, approval="", head=head, options=f'shared: "${{{{ vars.shared }}}}"{more}')


def rows(project: EngineProject, **options: str) -> list[tuple[str, str | None, str, bool]]:
    found = history(project.path, **options)  # type: ignore[arg-type]
    return [(row.target, row.environment, row.record.version, row.serves) for row in found]


def test_another_machine_sees_what_a_target_keeps(project: EngineProject, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    spec(project, tmp_path / "target")
    project.apply(project.plan(environment="staging"))
    project.apply(project.plan(environment="production"))
    spec(project, tmp_path / "target", "2.0.0")
    project.apply(project.plan(environment="staging"))
    everywhere = [
        ("shelf", "staging", "2.0.0", True),
        ("shelf", "production", "1.0.0", True),
        ("shelf", "staging", "1.0.0", False),
    ]
    assert rows(project) == everywhere
    other = spec(EngineProject(tmp_path / "other"), tmp_path / "target", "2.0.0")
    assert rows(other) == [row for row in everywhere if row[1] == "staging"]
    assert rows(other, environment="staging") == rows(other)
    assert rows(other, environment="production") == []


def test_a_target_that_cannot_be_asked_hides_no_other(project: EngineProject, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    spec(project, tmp_path / "target")
    project.apply(project.plan(environment="staging"))
    project.apply(project.plan(environment="production"))
    (tmp_path / "target" / "releases" / "demo" / "d.json").write_text("{")
    said: list[str] = []
    found = history(project.path, complain=said.append)
    assert [row.environment for row in found] == ["production"]
    assert len(said) == 1
    assert said[0].startswith("the records of d in staging cannot be read: ")
    code, text = project.command("history")
    assert code == 0
    assert "warning: the records of d in staging cannot be read: " in text


def test_only_stages_of_the_spec_are_shown(project: EngineProject, tmp_path: Path) -> None:
    spec(project, tmp_path, more=", target: one")
    project.apply(project.plan(environment="production"))
    project.edit("id: d,", "id: e,")
    project.apply(project.plan(environment="production"))
    assert {row.stage for row in history(project.path)} == {"e"}
