"""Who is trusted, and whether a signature is by one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shipctl.errors import SpecError, VerificationError
from shipctl.evidence import contents
from shipctl.evidence.bundle import Bundle
from shipctl.evidence.certificates import (
    check_chain,
    check_identity,
    check_usage,
    load_certificates,
    subject_of,
)
from shipctl.evidence.keys import PublicKey, read_key_file
from shipctl.evidence.package import SIGNATURE

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


@dataclass(frozen=True)
class Trust:
    """Whose signatures count: some keys, and everybody with a certificate under some roots and a name that fits."""

    keys: tuple[PublicKey, ...] = ()
    roots: tuple[Certificate, ...] = field(default=(), repr=False)
    """Certificates of authorities; one of a signer himself is trusted as it is."""
    identities: tuple[str, ...] = ()
    """Patterns of names (:func:`shipctl.evidence.certificates.check_identity`); none allows all under the roots."""

    @classmethod
    def of(
        cls, keys: Iterable[Path] = (), certificates: Iterable[Path] = (), identities: Iterable[str] = ()
    ) -> Trust:
        """Read public keys and root certificates from PEM files.

        :raises SpecError: if one cannot be read
        """
        return cls(
            tuple(PublicKey.read(path) for path in keys),
            tuple(
                item for path in certificates for item in load_certificates(read_key_file(path), str(path))
            ),
            tuple(identities),
        )

    def __or__(self, other: Trust) -> Trust:
        """Trust both."""
        return Trust(
            tuple(dict.fromkeys((*self.keys, *other.keys))),
            tuple(dict.fromkeys((*self.roots, *other.roots))),
            tuple(dict.fromkeys((*self.identities, *other.identities))),
        )

    def __bool__(self) -> bool:
        return bool(self.keys or self.roots)


class Signer(NamedTuple):
    """Who signed, once that is proven."""

    key: PublicKey
    certificate: str | None = None
    """Subject of the certificate, where there is one."""
    expires: float | None = None
    """When the first certificate on the way to the root expires, in seconds since the epoch."""


def authenticate(bundle: Bundle, trust: Trust, *, at: float, label: str) -> Signer:
    """Return who made a bundle's signature, if it is whole and they are trusted.

    :raises VerificationError: if not
    """
    if not trust:
        raise VerificationError(
            f"{label} cannot be verified because no key and no certificate is trusted here: name them with --key or"
            " --certificates, or in a policy",
            "no-trust",
        )
    certificates = bundle.certificates()
    if not certificates:
        return Signer(_trusted_key(bundle, trust.keys, label))
    leaf = certificates[0]
    try:
        key = PublicKey.of(leaf.public_key(), f"{label}: the certificate in {SIGNATURE}")
    except SpecError as exc:
        raise VerificationError(str(exc), "signature") from None
    if not bundle.envelope.is_signed_by(key):
        raise _forged(label, key)
    if key in trust.keys:
        return Signer(key, subject_of(leaf))
    if not trust.roots:
        raise _untrusted(label, f"the certificate of {subject_of(leaf)} (key {key.id})", trust)
    try:
        path = check_chain(leaf, certificates[1:], trust.roots, at=at)
        check_usage(leaf)
        check_identity(leaf, trust.identities)
    except VerificationError as exc:
        raise VerificationError(f"{label}: {exc}", exc.kind) from None
    return Signer(key, subject_of(leaf), min(item.not_valid_after_utc.timestamp() for item in path))


def _trusted_key(bundle: Bundle, keys: tuple[PublicKey, ...], label: str) -> PublicKey:
    hint = bundle.material.public_key.hint if bundle.material.public_key is not None else ""
    named = bundle.envelope.signatures[0].keyid
    for key in keys:
        fits = hint in {"", key.hint} and named in {"", key.id}
        if fits and bundle.envelope.is_signed_by(key):
            return key
        if fits and (hint or named):
            raise _forged(label, key)
        if not fits and (hint == key.hint or named == key.id):
            raise _forged(label, key)  # its two names are of different keys
    who = (
        f"key {contents.shown(named)}"
        if named
        else f"the key whose PEM text has the SHA-256 {hint or '(not said)'}"
    )
    raise _untrusted(label, who, Trust(keys))


def _forged(label: str, key: PublicKey) -> VerificationError:
    return VerificationError(
        f"{label}: {SIGNATURE} was altered, or is forged: it names key {key.id}, which did not sign this; "
        f"{contents.AGAIN}",
        "signature",
    )


def _untrusted(label: str, who: str, trust: Trust) -> VerificationError:
    trusted = [key.id for key in trust.keys]
    trusted += [f"who is certified by {subject_of(item)}" for item in trust.roots]
    return VerificationError(
        f"{label} was signed with {contents.shown(who)}, which is not trusted here; trusted: "
        f"{', '.join(trusted) or 'no key'}. Add the key to the policy (or --key) if you know whose it is, else do "
        "not use this package. (After a change of the key, `sign` signs anew if its option `public_key` names it.)",
        "untrusted",
    )
