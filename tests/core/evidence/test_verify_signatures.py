"""Every way in which a signature does not count, and what is said about it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from shipctl.errors import GateError, VerificationError
from shipctl.evidence.bundle import PREDICATE_TYPE, bundle_of, sign_package
from shipctl.evidence.dsse import Envelope
from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.verify import Trust, verify_package
from shipctl.records import canonical_json
from support_signing import issue, make_package, native_key, refused, sign_as_it_is, signed

KEY = PrivateKey.generate()
OTHER = PrivateKey.generate("ecdsa-p256")
TRUST = Trust((KEY.public,))
AGAIN = "; do not use this copy; take the package from where it was published again"
DAY = 86400.0


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package signed by KEY."""
    return signed(make_package(tmp_path / "package"), KEY)


def test_an_unsigned_package_is_refused(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "p")
    assert refused(folder, "unsigned", TRUST) == (
        "P is not signed: it has no model.sig; sign it with the stage `sign`, or take it from where it was published"
    )


def test_what_is_no_package_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(
        GateError, match=r"^P is no package: it has neither package\.json nor model\.sig; give its"
    ):
        verify_package(tmp_path / "x", TRUST, label="P")


@pytest.mark.parametrize("step", [0, *(pytest.param(step, marks=pytest.mark.slow) for step in range(1, 9))])
def test_no_byte_of_the_signature_can_be_flipped(package: Path, step: int) -> None:
    """Every byte, in nine parts: base64, names of fields, hints, brackets."""
    path = package / "model.sig"
    original = path.read_bytes()
    for index in range(step, len(original), 9):
        data = bytearray(original)
        data[index] ^= 1
        path.write_bytes(data)
        with pytest.raises(VerificationError) as caught:
            verify_package(package, TRUST)
        assert caught.value.kind in {"signature", "untrusted"}, bytes(data[index - 5 : index + 5])


def test_an_altered_signature_is_said_to_be_one(package: Path) -> None:
    path = package / "model.sig"
    document = json.loads(path.read_bytes())
    signature = document["dsseEnvelope"]["signatures"][0]["sig"]
    document["dsseEnvelope"]["signatures"][0]["sig"] = signature[1:5] + signature[0] + signature[5:]
    path.write_bytes(canonical_json(document))
    assert refused(package, "signature", TRUST) == (
        f"P: model.sig was altered, or is forged: it names key {KEY.public.id}, which did not sign this{AGAIN}"
    )


def test_a_statement_put_under_an_old_signature_is_found(package: Path) -> None:
    (package / "model/weights.bin").write_bytes(b"evil")
    old = json.loads((package / "model.sig").read_bytes())
    sign_as_it_is(package, KEY)
    new = json.loads((package / "model.sig").read_bytes())
    new["dsseEnvelope"]["signatures"] = old["dsseEnvelope"]["signatures"]
    (package / "model.sig").write_bytes(canonical_json(new))
    assert "model.sig was altered, or is forged" in refused(package, "signature", TRUST)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"a\xff", "'utf-8' codec can't decode"),
        (b"{}", "verificationMaterial: field required"),
        (b"[]", "input should be a valid dictionary or instance of Bundle"),
    ],
)
def test_a_signature_that_is_none_is_said(package: Path, data: bytes, reason: str) -> None:
    (package / "model.sig").write_bytes(data)
    message = refused(package, "signature", TRUST)
    assert message.startswith("P: model.sig was altered or is no model signature (")
    assert reason in message


def test_a_keyless_signature_is_told_apart(package: Path) -> None:
    path = package / "model.sig"
    document = json.loads(path.read_bytes())
    document["verificationMaterial"] = {"certificate": {"rawBytes": "AA=="}, "tlogEntries": [{}]}
    path.write_bytes(canonical_json(document))
    assert "P: model.sig was made through Sigstore's public service, which shipctl does not ask" in refused(
        package, "signature", TRUST
    )


def test_a_stranger_who_signs_is_named_with_those_who_are_trusted(package: Path) -> None:
    sign_package(package, OTHER)
    assert refused(package, "untrusted", TRUST) == (
        f"P was signed with key {OTHER.public.id}, which is not trusted here; trusted: {KEY.public.id}. Add the key to "
        "the policy (or --key) if you know whose it is, else do not use this package. (After a change of the key, "
        "`sign` signs anew if its option `public_key` names it.)"
    )


def test_claiming_to_be_a_trusted_key_does_not_help(package: Path) -> None:
    sign_package(package, OTHER)
    path = package / "model.sig"
    path.write_bytes(
        path.read_bytes().replace(OTHER.public.hint.encode(), KEY.public.hint.encode())
        .replace(OTHER.public.id.encode(), KEY.public.id.encode())
    )  # fmt: skip
    assert f"model.sig was altered, or is forged: it names key {KEY.public.id}" in refused(
        package, "signature", TRUST
    )


def test_a_signature_that_names_no_key_is_tried_with_all(package: Path) -> None:
    path = package / "model.sig"
    path.write_bytes(
        path.read_bytes().replace(KEY.public.hint.encode(), b"").replace(KEY.public.id.encode(), b"")
    )
    assert verify_package(package, Trust((OTHER.public, KEY.public))).signer == KEY.public.id
    assert (
        "P was signed with the key whose PEM text has the SHA-256 (not said), which is not trusted"
        in refused(package, "untrusted", Trust((OTHER.public,)))
    )


def test_trusting_nobody_verifies_nothing(package: Path) -> None:
    assert refused(package, "no-trust", Trust()) == (
        "P cannot be verified because no key and no certificate is trusted here: name them with --key or "
        "--certificates, or in a policy"
    )


def test_a_signature_over_something_else_is_refused(package: Path) -> None:
    (package / "model.sig").write_bytes(bundle_of(b'{"_type":"x"}', KEY).dump())
    assert "P: model.sig does not sign what shipctl can verify (a field is missing" in refused(
        package, "signature", TRUST
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "about https://slsa.dev/provenance/v1"),
        ({"subject": []}, "not enough values to unpack"),
        (
            {"subject": [{"name": "x", "digest": {"sha256": "00"}}]},
            "its list of files does not come to its own digest",
        ),
        (
            {"predicate": {"serialization": {"method": "shards", "hash_type": "blake3"}, "resources": []}},
            "blake3 over shards, where shipctl takes sha256 over files",
        ),
    ],
)
def test_statements_that_shipctl_does_not_verify_are_told(
    package: Path, changes: dict[str, Any], reason: str
) -> None:
    assert PREDICATE_TYPE == "https://model_signing/signature/v1.0"
    sign_as_it_is(package, KEY, **changes)
    assert reason in refused(package, "signature", TRUST)


def test_an_envelope_of_another_type_is_refused(package: Path) -> None:
    document = json.loads((package / "model.sig").read_bytes())
    envelope = Envelope.signed(b"{}", KEY, "text/plain")
    document["dsseEnvelope"] = envelope.model_dump(mode="json", by_alias=True)
    (package / "model.sig").write_bytes(canonical_json(document))
    assert "P: model.sig signs text/plain and no in-toto statement" in refused(package, "signature", TRUST)


# -- certificates --------------------------------------------------------------------------------------------------


def test_a_certificate_under_a_trusted_root_is_enough(tmp_path: Path) -> None:
    root = issue("root", ca=True)
    middle = issue("middle", root, ca=True)
    folder = signed(make_package(tmp_path / "p"), (leaf := issue("release", middle)).signing_key(middle))
    found = verify_package(folder, Trust(roots=(root.certificate,), identities=("rel*",)))
    assert found.certificate == "CN=release,O=Example"
    assert found.expires == leaf.certificate.not_valid_after_utc.timestamp()
    assert found.signer == leaf.signing_key().public.id


def test_an_expired_certificate_is_refused_but_not_for_what_was_verified_before(tmp_path: Path) -> None:
    root = issue("root", ca=True, days=(-100, 100))
    folder = signed(
        make_package(tmp_path / "p"), (leaf := issue("release", root, days=(-50, -5))).signing_key()
    )
    trust = Trust(roots=(root.certificate,))
    until = leaf.certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC")
    assert refused(folder, "expired", trust) == (
        f"P: the certificate of CN=release,O=Example expired on {until}; sign again with a current one, or, for what "
        "was verified before that, give the time of it (`--at`)"
    )
    assert verify_package(folder, trust, at=time.time() - 10 * DAY).name == "digits"
    assert "is not valid before" in refused(folder, "not-yet-valid", trust, at=time.time() - 60 * DAY)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("chain", "P: the certificate of CN=release,O=Example does not lead to a trusted root: "),
        (
            "usage",
            "P: the certificate of CN=release,O=Example is not for signing: its key usage does not include ",
        ),
        ("identity", "P: it was signed by CN=release,O=Example alias release, and allowed are somebody"),
        ("untrusted", "P was signed with the certificate of CN=release,O=Example (key sha256:"),
    ],
)
def test_a_certificate_that_does_not_count_says_why(tmp_path: Path, kind: str, message: str) -> None:
    root = issue("root", ca=True)
    leaf = issue("release", root, signing=kind != "usage")
    folder = signed(make_package(tmp_path / "p"), leaf.signing_key())
    trust = {
        "chain": Trust(roots=(issue("other", ca=True).certificate,)),
        "usage": Trust(roots=(root.certificate,)),
        "identity": Trust(roots=(root.certificate,), identities=("somebody",)),
        "untrusted": TRUST,
    }[kind]
    assert refused(folder, kind, trust).startswith(message)


def test_a_certificate_does_not_vouch_for_a_signature_by_another_key(tmp_path: Path) -> None:
    root = issue("root", ca=True)
    mallory = PrivateKey(issue("mallory").key, (issue("release", root).certificate,))
    folder = signed(make_package(tmp_path / "p"), mallory)
    assert "model.sig was altered, or is forged" in refused(
        folder, "signature", Trust(roots=(root.certificate,))
    )


def test_a_certificate_with_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    root = issue("root", ca=True)
    leaf = issue("release", root, key=rsa.generate_private_key(65537, 2048))
    folder = signed(make_package(tmp_path / "p"), PrivateKey(native_key(), (leaf.certificate,)))
    assert refused(folder, "signature", Trust(roots=(root.certificate,))).startswith(
        "P: the certificate in model.sig is a key of kind RSA; shipctl takes Ed25519, and ECDSA on "
    )


def test_a_trusted_key_needs_no_certificate(tmp_path: Path) -> None:
    leaf = issue("release", issue("root", ca=True), days=(-9, -5))
    folder = signed(make_package(tmp_path / "p"), leaf.signing_key())
    assert verify_package(folder, Trust((leaf.signing_key().public,))).certificate == "CN=release,O=Example"
