"""`shipctl pull`: out of a store, verified, in three forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.evidence.keys import PrivateKey
from shipctl.testing.fixtures import SampleProject
from support_cli import Call
from support_signing import KEY, registered


@pytest.fixture
def published(project: SampleProject, monkeypatch: pytest.MonkeyPatch) -> SampleProject:
    monkeypatch.delenv("SHIPCTL_POLICY", raising=False)
    monkeypatch.delenv("SHIPCTL_STORE", raising=False)
    registered(project, "1.0.0")
    return project.write({"release.pub": KEY.public.pem()})


@pytest.mark.parametrize(
    ("form", "name"), [("directory", "digits-1.0.0"), ("tar", "digits-1.0.0.tar"), ("oci", "digits-1.0.0")]
)
def test_a_release_is_taken_out_in_every_form(
    published: SampleProject, call: Call, form: str, name: str
) -> None:
    result = call("pull", "digits@1.0.0", "--format", form, "--key", "release.pub")
    assert result.lines == [f"digits@1.0.0 is in {name}, signed by {KEY.public.id}"]
    assert call("verify", name, "--key", "release.pub", "--expect", "digits@1.0.0").exit_code == 0


def test_what_is_pulled_is_a_copy_that_may_be_changed(published: SampleProject, call: Call) -> None:
    call("pull", "digits", "-o", "here")
    path = published.root / "here/LICENSE"
    path.write_text("changed")
    assert call("pull", "digits", "-o", "there", "--key", "release.pub").exit_code == 0


def test_without_anybody_to_trust_it_says_so(published: SampleProject, call: Call) -> None:
    result = call("pull", "digits@1.0.0")
    assert result.exit_code == 0
    assert "its signature was not verified: nobody is trusted here" in result.lines[0]
    assert call("pull", "digits", "-o", "x", "--json").document["package"] is None


def test_what_is_not_signed_by_who_is_trusted_is_not_written(published: SampleProject, call: Call) -> None:
    published.write({"stranger.pub": PrivateKey.generate().public.pem()})
    result = call("pull", "digits@1.0.0", "--key", "stranger.pub")
    assert result.exit_code == 4
    assert not (published.root / "digits-1.0.0").exists()


def test_a_registry_that_was_cut_since_it_was_looked_at_is_refused(
    published: SampleProject, call: Call
) -> None:
    assert call("pull", "digits", "--key", "release.pub").exit_code == 0
    log = published.root / ".shipctl/store/registry/digits"
    max(log.iterdir()).unlink()
    result = call("pull", "digits", "-o", "again", "--key", "release.pub")
    assert result.exit_code == 1
    assert "entries were taken away at its end" in result.stderr
    assert not (published.root / "again").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits@2.0.0"], "digits has no version 2.0.0"),
        (["digits", "-o", "release.pub"], "release.pub exists; choose another place with -o"),
        (["digits", "-o", "release.pub/x"], "cannot write release.pub/x"),
        (["./digits"], "is on this machine already"),
    ],
)
def test_wrong_arguments_say_what_to_do(
    published: SampleProject, call: Call, arguments: list[str], said: str
) -> None:
    result = call("pull", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(Path(published.root).glob(".pull-*"))
