from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.errors import SpecError
from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.policy import find_policy, load_policy
from support_signing import issue

KEY = PrivateKey.generate()
HEAD = "apiVersion: shipctl.dev/v1\nkind: Policy\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root, which is the current folder, with a public key."""
    monkeypatch.delenv("SHIPCTL_POLICY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/release.pub").write_text(KEY.public.pem())
    return tmp_path


def write(project: Path, signatures: str, head: str = HEAD) -> Path:
    path = project / "shipctl-policy.yaml"
    path.write_text(f"{head}{signatures}")
    return path


def test_keys_are_files_beside_the_policy_or_text(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PrivateKey.generate("ecdsa-p256").public
    root, second = issue("root", ca=True), issue("second", ca=True)
    (project / "roots.pem").write_text(root.pem + second.pem)
    text = "\n".join(f"        {line}" for line in other.pem().splitlines())
    path = write(
        project,
        f"signatures:\n  keys:\n    - keys/release.pub\n    - |\n{text}\n"
        "  certificates: roots.pem\n  identities: ['*@example.com']\n",
    )
    monkeypatch.chdir("/")
    policy = load_policy(path)
    assert policy.required
    assert policy.name == str(path)
    assert policy.trust.keys == (KEY.public, other)
    assert policy.trust.roots == (root.certificate, second.certificate)
    assert policy.trust.identities == ("*@example.com",)


def test_approvers_have_roles_and_keys_or_names(project: Path) -> None:
    policy = load_policy(
        write(
            project,
            "approvers:\n  - {name: ada, roles: owner, keys: keys/release.pub}\n"
            "  - {name: bob, roles: [owner, operator], users: [bobby]}\n",
        )
    )
    assert (policy.required, [item.name for item in policy.approvers]) == (False, ["ada", "bob"])
    ada, bob = policy.approvers
    assert (ada.roles, ada.keys, bob.roles, bob.keys) == (
        ("owner",),
        (KEY.public,),
        ("owner", "operator"),
        (),
    )
    assert bob.is_known_as({"bobby"})
    assert not bob.is_known_as({"Bobby"})
    assert bob.may_be({"BOBBY"})
    assert policy.with_roles(["operator"]) == [bob]
    assert policy.with_roles([]) == [ada, bob]


def test_without_signatures_nothing_is_required(project: Path) -> None:
    policy = load_policy(write(project, ""))
    assert not policy.required
    assert not policy.trust


def test_signatures_may_be_trusted_and_not_required(project: Path) -> None:
    policy = load_policy(write(project, "signatures: {required: false, keys: [keys/release.pub]}\n"))
    assert not policy.required
    assert policy.trust.keys == (KEY.public,)


def test_the_policy_of_a_project_is_in_its_root(project: Path) -> None:
    assert find_policy(project) is None
    write(project, "signatures: {keys: keys/release.pub}\n")
    policy = find_policy(project)
    assert policy is not None
    assert policy.trust.keys == (KEY.public,)


def test_the_environment_names_another_policy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, "nonsense: 1\n")
    other = project / "keys/strict.yaml"
    other.write_text(f"{HEAD}signatures: {{keys: release.pub}}\n")
    monkeypatch.setenv("SHIPCTL_POLICY", str(other))
    policy = find_policy(project)
    assert policy is not None
    assert policy.path == other
    monkeypatch.setenv("SHIPCTL_POLICY", "gone.yaml")
    with pytest.raises(SpecError, match=r"/gone\.yaml: there is no such policy; name its file"):
        find_policy(project)


def test_a_policy_that_cannot_be_read_is_not_none(project: Path) -> None:
    (project / "shipctl-policy.yaml").symlink_to("gone")
    with pytest.raises(SpecError, match=r"shipctl-policy\.yaml: there is no such policy"):
        find_policy(project)


WRONG = {
    f"{HEAD}signature: {{}}\n": ["3:1: 'signature' is not known in a policy; did you mean 'signatures'?"],
    f"{HEAD}signatures:\n  key: [a]\n": ["4:3: 'key' is not known in signatures; did you mean 'keys'?"],
    f"{HEAD}signatures: {{required: yes please}}\n": [
        "3:24: signatures.required must be true or false, not 'yes please'; correct it"
    ],
    f"{HEAD}signatures:\n  keys:\n    - keys/gone.pub\n    - keys\n": [
        "5:7: BASE/keys/gone.pub cannot be read: No such file or directory; name a PEM file",
        "6:7: BASE/keys cannot be read: Is a directory; name a PEM file",
    ],
    f"{HEAD}signatures:\n  certificates: keys/release.pub\n": [
        "4:17: BASE/keys/release.pub has no certificate in PEM form; it begins with `-----BEGIN CERTIFICATE-----`"
    ],
    f"{HEAD}signatures: {{}}\n": [
        (
            "3:1: signatures are required and nobody is trusted to make them; name a public key in 'keys', or a root "
            "certificate in 'certificates'"
        )
    ],
    f"{HEAD}signatures: {{keys: keys/release.pub, identities: [me]}}\n": [
        "3:38: identities are names in certificates, and no root certificate is trusted; add 'certificates'"
    ],
    f"{HEAD}approvers: []\n": ["3:1: 'approvers' is empty; say who may approve, or leave it out"],
    f"{HEAD}approvers:\n  - {{name: ada}}\n": [
        "4:5: 'roles' is missing in approvers[0]; add it",
    ],
    f"{HEAD}approvers:\n  - {{name: ada, roles: []}}\n": [
        "4:24: approvers[0].roles is empty; add at least one item",
    ],
    f"{HEAD}approvers:\n  - {{name: ada, role: [x], roles: [x]}}\n": [
        "4:17: 'role' is not known in approvers[0]; did you mean 'roles'?"
    ],
    f"{HEAD}approvers:\n  - {{name: ada, roles: [x], keys: [keys/gone.pub]}}\n": [
        "4:36: BASE/keys/gone.pub cannot be read: No such file or directory; name a PEM file"
    ],
    f"{HEAD}approvers:\n  - {{name: ada, roles: x, keys: keys/release.pub}}\n"
    "  - {name: bob, roles: x, keys: keys/release.pub, users: [Ada]}\n  - {name: bob, roles: y}\n": [
        f"5:33: key {KEY.public.id} is ada's already; give everybody a key of his own",
        "5:58: 'Ada' is ada already; one name is one person",
        "6:12: approver 'bob' stands here twice; put the two together",
    ],
    "kind: Pipeline\n": [
        "1:1: 'apiVersion' is missing; add 'apiVersion: shipctl.dev/v1'",
        "1:7: kind must be 'Policy'; write that",
    ],
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_at_its_place(project: Path, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_policy(write(project, text, head=""))
    told = [f"{problem.location}: {problem.message}" for problem in caught.value.problems]
    assert told == [f"shipctl-policy.yaml:{line}".replace("BASE", str(project)) for line in WRONG[text]]


def test_a_policy_is_read_safely(project: Path) -> None:
    with pytest.raises(SpecError):
        load_policy(write(project, "signatures: !!python/object/apply:os.system ['true']\n"))
