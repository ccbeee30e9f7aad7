"""`publish`: a version is registered once, its aliases move, and both ways can be killed anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shipctl import SpecError
from shipctl.evidence.keys import PrivateKey
from support_engine import EngineProject, project, test_stages
from support_publishing import key, publishing, registry, rollback

__all__ = ["key", "project", "test_stages"]


def test_a_version_is_registered_and_its_alias_moves(project: EngineProject, key: PrivateKey) -> None:
    run = publishing(project).apply()
    assert (run.code, run.phases) == (0, ["preparing", "promoting", "done"])
    found = registry(project).resolve("demo@staging")
    assert (found.version, found.aliases, found.package["signer"]) == ("1.0.0", ("staging",), key.public.id)
    assert found.lineage["run"] == run.result.run


def test_what_is_published_is_left_alone(project: EngineProject, key: PrivateKey) -> None:
    publishing(project).apply()
    again = project.apply()
    assert (again.code, again.statuses["publish"], again.phases) == (0, "in-place", [])
    assert len(registry(project).history("demo")) == 2


def test_another_runner_finds_it_published(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "shared"))
    publishing(project).apply()
    other = publishing(EngineProject(tmp_path / "other"))
    run = other.apply()
    assert (run.code, run.ran) == (0, [])
    assert len(registry(project, str(tmp_path / "shared")).history("demo")) == 2


def test_a_version_never_changes(project: EngineProject, key: PrivateKey) -> None:
    publishing(project).apply()
    run = publishing(project, text="others").apply()
    assert run.code == 4
    assert "demo 1.0.0 is already registered with another digest" in run.messages["publish"]
    assert "raise metadata.version" in run.messages["publish"]
    assert registry(project).resolve("demo@staging").version == "1.0.0"


def test_a_rollback_moves_the_aliases_back_and_keeps_the_version(
    project: EngineProject, key: PrivateKey
) -> None:
    publishing(project).apply()
    publishing(project, "1.1.0", "better").apply()
    assert registry(project).resolve("demo@staging").version == "1.1.0"
    assert rollback(project).code == 0
    assert registry(project).resolve("demo@staging").version == "1.0.0"
    assert registry(project).resolve("demo@1.1.0").version == "1.1.0"
    assert project.apply().code == 7


def test_a_store_that_cannot_be_reached_stops_nothing_but_the_publication(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "file" / "store"))
    node = next(node for node in publishing(project).plan().nodes if node.node == "publish")
    assert node.unavailable is not None
    assert "file/store" in node.unavailable


def test_an_alias_that_looks_like_a_version_is_refused_at_its_line(
    project: EngineProject, key: PrivateKey
) -> None:
    with pytest.raises(
        SpecError, match=r"spec\.yaml:\d+:\d+: '2\.0\.0' looks like a version, so it cannot be an alias"
    ):
        publishing(project, alias="2.0.0").plan()


def test_a_package_without_a_repository_cannot_be_laid_out(project: EngineProject, key: PrivateKey) -> None:
    publishing(project)
    project.edit("with: {alias: staging}", "with: {alias: staging, triton_repository: true}")
    run = project.apply()
    assert run.code == 1
    assert "demo@1.0.0 has no Triton repository to lay out" in run.messages["publish"]
    assert registry(project).models() == []


@pytest.mark.parametrize("at", ["upload", "register", "alias"])
def test_killed_at_any_step_the_same_command_goes_on(
    project: EngineProject, key: PrivateKey, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    from shipctl_plugins.register.publish import Publish

    step = Publish.step

    def killed(self: Publish, state: Any, inputs: Any, ctx: Any) -> Any:
        done = step(self, state, inputs, ctx)
        if state.task == at:
            raise SystemExit(9)  # after the effect, before anything was written down about it
        return done

    monkeypatch.setattr(Publish, "step", killed)
    with pytest.raises(SystemExit):
        publishing(project).apply()
    monkeypatch.setattr(Publish, "step", step)
    assert project.apply().code == 0
    assert [entry.action for entry in registry(project).history("demo")] == ["register", "alias"]
