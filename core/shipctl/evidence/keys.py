"""Keys: private ones that sign, from a file or behind a command, and the public ones that verify.

Ed25519 (RFC 8032, over the message itself) and ECDSA on P-256, P-384 and P-521 (with SHA-256, SHA-384 and SHA-512,
as Sigstore pairs them; deterministic by RFC 6979 where the key is here, so that signing twice gives equal bytes).
A key's id is ``sha256:`` and the SHA-256 (hex) of its public half as SubjectPublicKeyInfo in DER:
``openssl pkey -pubin -in KEY.pub -outform DER | sha256sum``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from shipctl.errors import SpecError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm
    from cryptography.x509 import Certificate

    NativePublic: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey
    NativePrivate: TypeAlias = Ed25519PrivateKey | EllipticCurvePrivateKey

Algorithm: TypeAlias = Literal["ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
_CURVES: dict[str, Algorithm] = {
    "secp256r1": "ecdsa-p256",
    "secp384r1": "ecdsa-p384",
    "secp521r1": "ecdsa-p521",
}
_TAKEN = "shipctl takes Ed25519, and ECDSA on P-256, P-384 or P-521: `shipctl keygen`"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_MAX_SIGNATURE = 4096
"""Bytes that a signing command may answer; the longest signature has 139 of them, 188 in base64."""
_COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class PublicKey:
    """The half of a key that verifies."""

    id: str
    """``sha256:`` and the SHA-256 (hex) of its SubjectPublicKeyInfo in DER."""
    algorithm: Algorithm
    native: NativePublic = field(repr=False, compare=False)

    @classmethod
    def of(cls, native: object, where: str) -> PublicKey:
        """Return a key of the library `cryptography` as ours; ``where`` says in an error which one it is.

        :raises SpecError: for a kind of key that shipctl does not take
        """
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        algorithm: Algorithm | None = None
        if isinstance(native, Ed25519PublicKey):
            algorithm = "ed25519"
        elif isinstance(native, EllipticCurvePublicKey):
            algorithm = _CURVES.get(native.curve.name)
        if algorithm is None or not isinstance(native, Ed25519PublicKey | EllipticCurvePublicKey):
            what = (
                f"curve {native.curve.name}" if isinstance(native, EllipticCurvePublicKey) else _kind(native)
            )
            raise SpecError(f"{where} is a key of kind {what}; {_TAKEN}")
        return cls(f"sha256:{hashlib.sha256(_public_der(native)).hexdigest()}", algorithm, native)

    @classmethod
    def load(cls, pem: str | bytes, where: str) -> PublicKey:
        """Read the only public key of a PEM text.

        :raises SpecError: if it is none, or something else
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        blocks = pem_blocks(pem)
        labels = [label for label, _ in blocks]
        if labels != ["PUBLIC KEY"]:
            raise SpecError(f"{where} {_not_public(labels)}")
        try:
            native = load_pem_public_key(blocks[0][1])
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise SpecError(
                f"{where} cannot be read as a public key ({_reason(exc)}); write it again"
            ) from None
        return cls.of(native, where)

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read a public key from a PEM file.

        :raises SpecError: if it cannot be read
        """
        return cls.load(read_key_file(path), str(path))

    def pem(self) -> str:
        """Return it as PEM text (SubjectPublicKeyInfo)."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.native.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def hint(self) -> str:
        """The SHA-256 (hex) of its PEM text: what OpenSSF model signing writes into a bundle to name a key."""
        return hashlib.sha256(self.pem().encode()).hexdigest()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` (ECDSA in DER, Ed25519 as 64 bytes) of ``message`` was made with the private half."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            if isinstance(self.native, ec.EllipticCurvePublicKey):
                self.native.verify(signature, message, ec.ECDSA(_hash_of(self.algorithm)))
            else:
                self.native.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey(ABC):
    """Something that signs: its public half, and the certificates that say whose it is, its own first."""

    def __init__(self, public: PublicKey, certificates: Sequence[Certificate] = ()) -> None:
        self.public = public
        self.certificates = tuple(certificates)

    @abstractmethod
    def sign(self, message: bytes) -> bytes:
        """Return the signature of ``message``: ECDSA in DER, Ed25519 as 64 bytes.

        :raises SpecError: if the key cannot be used
        """


class PrivateKey(SigningKey):
    """A private key in this process's memory. It is in no repr, message or output."""

    def __init__(self, native: NativePrivate, certificates: Sequence[Certificate] = ()) -> None:
        super().__init__(PublicKey.of(native.public_key(), "the signing key"), certificates)
        self._native = native

    @classmethod
    def load(
        cls,
        pem: str | bytes,
        *,
        password: str | None = None,
        certificates: Sequence[Certificate] = (),
        where: str = "the signing key",
    ) -> PrivateKey:
        """Read a private key from PEM text (PKCS#8 or SEC 1).

        :raises SpecError: if it is none, is of another kind, or does not open with the password
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        blocks = pem_blocks(pem)
        found = [block for label, block in blocks if label.endswith("PRIVATE KEY")]
        if any(label == "OPENSSH PRIVATE KEY" for label, _ in blocks):
            raise SpecError(
                f"{where} is in OpenSSH's own form; rewrite it with `ssh-keygen -p -m PKCS8 -f FILE`, or make one with"
                " `shipctl keygen`"
            )
        if len(found) != 1:
            raise SpecError(
                f"{where} has {len(found) or 'no'} private key{'s'[: len(found)]} in PEM form and needs one:"
                " `-----BEGIN PRIVATE KEY-----` and the lines to its end"
            )
        encrypted = b"ENCRYPTED" in found[0]
        if encrypted and password is None:
            raise SpecError(f"{where} is encrypted; give its password")
        if not encrypted and password is not None:
            raise SpecError(
                f"{where} is not encrypted, so its password protects nothing; leave out one of the two"
            )
        try:
            native = load_pem_private_key(found[0], password.encode() if password is not None else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # not quoted: it could quote the key
            why = "the password is wrong, or the key is damaged" if encrypted else "it is damaged, or cut off"
            raise SpecError(f"{where} cannot be opened: {why}") from None
        if not isinstance(native, Ed25519PrivateKey | EllipticCurvePrivateKey):
            raise SpecError(f"{where} is a key of kind {_kind(native)}; {_TAKEN}")
        return cls(native, certificates)

    @classmethod
    def generate(cls, algorithm: Algorithm = "ed25519") -> PrivateKey:
        """Make a new key."""
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519

        if algorithm == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        curves: dict[str, ec.EllipticCurve] = {
            "ecdsa-p256": ec.SECP256R1(),
            "ecdsa-p384": ec.SECP384R1(),
            "ecdsa-p521": ec.SECP521R1(),
        }
        return cls(ec.generate_private_key(curves[algorithm]))

    def pem(self, password: str | None = None) -> bytes:
        """Return the private key as PEM text (PKCS#8), encrypted if there is a password: handle it as a secret."""
        from cryptography.hazmat.primitives.serialization import (
            BestAvailableEncryption,
            Encoding,
            KeySerializationEncryption,
            NoEncryption,
            PrivateFormat,
        )

        cipher: KeySerializationEncryption = NoEncryption()
        if password is not None:
            cipher = BestAvailableEncryption(password.encode())
        return self._native.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher)

    def sign(self, message: bytes) -> bytes:
        """Return the signature; the same for the same message wherever the library can (OpenSSL 3.2 and later)."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec

        if not isinstance(self._native, ec.EllipticCurvePrivateKey):
            return self._native.sign(message)
        algorithm = _hash_of(self.public.algorithm)
        with suppress(UnsupportedAlgorithm):
            return self._native.sign(message, ec.ECDSA(algorithm, deterministic_signing=True))
        return self._native.sign(message, ec.ECDSA(algorithm))


class CommandKey(SigningKey):
    """A key that only a command can use: one in a KMS, an HSM or an agent.

    The command gets the message itself on its standard input (not a digest of it) and writes the signature to its
    standard output, as bytes or in base64: for ECDSA in DER or as the two numbers side by side (P1363), over the
    SHA-256 of the message for P-256, SHA-384 for P-384, SHA-512 for P-521; for Ed25519 the 64 bytes. It ends with 0.
    What it answers is checked against the public key before anything is written. For example::

        openssl dgst -sha256 -sign key.pem
        vault-sign --key transit/release          # your own script around a KMS
    """

    def __init__(
        self,
        command: Sequence[str],
        public: PublicKey,
        certificates: Sequence[Certificate] = (),
        *,
        timeout: float = _COMMAND_TIMEOUT_S,
    ) -> None:
        """``command`` is the program and its arguments, without a shell; ``timeout`` is in seconds."""
        super().__init__(public, certificates)
        self.command = tuple(command)
        self.timeout = timeout

    def sign(self, message: bytes) -> bytes:
        """Run the command.

        :raises SpecError: if it fails, or what it answers is no signature by the public key
        """
        name = self.command[0]
        try:
            done = subprocess.run(
                self.command, input=message, capture_output=True, timeout=self.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise SpecError(
                f"signing command {name} did not answer within {self.timeout:g} s; try it by hand"
            ) from None
        except OSError as exc:
            raise SpecError(
                f"signing command {name} cannot be run: {exc.strerror}; give its full path"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise SpecError(
                f"signing command {name} ended with {done.returncode}: {said or 'it said nothing'}"
            )
        for signature in _readings(done.stdout, self.public.algorithm):
            if self.public.verifies(signature, message):
                return signature
        raise SpecError(
            f"signing command {name} answered {len(done.stdout)} bytes that are no signature of its input by key "
            f"{self.public.id} ({self.public.algorithm}); check that public_key is this key's, and that it signs what"
            " it reads, hashed once"
        )


def _readings(answer: bytes, algorithm: Algorithm) -> Iterator[bytes]:
    """Yield what a signing command may have meant, each as the signature that the library takes."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if len(answer) > _MAX_SIGNATURE:
        return
    forms = [answer]
    with suppress(binascii.Error, ValueError):
        forms.append(base64.b64decode(b"".join(answer.split()), validate=True))
    for form in forms:
        yield form
        half = len(form) // 2
        if algorithm != "ed25519" and form and len(form) % 2 == 0:
            yield encode_dss_signature(int.from_bytes(form[:half]), int.from_bytes(form[half:]))


def pem_blocks(pem: str | bytes) -> list[tuple[str, bytes]]:
    """Return the blocks of a PEM text: label (such as `PUBLIC KEY`) and the block itself; other text is left out."""
    raw = pem.encode() if isinstance(pem, str) else pem
    return [(match[1].decode(), match[0] + b"\n") for match in _BLOCK.finditer(raw)]


def read_key_file(path: Path) -> bytes:
    """Return the bytes of a key or certificate file.

    :raises SpecError: if it cannot be read, or is far too large for one
    """
    limit = 1 << 20
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as exc:
        raise SpecError(f"{path} cannot be read: {exc.strerror}; name a PEM file") from None
    if len(raw) > limit:
        raise SpecError(f"{path} has more than {limit} bytes; name a PEM file")
    return raw


def _not_public(labels: list[str]) -> str:
    if any(label.endswith("PRIVATE KEY") for label in labels):
        return "holds a private key; give the public one, which `shipctl keygen` writes beside it as .pub"
    if "CERTIFICATE" in labels:
        return "is a certificate; give it as one (`--certificates`, `certificates:`)"
    if labels.count("PUBLIC KEY") > 1:
        return "holds several keys; give each a file of its own"
    return "has no public key in PEM form; it begins with `-----BEGIN PUBLIC KEY-----`"


def _public_der(native: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = native.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _hash_of(algorithm: Algorithm) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    return {"ecdsa-p384": hashes.SHA384(), "ecdsa-p521": hashes.SHA512()}.get(algorithm, hashes.SHA256())


def _kind(native: object) -> str:
    name = type(native).__name__.lstrip("_")
    return re.sub(r"(Public|Private)Key$", "", name) or name


def _reason(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).partition("\n")[0].rstrip(".")
