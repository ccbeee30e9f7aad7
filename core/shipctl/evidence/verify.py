"""Verifies a package offline: that it is, byte for byte and file for file, what somebody who is trusted has signed.

Every kind of fault has its own message and its own word in :data:`KINDS`. What the signature covers is every file
but itself; file modes, times and owners are not covered, and nothing in shipctl looks at them. Hard links within a
store are how files are laid out without copying them, so they are no fault.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from shipctl.errors import GateError, SpecError, VerificationError
from shipctl.evidence import contents
from shipctl.evidence.bundle import read_bundle, signed_files
from shipctl.evidence.dsse import MAX_BYTES, PAYLOAD_TYPE, read_envelope
from shipctl.evidence.keys import PublicKey
from shipctl.evidence.package import (
    MANIFEST,
    PROVENANCE,
    SIGNATURE,
    SIGNED_PROVENANCE,
    PackageManifest,
    read_manifest,
)
from shipctl.evidence.trust import Signer, Trust, authenticate
from shipctl.records import Record
from shipctl.stages.artifacts import FileEntry, ModelPackage
from shipctl.store.versions import is_version, precedence

__all__ = ["KINDS", "Trust", "VerificationError", "Verified", "verify_package"]

KINDS = {
    "no-trust": "no key and no certificate was given that could be trusted",
    "unsigned": "there is no signature",
    "signature": "the signature was altered, is forged, or is of a kind that cannot be verified",
    "untrusted": "the signature is by a key that is not trusted",
    "chain": "the certificate does not lead to a trusted root",
    "expired": "a certificate had expired",
    "not-yet-valid": "a certificate was not valid yet",
    "usage": "the certificate is not for signing",
    "identity": "the certificate is of somebody who may not sign",
    "altered": "a file has other bytes than were signed",
    "missing": "a file that was signed is not there",
    "surplus": "there is a file or an empty folder that was not signed",
    "link": "there is a symbolic link",
    "special": "there is a device, pipe or socket",
    "mode": "a file has the set-user-ID or set-group-ID bit",
    "unreadable": "a file cannot be read",
    "manifest": "package.json and the files do not agree, though signed",
    "provenance": "the provenance is about other files, or was signed by another key",
    "expected": "it is another package, or another version, than was expected",
}
"""Every kind of :class:`~shipctl.errors.VerificationError`, and what it means."""


class Verified(Record):
    """A package that is what its signer signed."""

    name: str = Field(description="The model's name.")
    version: str = Field(description="Its semantic version.")
    digest: str = Field(description="Digest of the package as an artifact, as the registry keeps it.")
    signer: str = Field(description="Id of the key: `sha256:` and the SHA-256 of its SubjectPublicKeyInfo.")
    algorithm: str = Field(description="ed25519, ecdsa-p256, ecdsa-p384 or ecdsa-p521.")
    certificate: str | None = Field(
        default=None, description="Subject of the signer's certificate, if there is one."
    )
    expires: float | None = Field(
        default=None,
        description="When the first certificate on the way to the root expires, in seconds since the epoch.",
    )
    files: int = Field(description="How many files there are.")
    bytes: int = Field(description="Their size together.")
    entries: tuple[FileEntry, ...] = Field(
        description="Every file with the digest that was verified: whoever uses the package compares."
    )

    @property
    def reference(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"


def verify_package(
    path: Path, trust: Trust, *, expect: str | None = None, at: float | None = None, label: str | None = None
) -> Verified:
    """Verify a package that lies at ``path``: a folder, a tar, or an OCI image layout.

    ``expect`` is the NAME@VERSION that it has to be. ``at`` (seconds since the epoch, now by default) is when
    certificates must have been valid: with the time of an earlier verification, one that has expired since is no
    obstacle to going back. ``label`` names the package in messages, instead of its path.

    Each file is read once, in pieces, and nothing is asked of a network.

    :raises VerificationError: for every kind of fault in :data:`KINDS`
    :raises GateError: for something that is no package, or an archive that must not be unpacked
    :raises StoreError: if it cannot be read
    :raises SpecError: for an ``expect`` that is no NAME@VERSION
    """
    from shipctl.evidence.archives import opened

    name = label or str(path)
    if expect is not None:
        _parts(expect)
    with opened(path) as folder:
        return _verify(folder, trust, name, expect, time.time() if at is None else at)


def _verify(folder: Path, trust: Trust, label: str, expect: str | None, at: float) -> Verified:
    names, empty = contents.listing(folder, label)
    if SIGNATURE not in names:
        if MANIFEST not in names:
            raise GateError(
                f"{label} is no package: it has neither {MANIFEST} nor {SIGNATURE}; give its folder or archive"
            )
        raise VerificationError(
            f"{label} is not signed: it has no {SIGNATURE}; sign it with the stage `sign`, or take it from where it"
            " was published",
            "unsigned",
        )
    raw = _signature(folder, label)
    bundle = read_bundle(raw, label)
    signer = authenticate(bundle, trust, at=at, label=label)
    signed = signed_files(bundle, label)
    own = frozenset({SIGNATURE})
    contents.compare_names(signed, names, empty, own, label)
    entry = FileEntry(path=SIGNATURE, sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
    hashed = {
        item.path: item for item in contents.hash_files(folder, [n for n in names if n != SIGNATURE], label)
    }
    hashed[SIGNATURE] = entry
    entries = tuple(hashed[name] for name in names)
    contents.compare_with_signed(signed, entries, own, label)
    manifest = _manifest(folder, hashed, label)
    contents.check_manifest(manifest, entries, label)
    _check_provenance(folder, hashed, manifest, signer.key, label)
    found = _verified(manifest, entries, signer)
    if expect is not None:
        _check_expected(found, expect, label)
    return found


def _signature(folder: Path, label: str) -> bytes:
    try:
        with (folder / SIGNATURE).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as exc:
        raise VerificationError(
            f"{label}: {SIGNATURE} cannot be read: {exc.strerror}", "unreadable"
        ) from None
    if len(raw) > MAX_BYTES:
        raise VerificationError(
            f"{label}: {SIGNATURE} has more than {MAX_BYTES} bytes; {contents.AGAIN}", "signature"
        )
    return raw


def _manifest(folder: Path, hashed: dict[str, FileEntry], label: str) -> PackageManifest:
    if MANIFEST not in hashed:
        raise VerificationError(
            f"{label} is signed, but has no {MANIFEST}: it was not made by `package`; name and version are unknown",
            "manifest",
        )
    contents.read_checked(folder, hashed[MANIFEST], label)
    try:
        return read_manifest(folder)
    except GateError as exc:
        raise VerificationError(f"{label}: {exc}; have it packaged and signed again", "manifest") from None


def _check_provenance(
    folder: Path, hashed: dict[str, FileEntry], manifest: PackageManifest, key: PublicKey, label: str
) -> None:
    """Check the provenance and its envelope; a package that was signed by other tools has no envelope."""
    if PROVENANCE not in hashed:
        if SIGNED_PROVENANCE in hashed:
            raise VerificationError(
                f"{label}: {SIGNED_PROVENANCE} is there without {PROVENANCE}; have it packaged and signed again",
                "provenance",
            )
        return
    body = contents.read_checked(folder, hashed[PROVENANCE], label)
    contents.check_provenance(body, manifest, list(hashed.values()), label)
    if SIGNED_PROVENANCE not in hashed:
        return
    envelope = read_envelope(
        contents.read_checked(folder, hashed[SIGNED_PROVENANCE], label), f"{label}: {SIGNED_PROVENANCE}"
    )
    if not envelope.is_signed_by(key):
        named = envelope.signatures[0].keyid
        raise VerificationError(
            f"{label}: {SIGNED_PROVENANCE} was signed by another key ({contents.shown(named) or 'not named'}) than the"
            f" package ({key.id}); have the package signed again by `sign`",
            "provenance",
        )
    if envelope.payload_type != PAYLOAD_TYPE or envelope.body() != body:
        raise VerificationError(
            f"{label}: {SIGNED_PROVENANCE} signs another statement than {PROVENANCE}; have the package signed again",
            "provenance",
        )


def _verified(manifest: PackageManifest, entries: Sequence[FileEntry], signer: Signer) -> Verified:
    model = manifest.artifact("model")
    package = ModelPackage(
        files=tuple(entries),
        name=manifest.name,
        version=manifest.version,
        model=model.digest if model is not None else "",
        signature=manifest.signature,
        signer=signer.key.id,
    )
    return Verified(
        name=manifest.name,
        version=manifest.version,
        digest=package.digest,
        signer=signer.key.id,
        algorithm=signer.key.algorithm,
        certificate=signer.certificate,
        expires=signer.expires,
        files=len(entries),
        bytes=package.size,
        entries=tuple(entries),
    )


def _parts(reference: str) -> tuple[str, str]:
    name, at, version = reference.partition("@")
    if not name or not at or not is_version(version):
        raise SpecError(f"{reference!r} is no NAME@VERSION; write it like digits@1.4.0")
    return name, version


def _check_expected(found: Verified, expect: str, label: str) -> None:
    name, version = _parts(expect)
    if (found.name, found.version) == (name, version):
        return
    if found.name != name:
        how = "another model"
    elif precedence(found.version) < precedence(version):
        how = "an older version"
    else:
        how = "another version"
    raise VerificationError(
        f"{label}: this is {found.reference}, correctly signed, and {expect} was expected: {how} was put in its place;"
        " find out who moved it, and take the package from where it was published again",
        "expected",
    )
