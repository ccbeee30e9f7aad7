from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.errors import GateError, SpecError, StageError, UnavailableError
from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.verify import Trust, verify_package
from shipctl.stages.artifacts import Artifact, ModelPackage, OnnxModel
from shipctl.stages.context import CheckContext, StageContext
from shipctl.store.local import LocalStore
from shipctl.testing import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins.package.sign import Inputs, Options, Sign
from support_packaging import full_case
from support_signing import issue, make_package, package_artifact

KEY = PrivateKey.generate("ecdsa-p256")
PEM = KEY.pem().decode()
OPENSSL = ("openssl", "dgst", "-sha256", "-sign")


class TestSign(StageConformance):
    """The promises that every stage makes."""

    stage = "sign"
    options: ClassVar[Mapping[str, Any]] = {"key": PEM}

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        folder = tmp_path / "inputs/package"
        return {"package": package_artifact(folder if folder.exists() else make_package(folder))}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def unsigned(tmp_path: Path, store: LocalStore) -> ModelPackage:
    """A package as the engine hands it over: a view of the store."""
    artifact = store.publish(package_artifact(make_package(tmp_path / "made/p")), tmp_path / "made")
    return store.view(artifact, tmp_path / "view")


def sign(tmp_path: Path, package: ModelPackage, **options: Any) -> ModelPackage:
    workdir = tmp_path / "out"
    workdir.mkdir(exist_ok=True)
    said: list[str] = []
    made = Sign(Options.model_validate(options)).run(
        Inputs(package=package), StageContext(workdir=workdir, log=said.append)
    )
    assert said == [f"signed {package.name}@{package.version} with {made.package.signer}"]
    return made.package


def test_a_signed_package_goes_through_the_store_unharmed(
    tmp_path: Path, store: LocalStore, unsigned: ModelPackage
) -> None:
    made = sign(tmp_path, unsigned, key=PEM)
    published = store.publish(made, tmp_path / "out", {PEM.splitlines()[1].encode(): "signing_key"})
    found = verify_package(store.view(published, tmp_path / "again").root, Trust((KEY.public,)))
    assert found.digest == published.digest
    assert published.signer == KEY.public.id == found.signer
    added = {entry.path for entry in published.files} - {entry.path for entry in unsigned.files}
    assert added == {"model.sig", "evidence/provenance.dsse.json"}
    for entry in unsigned.files:
        assert store.verify(entry).stat().st_mode & 0o777 == 0o444


def test_what_the_package_stage_makes_is_signed_and_verified(
    tmp_path: Path, digits_onnx: OnnxModel, specs: Path
) -> None:
    case = full_case(tmp_path, digits_onnx, specs / "data")
    made = sealed(sign(tmp_path, sealed(case.run().package), key=PEM))
    found = verify_package(made.root, Trust((KEY.public,)), expect=f"{made.name}@{made.version}")
    assert found.digest == made.digest


def test_the_packages_files_are_not_copied(tmp_path: Path, unsigned: ModelPackage) -> None:
    made = sign(tmp_path, unsigned, key=PEM)
    assert (made.root / "model/weights.bin").samefile(unsigned.root / "model/weights.bin")


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, unsigned: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    made = sign(tmp_path, unsigned, key=PEM)
    assert not (made.root / "model/weights.bin").samefile(unsigned.root / "model/weights.bin")
    assert verify_package(made.root, Trust((KEY.public,))).files == 8


def test_a_signed_package_is_signed_anew(tmp_path: Path, store: LocalStore, unsigned: ModelPackage) -> None:
    first = store.publish(sign(tmp_path, unsigned, key=PEM), tmp_path / "out")
    before = first.digest
    other = PrivateKey.generate()
    again = sign(tmp_path / "out", store.view(first, tmp_path / "signed"), key=other.pem().decode())
    assert verify_package(again.root, Trust((other.public,))).signer == other.public.id
    assert verify_package(store.view(first, tmp_path / "signed").root, Trust((KEY.public,))).digest == before


def test_an_encrypted_key_needs_its_password(tmp_path: Path, unsigned: ModelPackage) -> None:
    pem = KEY.pem("correct horse").decode()
    assert sign(tmp_path, unsigned, key=pem, password="correct horse").signer == KEY.public.id
    with pytest.raises(StageError, match=r"^key is encrypted; give its password$"):
        sign(tmp_path, unsigned, key=pem)


def test_a_certificate_chain_goes_into_the_signature(tmp_path: Path, unsigned: ModelPackage) -> None:
    root = issue("root", ca=True)
    middle = issue("middle", root, ca=True)
    leaf = issue("release", middle)
    (tmp_path / "chain.pem").write_text(middle.pem + leaf.pem)
    made = sign(
        tmp_path, unsigned, key=leaf.signing_key().pem().decode(), certificates=str(tmp_path / "chain.pem")
    )
    found = verify_package(made.root, Trust(roots=(root.certificate,)))
    assert found.certificate == "CN=release,O=Example"
    with pytest.raises(StageError, match=r"^none of the certificates .* is for the signing key sha256:"):
        sign(tmp_path, unsigned, key=PEM, certificates=leaf.pem)
    expired = issue("release", root, days=(-9, -1))
    with pytest.raises(StageError, match=r"^the certificate of CN=release,O=Example expired on "):
        sign(tmp_path, unsigned, key=expired.signing_key().pem().decode(), certificates=expired.pem)


def test_a_public_key_has_to_be_the_private_ones(tmp_path: Path, unsigned: ModelPackage) -> None:
    assert sign(tmp_path, unsigned, key=PEM, public_key=KEY.public.pem()).signer == KEY.public.id
    other = PrivateKey.generate().public
    with pytest.raises(
        StageError,
        match=f"^the private key is {KEY.public.id} and public_key is {other.id}; give the two halves of one key$",
    ):
        sign(tmp_path, unsigned, key=PEM, public_key=other.pem())


def test_a_command_signs_with_a_key_that_nobody_sees(tmp_path: Path, unsigned: ModelPackage) -> None:
    (tmp_path / "hsm.pem").write_text(PEM)
    (tmp_path / "key.pub").write_text(KEY.public.pem())
    command = [*OPENSSL, str(tmp_path / "hsm.pem")]
    made = sign(tmp_path, unsigned, command=command, public_key=str(tmp_path / "key.pub"))
    assert verify_package(made.root, Trust((KEY.public,))).signer == KEY.public.id
    with pytest.raises(StageError, match=r"^signing command false ended with 1: it said nothing$"):
        sign(tmp_path, unsigned, command=["false"], public_key=KEY.public.pem())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of `key` (from a secret) and `command`"),
        ({"key": PEM, "command": ["true"]}, "give exactly one of `key` (from a secret) and `command`"),
        ({"command": ["true"]}, "`command` needs `public_key`: the key that its signatures are checked with"),
    ],
)
def test_options_that_do_not_fit_together_are_told(
    tmp_path: Path, unsigned: ModelPackage, options: dict[str, Any], message: str
) -> None:
    stage = Sign(Options.model_validate(options))
    with pytest.raises(SpecError) as early:
        stage.check(CheckContext(project=tmp_path, pipeline="digits"))
    with pytest.raises(StageError) as late:
        sign(tmp_path, unsigned, **options)
    assert str(early.value) == str(late.value) == message


def test_a_program_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    context = CheckContext(project=tmp_path, pipeline="digits")
    public = KEY.public.pem()
    Sign(Options(command=(sys.executable,), public_key=public)).check(context)
    Sign(Options(key=PEM)).check(context)
    with pytest.raises(
        UnavailableError, match=r"^needs the program kms-sign, which signs; install it, or give its"
    ):
        Sign(Options(command=("kms-sign",), public_key=public)).check(context)


def test_the_private_key_is_in_nothing_that_is_shown_or_stored(
    tmp_path: Path, unsigned: ModelPackage
) -> None:
    made = sign(tmp_path, unsigned, key=PEM, password=None)
    secret = PEM.splitlines()[1]
    assert secret not in repr(Options(key=PEM))
    assert all(secret.encode() not in path.read_bytes() for path in made.root.rglob("*") if path.is_file())
    assert secret not in repr(made)
    for bad in (PEM.replace("A", "B"), PEM[:-60], PEM + PEM):
        with pytest.raises(StageError) as caught:
            sign(tmp_path, unsigned, key=bad)
        assert all(line not in str(caught.value) for line in PEM.splitlines()[1:-1])


def test_a_package_that_does_not_agree_with_itself_is_not_signed(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "p")
    (folder / "stray.txt").write_text("x")
    with pytest.raises(GateError, match=r"package\.json does not list stray\.txt"):
        sign(tmp_path, package_artifact(folder), key=PEM)
