"""`shipctl promote`, and the environments of `history` and `status`."""

from __future__ import annotations

import json

import pytest

from support_approvals import ENVIRONMENTS, Become, be, gated
from support_engine import EngineProject, project, test_stages

__all__ = ["be", "project", "test_stages"]


@pytest.fixture(autouse=True)
def staged(project: EngineProject, be: Become) -> EngineProject:
    """A project whose version 1.0.0 serves in staging."""
    gated(project, approval="", head=ENVIRONMENTS)
    code, said = project.command("apply", "spec.yaml", "-e", "staging")
    assert code == 0, said
    return project


def test_what_serves_in_staging_goes_to_production(project: EngineProject) -> None:
    code, said = project.command("promote", "staging", "production", "--json")
    assert code == 0, said
    document = json.loads(said[said.index('{\n  "schema"') :])
    assert document["schema"] == "shipctl.promote/1"
    assert (document["source"], document["target"], document["version"]) == ("staging", "production", "1.0.0")
    assert len(document["artifacts"]) == 1
    here, there = (project.serving(f"shelf@{name}") for name in ("staging", "production"))
    assert here == there
    assert project.command("status", "-e", "production")[1].splitlines()[0] == (
        "d on shelf in production: demo 1.0.0, healthy"
    )
    lines = project.command("history")[1].splitlines()
    assert "  production  1.0.0  " in lines[1]
    assert "  staging     1.0.0  " in lines[2]
    document = json.loads(project.command("history", "--json", "-e", "staging")[1])
    assert [item["environment"] for item in document["releases"]] == ["staging"]


def test_what_is_not_released_is_not_promoted(project: EngineProject) -> None:
    code, said = project.command("promote", "production", "staging")
    assert code == 4
    assert said.endswith(
        "error: nothing was released on shelf@production; `shipctl apply -e production` first\n"
    )


def test_environments_that_are_not_there(project: EngineProject) -> None:
    code, said = project.command("promote", "stagin", "production")
    assert code == 2
    assert "there is no environment 'stagin'; did you mean 'staging'?" in said
