from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from shipctl.errors import SpecError
from shipctl.evidence.keys import ALGORITHMS, Algorithm, CommandKey, PrivateKey, PublicKey
from support_signing import issue, sha256

MESSAGE = b"DSSEv1 4 text 2 hi"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_signs_what_its_public_half_verifies(algorithm: Algorithm) -> None:
    key = PrivateKey.load(PrivateKey.generate(algorithm).pem())
    public = PublicKey.load(key.public.pem(), "key.pub")
    signature = key.sign(MESSAGE)
    assert public == key.public
    assert public.algorithm == algorithm
    assert public.verifies(signature, MESSAGE)
    assert not public.verifies(signature, MESSAGE + b"!")
    assert not public.verifies(signature[:-1], MESSAGE)
    assert not PrivateKey.generate(algorithm).public.verifies(signature, MESSAGE)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signing_twice_gives_equal_bytes(algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    assert key.sign(MESSAGE) == key.sign(MESSAGE)


def test_the_id_is_the_digest_of_the_public_key_in_der() -> None:
    public = PrivateKey.generate().public
    der = public.native.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public.id == f"sha256:{sha256(der)}"


def test_an_encrypted_key_opens_with_its_password_only() -> None:
    key = PrivateKey.generate("ecdsa-p256")
    pem = key.pem("correct horse")
    assert b"ENCRYPTED" in pem
    assert PrivateKey.load(pem, password="correct horse").public == key.public
    with pytest.raises(SpecError, match=r"^the signing key is encrypted; give its password$"):
        PrivateKey.load(pem)
    with pytest.raises(
        SpecError, match=r"cannot be opened: the password is wrong, or the key is damaged$"
    ) as caught:
        PrivateKey.load(pem, password="battery staple")
    assert caught.value.__cause__ is None


def test_a_password_for_a_key_without_one_is_refused() -> None:
    with pytest.raises(SpecError, match="is not encrypted, so its password protects nothing; leave out one"):
        PrivateKey.load(PrivateKey.generate().pem(), password="x")


def test_keys_in_the_form_of_openssl_ecparam_are_read() -> None:
    native = ec.generate_private_key(ec.SECP256R1())
    pem = native.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert PrivateKey.load(parameters + pem).public.algorithm == "ecdsa-p256"


def test_other_kinds_of_keys_are_named() -> None:
    other = rsa.generate_private_key(65537, 2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    taken = "shipctl takes Ed25519, and ECDSA on P-256, P-384 or P-521: `shipctl keygen`"
    with pytest.raises(SpecError, match=f"^the signing key is a key of kind RSA; {taken}$"):
        PrivateKey.load(pem)
    curve = ec.generate_private_key(ec.SECP256K1()).public_key()
    public = curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(SpecError, match=r"k\.pub is a key of kind curve secp256k1; "):
        PublicKey.load(public, "k.pub")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "k has no public key in PEM form; it begins with `-----BEGIN PUBLIC KEY-----`"),
        (
            "private",
            "k holds a private key; give the public one, which `shipctl keygen` writes beside it as .pub",
        ),
        ("certificate", "k is a certificate; give it as one (`--certificates`, `certificates:`)"),
        ("two", "k holds several keys; give each a file of its own"),
        ("damaged", "k cannot be read as a public key ("),
    ],
)
def test_what_is_no_public_key_is_said(text: str, message: str) -> None:
    key = PrivateKey.generate()
    pem = {
        "": "",
        "private": key.pem().decode(),
        "certificate": issue("x").pem,
        "two": key.public.pem() * 2,
        "damaged": "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n",
    }[text]
    with pytest.raises(SpecError) as caught:
        PublicKey.load(pem, "k")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        ("no key", "key has no private key in PEM form and needs one"),
        ("openssh", "key is in OpenSSH's own form; rewrite it with `ssh-keygen -p -m PKCS8 -f FILE`"),
        ("damaged", "key cannot be opened: it is damaged, or cut off"),
    ],
)
def test_what_is_no_private_key_is_said_without_quoting_it(pem: str, message: str) -> None:
    native = ec.generate_private_key(ec.SECP256R1())
    text = {
        "no key": "hello",
        "openssh": native.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
        "damaged": "-----BEGIN PRIVATE KEY-----\nMIGHsecret\n-----END PRIVATE KEY-----\n",
    }[pem]
    with pytest.raises(SpecError) as caught:
        PrivateKey.load(text, where="key")
    assert str(caught.value).startswith(message)
    assert "MIGH" not in str(caught.value)


def test_a_private_key_is_not_in_its_repr() -> None:
    key = PrivateKey.generate()
    assert base64.b64encode(key.pem())[:20].decode() not in repr(key)
    assert "PRIVATE" not in repr(vars(key))


# -- commands ------------------------------------------------------------------------------------------------------

SIGNER = """
import base64, sys
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
key = load_pem_private_key(open(sys.argv[1], "rb").read(), None)
message = sys.stdin.buffer.read()
if isinstance(key, ec.EllipticCurvePrivateKey):
    size = (key.key_size + 7) // 8
    digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.key_size]
    signature = key.sign(message, ec.ECDSA(digest))
    if "raw" in sys.argv:
        signature = b"".join(part.to_bytes(size) for part in decode_dss_signature(signature))
else:
    signature = key.sign(message)
sys.stdout.buffer.write(base64.encodebytes(signature) if "base64" in sys.argv else signature)
"""


@pytest.fixture
def signer(tmp_path: Path) -> Path:
    """A program that signs, as a script around a KMS would."""
    path = tmp_path / "signer.py"
    path.write_text(SIGNER)
    return path


def stored(key: PrivateKey, tmp_path: Path) -> str:
    path = tmp_path / "in-the-hsm.pem"
    path.write_bytes(key.pem())
    return str(path)


@pytest.mark.parametrize("form", [[], ["raw"], ["base64"], ["raw", "base64"]])
@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256", "ecdsa-p521"])
def test_a_command_may_answer_in_any_usual_form(
    tmp_path: Path, signer: Path, algorithm: Algorithm, form: list[str]
) -> None:
    key = PrivateKey.generate(algorithm)
    command = CommandKey([sys.executable, str(signer), stored(key, tmp_path), *form], key.public)
    assert key.public.verifies(command.sign(MESSAGE), MESSAGE)


def test_openssl_is_such_a_command(tmp_path: Path) -> None:
    key = PrivateKey.generate("ecdsa-p384")
    command = CommandKey(["openssl", "dgst", "-sha384", "-sign", stored(key, tmp_path)], key.public)
    assert key.public.verifies(command.sign(MESSAGE), MESSAGE)


def test_a_command_that_signs_with_another_key_is_found_out(tmp_path: Path, signer: Path) -> None:
    public = PrivateKey.generate().public
    command = CommandKey([sys.executable, str(signer), stored(PrivateKey.generate(), tmp_path)], public)
    with pytest.raises(
        SpecError,
        match=f"answered 64 bytes that are no signature of its input by key {public.id} \\(ed25519\\); check that"
        " public_key is this key's",
    ):
        command.sign(MESSAGE)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            [sys.executable, "-c", "raise SystemExit('the token is locked')"],
            "ended with 1: the token is locked$",
        ),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with 3: it said nothing$"),
        (
            ["/no/such/program"],
            "/no/such/program cannot be run: No such file or directory; give its full path$",
        ),
        ([sys.executable, "-c", "print('x' * 9999)"], "answered 10000 bytes that are no signature"),
        (
            [sys.executable, "-c", "import time; time.sleep(9)"],
            "did not answer within 0.3 s; try it by hand$",
        ),
    ],
)
def test_a_command_that_fails_is_told_with_its_reason(command: list[str], message: str) -> None:
    timeout = 0.3 if "sleep" in command[-1] else 30
    with pytest.raises(SpecError, match=message):
        CommandKey(command, PrivateKey.generate().public, timeout=timeout).sign(MESSAGE)


def test_openssl_takes_our_keys(tmp_path: Path) -> None:
    """The id that the documentation computes with openssl is ours."""
    public = PrivateKey.generate("ecdsa-p256").public
    path = tmp_path / "key.pub"
    path.write_text(public.pem())
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", str(path), "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert public.id == f"sha256:{sha256(der)}"
