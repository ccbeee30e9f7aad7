"""`shipctl approve`, `reject`, and where they show."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest

from support_approvals import BOB, Become, be, gated, governed
from support_engine import EngineProject, project, test_stages

__all__ = ["be", "project", "test_stages"]


@pytest.fixture(autouse=True)
def waiting(project: EngineProject, be: Become) -> EngineProject:
    """A project whose release, begun by ada, waits for an owner."""
    gated(governed(project))
    code, said = project.command("apply", "spec.yaml")
    assert code == 6, said
    return project


def test_what_waits_is_listed(project: EngineProject) -> None:
    code, said = project.command("approve", "--list")
    lines = said.splitlines()
    assert code == 0
    assert re.fullmatch(r"[0-9a-f]{64}  demo 1\.0\.0 on shelf", lines[0])
    assert re.fullmatch(r"  asked     release, since \S+ \S+, by ada@\S+ \(run \S+\)", lines[1])
    assert lines[2] == "  roles     owner"
    assert re.fullmatch(r"  revision  [0-9a-f]{64}, stage d", lines[3])
    assert lines[4:] == ["  stable    nothing", "  change    nothing -> 1.0.0", "  release: waits"]
    code, said = project.command("approve", "--list", "--json")
    document = json.loads(said)
    assert document["schema"] == "shipctl.approvals/1"
    (item,) = document["pending"]
    assert (item["release"], item["roles"], item["by"]["user"]) == (lines[0][:64], ["owner"], "ada")
    assert item["asked"] == [
        {"what": "release", "approved": None, "rejected": None, "expired": None, "ignored": []}
    ]
    assert project.command("approve", "--list", "--stage", "x")[1] == "nothing waits for an approval\n"


def test_approving_with_a_key(project: EngineProject) -> None:
    code, said = project.command("approve", "--key", "bob.key", "--reason", "tried it", "--expires", "1d")
    assert code == 0, said
    assert f"release approved by bob (owner): tried it, signed with {BOB.public.id}" in said.splitlines()
    assert said.splitlines()[-1] == "the command that waits goes on when it is run again"
    assert "release: approved by bob (owner): tried it" in project.command("approve", "--list")[1]
    assert project.command("approve", "--key", "bob.key")[1].splitlines()[-1] == (
        "you said so before; nothing was changed"
    )
    assert project.command("apply")[0] == 0
    assert project.command("approve", "--list")[1] == "nothing waits for an approval\n"


def test_the_key_may_come_from_standard_input(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO(BOB.pem().decode()))
    code, said = project.command("approve", "--key", "-", "--json")
    assert code == 0, said
    document = json.loads(said)
    assert (document["schema"], document["decision"], document["changed"]) == (
        "shipctl.approval/1",
        "approve",
        True,
    )
    assert document["signer"] == BOB.public.id
    (statement,) = document["statements"]
    assert (statement["approver"], statement["role"], statement["release"]) == (
        "bob",
        "owner",
        document["release"],
    )
    assert project.command("apply")[0] == 0


def test_an_encrypted_key_needs_its_password(project: EngineProject) -> None:
    (project.root / "bob.key").write_bytes(BOB.pem("open sesame"))
    assert project.command("approve", "--key", "bob.key") == (
        2,
        "error: bob.key is encrypted; give its password\n",
    )
    (project.root / "password").write_text("open sesame\n")
    assert project.command("approve", "--key", "bob.key", "--password-file", "password")[0] == 0
    assert (
        project.command("approve", "--password-file", "password")[1]
        == "error: --password-file goes with --key\n"
    )


def test_rejecting(project: EngineProject, be: Become) -> None:
    be("carol")
    code, said = project.command("reject", "--reason", "no tests")
    assert code == 0, said
    assert "release rejected by carol (owner): no tests" in said.splitlines()
    be("ada")
    code, said = project.command("apply")
    assert code == 4
    assert "was rejected by carol (owner): no tests" in said
    assert "release: rejected by carol (owner): no tests" in project.command("approve", "--list")[1]


def test_who_may_not_is_told_with_4(project: EngineProject, be: Become) -> None:
    for user, why in (
        ("ada", "ada began this release, and nobody approves his own"),
        ("eve", "is no approver in"),
        ("olga", "olga is operator, and owner is asked"),
    ):
        be(user)
        code, said = project.command("approve")
        assert code == 4
        assert why in said


def test_the_release_that_is_meant(project: EngineProject, be: Become) -> None:
    be("carol")
    code, said = project.command("approve", "--release", "0" * 12)
    assert code == 2
    assert f"no release {'0' * 12} waits for an approval; these do: " in said
    digest = json.loads(project.command("approve", "--list", "--json")[1])["pending"][0]["release"]
    assert project.command("approve", "--release", digest[:12])[0] == 0


def test_a_list_takes_nothing_that_an_approval_takes(project: EngineProject) -> None:
    code, said = project.command("approve", "--list", "--reason", "x")
    assert (code, said) == (2, "error: --list only shows what waits; leave out what an approval takes\n")


def test_the_audit_log_and_the_history_show_it(project: EngineProject, be: Become) -> None:
    be("carol")
    project.command("approve", "--reason", "fine")
    be("ada")
    project.command("apply")
    lines = project.command("history", "--audit")[1].splitlines()
    assert re.fullmatch(
        r" +2  \S+ \S+  carol@\S+  approve  demo@1\.0\.0  \(approver carol, reason fine, release [0-9a-f]{12}, "
        r"revision [0-9a-f]{12}, role owner, stage d, target shelf, what release\)",
        lines[2],
    ), lines[2]


def test_the_history_of_a_model_shows_who_approved_its_releases(
    project: EngineProject, be: Become, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNING_KEY", BOB.pem().decode())
    project.spec(
        """
        - {id: make, uses: make-package}
        - {id: publish, uses: publish, with: {alias: staging}, approval: {roles: [owner]}}
        """
    )
    assert project.command("apply")[0] == 6
    be("carol")
    assert project.command("approve")[0] == 0
    be("ada")
    assert project.command("apply")[0] == 0
    lines = project.command("registry", "history", "demo")[1].splitlines()
    place = lines.index("approvals, in the audit log:")
    assert "approver carol" in lines[place + 1]
    assert "approval requested" in lines[place + 2]
    document = json.loads(project.command("registry", "history", "demo", "--json")[1])
    assert [entry["action"] for entry in document["approvals"]] == [
        "approve", "approval requested", "approval requested",
    ]  # fmt: skip
