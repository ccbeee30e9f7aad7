"""Signs a package: `model.sig`, which the OpenSSF's `model_signing verify` accepts, and the provenance's envelope.

`model.sig` is a Sigstore bundle (v0.3, JSON) around a DSSE envelope. In it stands an in-toto statement with the
predicate of OpenSSF Model Signing v1.0: every file by name and SHA-256, and as the statement's subject the SHA-256 over
all these digests (as bytes, in the order of the list). The bundle names the key by the SHA-256 of its PEM text, or
carries the certificate chain. Ed25519, which `model_signing` does not have, uses the same form.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from shipctl.errors import GateError, VerificationError
from shipctl.evidence import contents
from shipctl.evidence.dsse import PAYLOAD_TYPE, Envelope, fault_of, strict_base64, strict_json
from shipctl.evidence.keys import SigningKey
from shipctl.evidence.package import PROVENANCE, SIGNATURE, SIGNED_PROVENANCE, read_manifest
from shipctl.evidence.provenance import STATEMENT_TYPE
from shipctl.records import Record, canonical_json
from shipctl.stages.artifacts import FileEntry

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
IGNORED_UPSTREAM = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""What `model_signing` leaves out at the root of a model, and so would miss in a signature that has it."""
_MAX_CERTIFICATES = 16


class _Wire(Record):
    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class KeyHint(_Wire):
    """Which key a bundle is by."""

    hint: str = Field(default="", description="SHA-256 (hex) of the public key's PEM text.")


class WireCertificate(_Wire):
    """One certificate."""

    raw: str = Field(alias="rawBytes", description="DER in base64.")


class CertificateChain(_Wire):
    """The signer's certificate and those above it."""

    certificates: tuple[WireCertificate, ...] = Field(
        min_length=1, max_length=_MAX_CERTIFICATES, description="The signer's first."
    )


class Material(_Wire):
    """What a signature is verified with."""

    public_key: KeyHint | None = Field(
        default=None, alias="publicKey", description="A key that both sides know."
    )
    chain: CertificateChain | None = Field(
        default=None, alias="x509CertificateChain", description="Certificates up to, or below, a known root."
    )
    log_entries: tuple[()] = Field(
        default=(), alias="tlogEntries", description="Of a transparency log: none."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.public_key is None) == (self.chain is None):
            raise ValueError("it names no key and no certificate, or both")
        return self


class Bundle(_Wire):
    """A Sigstore bundle, as far as offline signatures need one."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(
        default="application/vnd.dev.sigstore.bundle.v0.3+json",
        alias="mediaType",
        description="The form of the bundle and its version.",
    )
    material: Material = Field(alias="verificationMaterial", description="What it is verified with.")
    envelope: Envelope = Field(alias="dsseEnvelope", description="The statement and its signature.")

    def certificates(self) -> tuple[Certificate, ...]:
        """Return the certificate chain, the signer's first; empty for a signature by a bare key.

        :raises ValueError: if one is damaged
        """
        from cryptography.x509 import load_der_x509_certificate

        if self.material.chain is None:
            return ()
        return tuple(
            load_der_x509_certificate(strict_base64(item.raw)) for item in self.material.chain.certificates
        )

    def dump(self) -> bytes:
        """Return the bundle's file."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


def statement(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the in-toto statement that says: the model ``name`` consists of these files (path to SHA-256 in hex)."""
    names = contents.in_order(list(digests))
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root_digest([digests[item] for item in names])}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [{"name": item, "algorithm": "sha256", "digest": digests[item]} for item in names],
        },
    }


def root_digest(digests: Sequence[str]) -> str:
    """Return the SHA-256 (hex) over digests, as bytes and in their order."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def bundle_of(payload: bytes, key: SigningKey) -> Bundle:
    """Sign a statement and return the bundle."""
    from cryptography.hazmat.primitives.serialization import Encoding

    if key.certificates:
        chain = tuple(
            WireCertificate(raw=base64.b64encode(item.public_bytes(Encoding.DER)).decode())
            for item in key.certificates
        )
        material = Material(chain=CertificateChain(certificates=chain))
    else:
        material = Material(public_key=KeyHint(hint=key.public.hint))
    return Bundle(material=material, envelope=Envelope.signed(payload, key))


def sign_package(folder: Path, key: SigningKey, *, files: Sequence[FileEntry] | None = None) -> None:
    """Sign the package in ``folder``: write `evidence/provenance.dsse.json`, if it has a provenance, and `model.sig`.

    ``files`` are its files as the caller has just verified them; without them everything is read. Signatures that are
    there are replaced.

    :raises GateError: if it is no package, or its parts do not agree: nobody should put a name to that
    :raises SpecError: if the key cannot be used
    """
    manifest = read_manifest(folder)
    label = manifest.reference
    for name in (SIGNATURE, SIGNED_PROVENANCE):
        (folder / name).unlink(missing_ok=True)
    names, _ = contents.listing(folder, label)
    hidden = [name for name in names if name.partition("/")[0] in IGNORED_UPSTREAM]
    if hidden:
        raise GateError(
            f"{label} has {hidden[0]}, which tools that verify models leave out; take it out of the package"
        )
    known = {entry.path: entry for entry in files or ()}
    if files is None or any(name not in known for name in names):
        known = {entry.path: entry for entry in contents.hash_files(folder, names, label)}
    entries = [known[name] for name in names]
    contents.check_manifest(manifest, entries, label)
    if PROVENANCE in known:
        body = contents.read_checked(folder, known[PROVENANCE], label)
        contents.check_provenance(body, manifest, entries, label)
        envelope = Envelope.signed(body, key).dump()
        (folder / SIGNED_PROVENANCE).write_bytes(envelope)
        entries.append(
            FileEntry(path=SIGNED_PROVENANCE, sha256=hashlib.sha256(envelope).hexdigest(), size=len(envelope))
        )
    payload = canonical_json(statement(label, {entry.path: entry.sha256 for entry in entries}))
    (folder / SIGNATURE).write_bytes(bundle_of(payload, key).dump())


def read_bundle(data: bytes, label: str) -> Bundle:
    """Read `model.sig`; nothing is verified.

    :raises VerificationError: if it is no bundle, or one of a kind that cannot be verified offline
    """
    try:
        document = strict_json(data)
        material = document.get("verificationMaterial") if isinstance(document, dict) else None
        if isinstance(material, dict) and ("certificate" in material or material.get("tlogEntries")):
            raise VerificationError(
                f"{label}: {SIGNATURE} was made through Sigstore's public service, which shipctl does not ask; verify"
                " it with `model_signing verify sigstore`, or sign with a key or a certificate chain",
                "signature",
            )
        bundle = Bundle.model_validate(document)
        bundle.envelope.body()
        bundle.certificates()
    except ValueError as exc:
        raise VerificationError(
            f"{label}: {SIGNATURE} was altered or is no model signature ({fault_of(exc)}); {contents.AGAIN}",
            "signature",
        ) from None
    return bundle


def signed_files(bundle: Bundle, label: str) -> dict[str, str]:
    """Return what a bundle's statement says of the files: path to SHA-256 (hex). Verify the signature first.

    :raises VerificationError: if it was signed in a way that shipctl does not verify
    """
    if bundle.envelope.payload_type != PAYLOAD_TYPE:
        raise VerificationError(
            f"{label}: {SIGNATURE} signs {contents.shown(bundle.envelope.payload_type)} and no in-toto statement; sign"
            " it again",
            "signature",
        )
    try:
        return _resources(json.loads(bundle.envelope.body()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        why = fault_of(exc) if isinstance(exc, ValueError) else "a field is missing or of another type"
        raise VerificationError(
            f"{label}: {SIGNATURE} does not sign what shipctl can verify ({why}); sign it again with `sign` or"
            " `model_signing sign`",
            "signature",
        ) from None


def _resources(body: Any) -> dict[str, str]:
    """Return the files of an in-toto statement by name; raises ValueError and its kin for what is none of ours."""
    kind, predicate = (body["_type"], body["predicateType"]), body["predicate"]
    if kind != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"a statement of type {kind[0]} about {kind[1]}")
    method = (predicate["serialization"]["method"], predicate["serialization"]["hash_type"])
    if method != ("files", "sha256"):
        raise ValueError(f"{method[1]} over {method[0]}, where shipctl takes sha256 over files")
    resources = [
        (str(item["name"]), str(item["digest"]), item["algorithm"]) for item in predicate["resources"]
    ]
    (subject,) = body["subject"]
    found = {name: digest for name, digest, _ in resources}
    if len(found) != len(resources) or any(algorithm != "sha256" for _, _, algorithm in resources):
        raise ValueError("a file twice, or by another algorithm than sha256")
    if root_digest([digest for _, digest, _ in resources]) != subject["digest"]["sha256"]:
        raise ValueError("its list of files does not come to its own digest")
    return found
