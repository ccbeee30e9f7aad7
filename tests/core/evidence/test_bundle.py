"""Signing packages, and verifying those that are right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import GateError
from shipctl.evidence import contents
from shipctl.evidence.archives import write_oci, write_tar
from shipctl.evidence.bundle import sign_package
from shipctl.evidence.keys import ALGORITHMS, Algorithm, PrivateKey
from shipctl.evidence.verify import Trust, Verified, verify_package
from shipctl.store.files import hash_file
from support_signing import make_package, package_artifact, refused, signed

KEY = PrivateKey.generate()
OTHER = PrivateKey.generate("ecdsa-p256")
TRUST = Trust((KEY.public,))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package signed by KEY."""
    return signed(make_package(tmp_path / "package"), KEY)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signed_package_is_verified(tmp_path: Path, algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    folder = signed(make_package(tmp_path / "p"), key)
    found = verify_package(folder, Trust((OTHER.public, key.public)), expect="digits@1.1.0")
    artifact = package_artifact(folder, signer=key.public.id)
    assert found == Verified(
        name="digits",
        version="1.1.0",
        digest=artifact.digest,
        signer=key.public.id,
        algorithm=algorithm,
        files=8,
        bytes=artifact.size,
        entries=artifact.files,
    )
    assert found.reference == "digits@1.1.0"


def test_signing_is_repeatable_and_replaces_what_is_there(package: Path) -> None:
    first = {path.name: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    sign_package(package, KEY)
    assert {path.name: path.read_bytes() for path in package.rglob("*") if path.is_file()} == first
    sign_package(package, OTHER)
    assert verify_package(package, Trust((OTHER.public,))).signer == OTHER.public.id


def test_an_archive_is_verified_as_its_folder(package: Path, tmp_path: Path) -> None:
    write_tar(package, tmp_path / "package.tar")
    write_oci(package, tmp_path / "layout", name="digits", version="1.1.0")
    found = verify_package(package, TRUST)
    assert verify_package(tmp_path / "package.tar", TRUST) == found
    assert verify_package(tmp_path / "layout", TRUST) == found


def test_a_byte_flipped_in_an_archive_is_found(package: Path, tmp_path: Path) -> None:
    tar = tmp_path / "package.tar"
    write_tar(package, tar)
    data = bytearray(tar.read_bytes())
    at = data.index(b"\x08\x0a weights")
    data[at] ^= 1
    tar.write_bytes(data)
    assert "P: model/model.onnx was altered after it was signed" in refused(tar, "altered", TRUST)


def test_a_package_without_provenance_can_be_signed(tmp_path: Path) -> None:
    folder = signed(make_package(tmp_path / "p", provenance=False), KEY)
    assert not (folder / "evidence/provenance.dsse.json").exists()
    assert verify_package(folder, TRUST).files == 6


def test_links_within_the_store_are_no_tampering(package: Path, tmp_path: Path) -> None:
    os.link(package / "LICENSE", tmp_path / "blob")
    assert verify_package(package, TRUST).files == 8


def test_digests_that_the_caller_has_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_package(tmp_path / "p")
    files = package_artifact(folder).files
    monkeypatch.setattr(contents, "hash_file", lambda path: pytest.fail(f"{path} was hashed"))
    sign_package(folder, KEY, files=files)
    monkeypatch.undo()
    assert verify_package(folder, TRUST).files == 8


def test_each_file_is_hashed_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = hash_file

    def count(path: Path) -> Any:
        seen.append(path.relative_to(package).as_posix())
        return real(path)

    monkeypatch.setattr(contents, "hash_file", count)
    found = verify_package(package, TRUST)
    assert sorted(seen) == sorted(entry.path for entry in found.entries if entry.path != "model.sig")


# -- signing -------------------------------------------------------------------------------------------------------


def test_what_does_not_agree_with_itself_is_not_signed(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "p")
    (folder / "stray.txt").write_text("x")
    with pytest.raises(GateError, match=r"^digits@1\.1\.0: package\.json does not list stray\.txt"):
        sign_package(folder, KEY)
    assert not (folder / "model.sig").exists()


def test_files_that_other_verifiers_leave_out_are_not_signed(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "p", extra={".gitattributes": b"* text"})
    with pytest.raises(
        GateError, match=r"^digits@1\.1\.0 has \.gitattributes, which tools that verify models leave"
    ):
        sign_package(folder, KEY)


def test_what_is_no_package_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"is no package: it has no package\.json$"):
        sign_package(tmp_path, KEY)
