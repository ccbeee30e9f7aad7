from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shipctl.evidence.archives import write_oci, write_tar
from shipctl.evidence.bundle import sign_package
from shipctl.evidence.keys import PrivateKey
from shipctl.store.depot import open_depot
from shipctl.store.local import LocalStore
from shipctl.store.models import ModelRegistry
from shipctl.testing.fixtures import SampleProject
from support_cli import Call
from support_signing import KEY, issue, make_package, package_artifact, registered

ID = KEY.public.id
AGAIN = "; do not use this copy; take the package from where it was published again"


@pytest.fixture
def package(project: SampleProject, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed package and the public key in a project."""
    monkeypatch.delenv("SHIPCTL_POLICY", raising=False)
    monkeypatch.delenv("SHIPCTL_STORE", raising=False)
    folder = make_package(project.root / "digits-1.1.0")
    sign_package(folder, KEY)
    project.write({"release.pub": KEY.public.pem()})
    return folder


def test_a_package_is_verified_by_a_key(package: Path, call: Call) -> None:
    result = call("verify", "digits-1.1.0", "--key", "release.pub", "--expect", "digits@1.1.0")
    assert (result.exit_code, result.stderr) == (0, "")
    digest = package_artifact(package, signer=ID).digest
    assert result.lines == [
        "verified digits@1.1.0: 8 files, 7.2 KiB, all as signed",
        f"signed by {ID} (ecdsa-p256)",
        f"digest {digest}",
    ]


def test_the_document_has_every_file_and_the_time(package: Path, call: Call) -> None:
    before = time.time()
    document = call("verify", str(package), "--key", "release.pub", "--json").document
    assert document["schema"] == "shipctl.verify/1"
    assert before <= document["at"] <= time.time()
    assert document["package"]["signer"] == ID
    assert [entry["path"] for entry in document["package"]["entries"]] == [
        entry.path for entry in package_artifact(package).files
    ]


@pytest.mark.parametrize("form", ["tar", "oci", "uri"])
def test_archives_and_uris_of_paths_are_verified(
    project: SampleProject, package: Path, call: Call, form: str
) -> None:
    if form == "tar":
        write_tar(package, project.root / "out.tar")
    elif form == "oci":
        write_oci(package, project.root / "out", name="digits", version="1.1.0")
    what = {"tar": "out.tar", "oci": "out", "uri": package.as_uri()}[form]
    assert call("verify", what, "--key", "release.pub").lines[0].startswith("verified digits@1.1.0: 8 files")


def test_the_policy_of_the_project_decides(project: SampleProject, package: Path, call: Call) -> None:
    refused = call("verify", "digits-1.1.0")
    assert (refused.exit_code, refused.stderr) == (
        2,
        (
            "error: without a key that is trusted nothing can be verified, and there is no shipctl-policy.yaml here; "
            "give --key FILE or --certificates FILE\n"
        ),
    )
    policy = "apiVersion: shipctl.dev/v1\nkind: Policy\nsignatures: {keys: release.pub}\n"
    project.write({"shipctl-policy.yaml": policy, "other.yaml": policy.partition("signatures")[0]})
    assert call("verify", "digits-1.1.0").exit_code == 0
    assert "other.yaml trusts nobody" in call("verify", "digits-1.1.0", "--policy", "other.yaml").stderr
    # what the command line names is trusted alone
    project.write({"stranger.pub": PrivateKey.generate().public.pem()})
    assert call("verify", "digits-1.1.0", "--key", "stranger.pub").exit_code == 4
    assert (
        call("verify", "digits-1.1.0", "--key", "stranger.pub", "--policy", "shipctl-policy.yaml").exit_code
        == 0
    )


def flip(folder: Path) -> None:
    path = folder / "model/model.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def link(folder: Path) -> None:
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("/etc/passwd")


def stranger(folder: Path) -> None:
    sign_package(folder, PrivateKey.generate())


def older(folder: Path) -> None:
    shutil.rmtree(folder)
    sign_package(make_package(folder, version="1.0.0"), KEY)


def renamed(folder: Path) -> None:
    path = folder / "package.json"
    path.write_text(path.read_text().replace("1.1.0", "9.9.9"))


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "model/model.onnx was altered after it was signed: its SHA-256 is "),
    "missing": (lambda p: (p / "LICENSE").unlink(), f"LICENSE was signed and is missing{AGAIN}\n"),
    "surplus": (
        lambda p: (p / "model/hook.py").write_text("import os"),
        f"model/hook.py was not signed and does not belong to the package{AGAIN}\n",
    ),
    "link": (
        link,
        "LICENSE is a link to /etc/passwd; a package has plain files only",
    ),
    "manifest": (renamed, "package.json, which says what the package is, was altered after it was signed"),
    "signature": (
        lambda p: (p / "model.sig").write_bytes((p / "model.sig").read_bytes().replace(b"a", b"b", 40)),
        "model.sig was altered",
    ),
    "unsigned": (lambda p: (p / "model.sig").unlink(), "is not signed: it has no model.sig"),
    "stranger": (stranger, "which is not trusted here; trusted: "),
    "older": (
        older,
        "this is digits@1.0.0, correctly signed, and digits@1.1.0 was expected: an older version",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_every_tampering_is_refused_with_its_own_message(package: Path, call: Call, name: str) -> None:
    tamper, message = TAMPERING[name]
    tamper(package)
    arguments = ("verify", "digits-1.1.0", "--key", "release.pub", "--expect", "digits@1.1.0")
    result = call(*arguments)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert result.stderr.startswith("error: digits-1.1.0")
    assert message in result.stderr
    document = call(*arguments, "--json").document
    assert (document["schema"], document["exit_code"]) == ("shipctl.error/1", 4)
    for other, (_, text) in TAMPERING.items():
        assert (text in result.stderr) == (other == name) or name == "manifest"


def test_an_expired_certificate_passes_at_the_time_of_the_first_verification(
    project: SampleProject, call: Call
) -> None:
    root = issue("root", ca=True)
    leaf = issue("release", root, days=(-9, -5))
    sign_package(make_package(project.root / "p"), leaf.signing_key())
    project.write({"root.pem": root.pem})
    refused = call("verify", "p", "--certificates", "root.pem")
    assert refused.exit_code == 4
    assert "error: p: the certificate of CN=release,O=Example expired on " in refused.stderr
    then = time.gmtime(time.time() - 6 * 86400)
    for at in (time.strftime("%Y-%m-%dT%H:%MZ", then), str(time.time() - 6 * 86400)):
        result = call("verify", "p", "--certificates", "root.pem", "--at", at, "--identity", "release")
        assert result.exit_code == 0
        assert result.lines[2].startswith("certificate of CN=release,O=Example, valid until ")
    wrong = call(
        "verify", "p", "--certificates", "root.pem", "--at", str(time.time() - 6 * 86400), "--identity", "me"
    )
    assert "it was signed by CN=release,O=Example alias release, and allowed are me" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--at", "yesterday"),
            "invalid value for '--at': 'yesterday' is no time; write it like 2026-03-01T12:00Z",
        ),
        (("--expect", "digits"), "'digits' is no NAME@VERSION; write it like digits@1.4.0"),
        (
            ("--identity", "me"),
            "--identity is about names in certificates; give the roots with --certificates",
        ),
        (("--key", "gone.pub"), "gone.pub cannot be read: No such file or directory; name a PEM file"),
    ],
)
def test_a_wrong_command_line_is_told(
    package: Path, call: Call, arguments: tuple[str, str], message: str
) -> None:
    result = call("verify", "digits-1.1.0", "--key", "release.pub", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_does_not_exist_is_told(package: Path, call: Call) -> None:
    result = call("verify", "./gone", "--key", "release.pub")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: gone does not exist; give a package's folder, its tar file, or an OCI image layout\n",
    )


# -- stores --------------------------------------------------------------------------------------------------------


def test_a_release_is_fetched_and_verified(project: SampleProject, package: Path, call: Call) -> None:
    digest = registered(project, "1.1.0").digest
    registered(project, "1.0.0")
    for what in ("digits@1.1.0", "digits", "registry:/digits@1.1.0"):
        result = call("verify", what, "--key", "release.pub")
        assert result.stderr == ""
        assert result.lines[0].startswith("verified digits@1.1.0: 8 files")
        assert result.lines[2] == f"digest {digest}"
    assert not list((project.root / ".shipctl").glob("verify-*"))


def test_a_package_in_a_store_is_named_by_uri(
    project: SampleProject, package: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registered(project, "1.1.0").digest
    shutil.move(project.root / ".shipctl/store", tmp_path / "shared")
    uri = (tmp_path / "shared").as_uri()
    for what in (f"{uri}/digits@1.1.0", f"{uri}/{digest}"):
        assert call("verify", what, "--key", "release.pub").lines[0].startswith("verified digits@1.1.0")
    assert call("verify", "digits@1.1.0", "--store", uri, "--key", "release.pub").exit_code == 0
    wrong = call("verify", f"{uri}/{'0' * 64}", "--key", "release.pub")
    assert wrong.exit_code == 2
    assert f"has no package {'0' * 64}" in wrong.stderr
    assert (
        "names no package; write the store's URI and then NAME@VERSION"
        in call("verify", f"{uri}/digits", "--key", "release.pub").stderr
    )
    assert (
        "names a store, and so does --store"
        in call("verify", f"{uri}/digits@1.1.0", "--store", uri, "--key", "release.pub").stderr
    )


def test_a_release_verifies_outside_of_any_project(
    project: SampleProject, package: Path, call: Call, tmp_path: Path
) -> None:
    registered(project, "1.1.0")
    shutil.move(project.root / ".shipctl/store", tmp_path / "shared")
    shutil.rmtree(project.root / ".shipctl")
    uri = (tmp_path / "shared").as_uri()
    assert call("verify", f"{uri}/digits@1.1.0", "--key", "release.pub").exit_code == 0


def test_an_older_package_registered_as_a_newer_one_is_found(
    project: SampleProject, package: Path, call: Call
) -> None:
    """The registry was made to say so; the signature says otherwise."""
    sign_package(make_package(project.root / "old", version="1.0.0"), KEY)
    registered(project, "1.1.0", project.root / "old")
    result = call("verify", "digits@1.1.0", "--key", "release.pub")
    assert result.exit_code == 4
    assert "this is digits@1.0.0, correctly signed, and digits@1.1.0 was expected" in result.stderr


def test_a_package_that_is_not_the_registered_one_is_found(
    project: SampleProject, package: Path, call: Call
) -> None:
    """The same files under a manifest that says something else about them."""
    made = project.root / "made" / "p"
    sign_package(make_package(made), KEY)
    local = LocalStore(project.root / ".shipctl/store")
    artifact = local.publish(package_artifact(made, signer=ID, model="cd" * 32), made.parent)
    with open_depot(None, project.root, local) as depot:
        depot.publish(artifact)
        ModelRegistry(depot.objects).register(artifact, lineage={})
    result = call("verify", "digits@1.1.0", "--key", "release.pub")
    assert result.exit_code == 4
    assert f"correctly signed, and the store has {artifact.digest} under that name" in result.stderr


def test_damage_in_the_store_is_found(project: SampleProject, package: Path, call: Call) -> None:
    artifact = registered(project, "1.1.0")
    entry = next(entry for entry in artifact.files if entry.path == "model/weights.bin")
    blob = LocalStore(project.root / ".shipctl/store").blob(entry.sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * entry.size)
    result = call("verify", "digits@1.1.0", "--key", "release.pub")
    assert result.exit_code == 1
    assert "model/weights.bin" in result.stderr


def test_a_release_that_does_not_exist_is_told(project: SampleProject, package: Path, call: Call) -> None:
    registered(project, "1.1.0")
    result = call("verify", "digits@1.2.0", "--key", "release.pub")
    assert result.exit_code == 2
    assert "1.2.0" in result.stderr


# -- keygen --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256"])
def test_a_new_key_signs_and_verifies(project: SampleProject, call: Call, algorithm: str) -> None:
    old = os.umask(0)
    try:
        result = call("keygen", "release", "--type", algorithm)
    finally:
        os.umask(old)
    private, public = project.root / "release", project.root / "release.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    key = PrivateKey.load(private.read_bytes())
    assert result.lines == [
        "wrote release (keep it secret) and release.pub",
        key.public.id,
        (
            "next: name release.pub under `signatures.keys` in shipctl-policy.yaml, and release as a secret of the "
            "spec"
        ),
    ]
    sign_package(make_package(project.root / "p"), key)
    assert f"signed by {key.public.id} ({algorithm})" in call("verify", "p", "--key", "release.pub").lines


def test_keygen_tells_as_a_document(call: Call) -> None:
    document = call("keygen", "release", "--json").document
    assert document["schema"] == "shipctl.keygen/1"
    assert (document["algorithm"], document["private"], document["public"]) == (
        "ed25519",
        "release",
        "release.pub",
    )


def test_a_new_key_may_be_encrypted(project: SampleProject, call: Call) -> None:
    project.write({"password": "correct horse\n", "empty": "\n"})
    assert call("keygen", "release", "--password-file", "password").exit_code == 0
    key = PrivateKey.load((project.root / "release").read_bytes(), password="correct horse")
    assert key.public.algorithm == "ed25519"
    assert "the first line of empty is empty" in call("keygen", "other", "--password-file", "empty").stderr
    assert (
        "the password cannot be read from gone" in call("keygen", "other", "--password-file", "gone").stderr
    )
    assert not (project.root / "other").exists()


@pytest.mark.parametrize("existing", ["release", "release.pub"])
def test_no_key_is_overwritten(project: SampleProject, call: Call, existing: str) -> None:
    project.write({existing: "precious"})
    result = call("keygen", "release")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {existing} exists, and a lost key cannot be made again; choose another path\n",
    )
    assert [path.name for path in project.root.iterdir() if path.name.startswith("release")] == [existing]
    assert (project.root / existing).read_text() == "precious"


def test_a_folder_for_keys_is_made_for_its_owner_alone(project: SampleProject, call: Call) -> None:
    assert call("keygen", "keys/release.key").exit_code == 0
    assert stat.S_IMODE((project.root / "keys").stat().st_mode) == 0o700


def test_a_place_that_cannot_be_written_to_is_told(project: SampleProject, call: Call) -> None:
    project.write({"file": ""})
    assert "cannot write file/key: File exists; choose another path" in call("keygen", "file/key").stderr
