"""Every way to tamper with the files of a package, and what is said about it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, VerificationError
from shipctl.evidence import contents
from shipctl.evidence.bundle import sign_package
from shipctl.evidence.dsse import Envelope
from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.verify import Trust, verify_package
from support_signing import list_files, make_package, refused, sha256, sign_as_it_is, signed

KEY = PrivateKey.generate()
OTHER = PrivateKey.generate("ecdsa-p256")
TRUST = Trust((KEY.public,))
AGAIN = "; do not use this copy; take the package from where it was published again"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package signed by KEY."""
    return signed(make_package(tmp_path / "package"), KEY)


def test_a_flipped_byte_is_found(package: Path) -> None:
    path = package / "model/weights.bin"
    data = path.read_bytes()
    flipped = data[:1000] + bytes([data[1000] ^ 0x10]) + data[1001:]
    path.write_bytes(flipped)
    assert refused(package, "altered", TRUST) == (
        f"P: model/weights.bin was altered after it was signed: its SHA-256 is {sha256(flipped)[:12]}…, and "
        f"{sha256(data)[:12]}… was signed{AGAIN}"
    )


@pytest.mark.parametrize("size", [0, 2047, 2049])
def test_a_file_cut_or_lengthened_is_found(package: Path, size: int) -> None:
    with (package / "model/weights.bin").open("r+b") as stream:
        stream.truncate(size)
    assert "P: model/weights.bin was altered" in refused(package, "altered", TRUST)


def test_every_altered_file_is_named(package: Path) -> None:
    for name in ("LICENSE", "model/model.onnx"):
        (package / name).write_bytes(b"")
    assert [line[: line.index(" was")] for line in refused(package, "altered", TRUST).splitlines()] == [
        "P: LICENSE",
        "P: model/model.onnx",
    ]


def test_an_altered_manifest_is_named_as_what_it_is(package: Path) -> None:
    path = package / "package.json"
    path.write_text(path.read_text().replace("1.1.0", "1.2.0"))
    assert refused(package, "altered", TRUST).startswith(
        "P: package.json, which says what the package is, was altered after it was signed: its SHA-256 is "
    )


def test_a_missing_file_is_found(package: Path) -> None:
    (package / "model/weights.bin").unlink()
    assert refused(package, "missing", TRUST) == f"P: model/weights.bin was signed and is missing{AGAIN}"


@pytest.mark.parametrize(
    "name", ["package.json", "evidence/provenance.dsse.json", "evidence/provenance.json"]
)
def test_no_part_of_the_evidence_can_be_left_out(package: Path, name: str) -> None:
    (package / name).unlink()
    assert refused(package, "missing", TRUST) == f"P: {name} was signed and is missing{AGAIN}"


@pytest.mark.parametrize(
    "name", ["model/hook.py", ".git/config", ".gitignore", "model.sig.bak", "model/.hidden"]
)
def test_a_surplus_file_is_found(package: Path, name: str) -> None:
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("import os")
    assert (
        refused(package, "surplus", TRUST)
        == f"P: {name} was not signed and does not belong to the package{AGAIN}"
    )


def test_a_surplus_folder_is_found(package: Path) -> None:
    (package / "model/2/deep").mkdir(parents=True)
    assert (
        refused(package, "surplus", TRUST)
        == f"P: the empty folder model/2/deep does not belong to the package{AGAIN}"
    )


def test_a_name_that_deceives_a_terminal_is_escaped(package: Path) -> None:
    (package / "model/ok\x1b[2K\r").write_text("")
    assert r"P: 'model/ok\x1b[2K\r' was not signed" in refused(package, "surplus", TRUST)


def test_a_name_that_is_no_text_is_escaped(package: Path) -> None:
    (Path(os.fsdecode(os.fsencode(package) + b"/\xff"))).write_text("")
    assert r"P: '\udcff' was not signed" in refused(package, "surplus", TRUST)


def test_many_surplus_files_are_counted(package: Path) -> None:
    for number in range(25):
        (package / f"x{number:02}").write_text("")
    lines = refused(package, "surplus", TRUST).splitlines()
    assert len(lines) == 11
    assert lines[-1] == f"and 15 more{AGAIN}"


@pytest.mark.parametrize("target", ["/etc/passwd", "weights.bin", "nowhere"])
def test_a_link_is_refused_even_to_the_same_bytes(package: Path, target: str) -> None:
    path = package / "model/model.onnx"
    path.unlink()
    path.symlink_to(target)
    assert refused(package, "link", TRUST) == (
        f"P: model/model.onnx is a link to {target}; a package has plain files only: do not use this copy; take the "
        "package from where it was published again"
    )


def test_a_folder_may_not_be_a_link(package: Path, tmp_path: Path) -> None:
    shutil.move(package / "model", tmp_path / "elsewhere")
    (package / "model").symlink_to(tmp_path / "elsewhere")
    assert "P: model is a link to " in refused(package, "link", TRUST)


def test_a_pipe_is_refused_and_not_read(package: Path) -> None:
    (package / "LICENSE").unlink()
    os.mkfifo(package / "LICENSE")
    assert "P: LICENSE is not a plain file; a package has nothing else" in refused(package, "special", TRUST)


def test_a_set_user_id_bit_is_refused(package: Path) -> None:
    (package / "LICENSE").chmod(0o4755)
    assert "P: LICENSE has the set-user-ID or set-group-ID bit" in refused(package, "mode", TRUST)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["LICENSE", "model"])
def test_what_cannot_be_read_is_not_passed_over(package: Path, name: str) -> None:
    (package / name).chmod(0)
    try:
        assert f"P: {name} cannot be read: Permission denied" in refused(package, "unreadable", TRUST)
    finally:
        (package / name).chmod(0o755)


def test_a_file_that_vanishes_meanwhile_is_no_crash(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = contents.hash_files

    def vanish(folder: Path, names: list[str], label: str) -> Any:
        (folder / "LICENSE").unlink()
        return real(folder, names, label)

    monkeypatch.setattr(contents, "hash_files", vanish)
    assert "P: LICENSE cannot be read: No such file or directory" in refused(package, "unreadable", TRUST)


def test_a_manifest_swapped_after_it_was_hashed_is_found(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = contents.hash_files

    def swap(folder: Path, names: list[str], label: str) -> Any:
        found = real(folder, names, label)
        path = folder / "package.json"
        path.write_text(path.read_text().replace("1.1.0", "9.9.9"))
        return found

    monkeypatch.setattr(contents, "hash_files", swap)
    assert "P: package.json changed while it was verified" in refused(package, "altered", TRUST)


# -- another package -----------------------------------------------------------------------------------------------


def test_an_older_version_in_its_place_is_found(tmp_path: Path) -> None:
    old = signed(make_package(tmp_path / "old", version="1.0.0"), KEY)
    assert refused(old, "expected", TRUST, expect="digits@1.1.0") == (
        "P: this is digits@1.0.0, correctly signed, and digits@1.1.0 was expected: an older version was put in its "
        "place; find out who moved it, and take the package from where it was published again"
    )
    assert "1.10.0 was expected: an older version" in refused(
        signed(make_package(tmp_path / "b", version="1.9.0"), KEY), "expected", TRUST, expect="digits@1.10.0"
    )


def test_another_package_in_its_place_is_found(tmp_path: Path) -> None:
    new = signed(make_package(tmp_path / "new", version="2.0.0"), KEY)
    assert "digits@1.1.0 was expected: another version was put" in refused(
        new, "expected", TRUST, expect="digits@1.1.0"
    )
    cats = signed(make_package(tmp_path / "cats", name="cats"), KEY)
    assert (
        "this is cats@1.1.0, correctly signed, and digits@1.1.0 was expected: another model was put"
        in refused(cats, "expected", TRUST, expect="digits@1.1.0")
    )


@pytest.mark.parametrize("expect", ["digits", "digits@", "@1.0.0", "digits@production", "digits@1.0"])
def test_what_is_expected_has_to_be_one_version(package: Path, expect: str) -> None:
    with pytest.raises(SpecError, match=r"is no NAME@VERSION; write it like digits@1\.4\.0$"):
        verify_package(package, TRUST, expect=expect)


# -- signed, and yet wrong -----------------------------------------------------------------------------------------


def test_a_manifest_that_lists_something_else_is_refused_though_signed(package: Path) -> None:
    (package / "model/extra.bin").write_text("x")
    (package / "LICENSE").write_text("other")
    sign_as_it_is(package, KEY)
    assert refused(package, "manifest", TRUST) == (
        "P: package.json lists LICENSE with another digest or size than it has\n"
        "P: package.json does not list model/extra.bin; it was put together wrongly: have it packaged and signed again"
    )
    (package / "model/extra.bin").unlink()
    (package / "LICENSE").unlink()
    sign_as_it_is(package, KEY)
    assert "P: package.json lists LICENSE, which the package does not have;" in refused(
        package, "manifest", TRUST
    )


def test_a_signed_folder_that_is_no_package_is_refused(package: Path) -> None:
    (package / "package.json").unlink()
    sign_as_it_is(package, KEY)
    assert "P is signed, but has no package.json" in refused(package, "manifest", TRUST)


def test_a_manifest_that_cannot_be_read_is_refused(package: Path) -> None:
    (package / "package.json").write_text("{}")
    sign_as_it_is(package, KEY)
    assert "is not a package manifest of this version of shipctl" in refused(package, "manifest", TRUST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda body: body["subject"][0]["digest"].update(sha256="0" * 64),
            "P: evidence/provenance.json is about other files: its subject model/model.onnx (000000000000…) has",
        ),
        (
            lambda body: body["subject"][0].update(name="model/other.onnx"),
            "P: evidence/provenance.json is about other files: its subject model/other.onnx (",
        ),
        (
            lambda body: body.update(subject=[]),
            "P: evidence/provenance.json is no in-toto statement with subjects",
        ),
        (
            lambda body: body.pop("subject"),
            "P: evidence/provenance.json is no in-toto statement with subjects",
        ),
        (
            lambda body: body["predicate"]["buildDefinition"]["externalParameters"].update(version="1.0.0"),
            "P: evidence/provenance.json is about digits@1.0.0 and the package is digits@1.1.0",
        ),
    ],
)
def test_a_provenance_about_something_else_is_refused_though_signed(
    package: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = package / "evidence/provenance.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    (package / "evidence/provenance.dsse.json").write_bytes(Envelope.signed(path.read_bytes(), KEY).dump())
    list_files(package)
    sign_as_it_is(package, KEY)
    assert refused(package, "provenance", TRUST).startswith(message)
    with pytest.raises(VerificationError):
        sign_package(package, KEY)


def test_a_provenance_signed_by_another_key_is_refused(package: Path) -> None:
    path = package / "evidence/provenance.dsse.json"
    path.write_bytes(Envelope.signed((package / "evidence/provenance.json").read_bytes(), OTHER).dump())
    sign_as_it_is(package, KEY)
    assert refused(package, "provenance", TRUST) == (
        f"P: evidence/provenance.dsse.json was signed by another key ({OTHER.public.id}) than the package "
        f"({KEY.public.id}); have the package signed again by `sign`"
    )


def test_an_envelope_around_another_statement_is_refused(package: Path) -> None:
    path = package / "evidence/provenance.dsse.json"
    path.write_bytes(Envelope.signed(b"{}", KEY).dump())
    sign_as_it_is(package, KEY)
    assert "provenance.dsse.json signs another statement than evidence/provenance.json" in refused(
        package, "provenance", TRUST
    )


def test_an_envelope_without_its_statement_is_refused(package: Path) -> None:
    (package / "evidence/provenance.json").unlink()
    list_files(package)
    sign_as_it_is(package, KEY)
    assert "evidence/provenance.dsse.json is there without evidence/provenance.json" in refused(
        package, "provenance", TRUST
    )
