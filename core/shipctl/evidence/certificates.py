"""X.509 certificates of those who sign: whether one leads to a trusted root, at what time, for which use.

This is the part of RFC 5280's path validation that code signing inside an organisation needs: signatures, names,
validity, CA flag and path length, key usage. What it does not know (a critical extension such as name constraints,
SHA-1, RSA below 2048 bits) it refuses. Nothing is asked of a network: revocation is done by taking a key, a root or
an identity out of the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shipctl.errors import SpecError, VerificationError
from shipctl.evidence.keys import PublicKey, pem_blocks

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_MAX_STEPS = 64
_MIN_RSA_BITS = 2048


def load_certificates(pem: str | bytes, where: str) -> tuple[Certificate, ...]:
    """Return the certificates of a PEM text, in its order.

    :raises SpecError: if there is none, or one is damaged
    """
    from cryptography.x509 import load_pem_x509_certificate

    blocks = [block for label, block in pem_blocks(pem) if label == "CERTIFICATE"]
    if not blocks:
        raise SpecError(
            f"{where} has no certificate in PEM form; it begins with `-----BEGIN CERTIFICATE-----`"
        )
    try:
        return tuple(load_pem_x509_certificate(block) for block in blocks)
    except ValueError as exc:
        raise SpecError(f"{where} has a certificate that cannot be read ({exc}); export it again") from None


def for_key(certificates: Sequence[Certificate], key: PublicKey, *, at: float) -> tuple[Certificate, ...]:
    """Return the chain with the certificate of ``key`` first, if it may sign with it at the time ``at``.

    :raises SpecError: if none is the key's, or it has expired, or is for another use
    """
    own = [item for item in certificates if _is_of(item, key)]
    if not own:
        subjects = "; ".join(subject_of(item) for item in certificates)
        raise SpecError(
            f"none of the certificates ({subjects}) is for the signing key {key.id}; give the chain that was"
            " issued for it, its own certificate first"
        )
    try:
        check_time(own[0], at)
        check_usage(own[0])
    except VerificationError as exc:
        raise SpecError(str(exc)) from None
    return (own[0], *(item for item in certificates if item != own[0]))


def check_chain(
    leaf: Certificate, others: Sequence[Certificate], roots: Sequence[Certificate], *, at: float
) -> tuple[Certificate, ...]:
    """Return the way from ``leaf`` to one of ``roots``, by ``others``, that was valid at ``at``.

    :raises VerificationError: if there is none: untrusted, expired or not yet valid
    """
    reasons: list[str] = []
    problem: VerificationError | None = None
    for path in _paths(leaf, others, roots, reasons):
        try:
            for certificate in path:
                check_time(certificate, at)
                _check_extensions(certificate)
        except VerificationError as exc:
            problem = problem or exc
            continue
        return path
    if problem is not None:
        raise problem
    why = (
        reasons[0]
        if reasons
        else f"its issuer, {_name(leaf.issuer)}, is neither trusted nor in the signature"
    )
    raise VerificationError(
        f"the certificate of {subject_of(leaf)} does not lead to a trusted root: {why}; "
        "add the right root to the policy, or have it signed by somebody who is trusted",
        "chain",
    )


def check_time(certificate: Certificate, at: float) -> None:
    """Raise VerificationError if a certificate was not valid at ``at`` (seconds since the epoch)."""
    if at > certificate.not_valid_after_utc.timestamp():
        raise VerificationError(
            f"the certificate of {subject_of(certificate)} expired on {_date(certificate.not_valid_after_utc)}; "
            "sign again with a current one, or, for what was verified before that, give the time of it (`--at`)",
            "expired",
        )
    if at < certificate.not_valid_before_utc.timestamp():
        raise VerificationError(
            f"the certificate of {subject_of(certificate)} is not valid before "
            f"{_date(certificate.not_valid_before_utc)}; wait until then, or check the clock (or `--at`)",
            "not-yet-valid",
        )


def check_usage(certificate: Certificate) -> None:
    """Raise VerificationError if a certificate is not for signing code.

    Key usage, where it is stated, must include digitalSignature, extended key usage, where stated, codeSigning; at
    least one of the two has to be stated.
    """
    from cryptography.x509 import ExtendedKeyUsage, ExtensionNotFound, KeyUsage
    from cryptography.x509.oid import ExtendedKeyUsageOID

    stated = False
    wrong = ""
    try:
        usage = certificate.extensions.get_extension_for_class(KeyUsage).value
        stated = True
        wrong = "" if usage.digital_signature else "its key usage does not include digitalSignature"
    except ExtensionNotFound:
        pass
    try:
        purposes = set(certificate.extensions.get_extension_for_class(ExtendedKeyUsage).value)
        stated = True
        if not purposes & {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}:
            wrong = wrong or "its extended key usage does not include codeSigning"
    except ExtensionNotFound:
        pass
    wrong = wrong or ("" if stated else "it states neither digitalSignature nor codeSigning")
    if wrong:
        raise VerificationError(
            f"the certificate of {subject_of(certificate)} is not for signing: {wrong}; "
            "have one issued with key usage digitalSignature and extended key usage codeSigning",
            "usage",
        )


def check_identity(certificate: Certificate, allowed: Sequence[str]) -> None:
    """Raise VerificationError if no name of a certificate matches one of the patterns (`*`, `?`, `[…]`).

    Its names are its subject (RFC 4514), the common name in it, and the e-mail addresses, DNS names and URIs among its
    subject alternative names. No pattern at all allows everybody whom the roots have certified.
    """
    names = names_of(certificate)
    if allowed and not any(fnmatchcase(name, pattern) for name in names for pattern in allowed):
        raise VerificationError(
            f"it was signed by {' alias '.join(names)}, and allowed are {', '.join(allowed)}; "
            "add the identity to the policy if it may sign, else do not use this package",
            "identity",
        )


def names_of(certificate: Certificate) -> tuple[str, ...]:
    """Return the names that :func:`check_identity` looks at, the subject first."""
    from cryptography.x509 import (
        DNSName,
        ExtensionNotFound,
        RFC822Name,
        SubjectAlternativeName,
        UniformResourceIdentifier,
    )
    from cryptography.x509.oid import NameOID

    names = [subject_of(certificate)]
    names += [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        others = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        return tuple(names)
    for kind in (RFC822Name, DNSName, UniformResourceIdentifier):
        names += others.get_values_for_type(kind)
    return tuple(names)


def subject_of(certificate: Certificate) -> str:
    """Return the subject as RFC 4514 writes it, such as `CN=release,O=Example`."""
    return _name(certificate.subject)


def _paths(
    leaf: Certificate, others: Sequence[Certificate], roots: Sequence[Certificate], reasons: list[str]
) -> Iterator[tuple[Certificate, ...]]:
    """Yield every way from ``leaf`` to a root; why the others end is added to ``reasons``."""
    # roots first: what is trusted does not have to be led anywhere else
    issuers = (*roots, *(item for item in others if item not in roots))
    open_ways: list[tuple[Certificate, ...]] = [(leaf,)]
    for _ in range(_MAX_STEPS):  # a signature may bring any number of certificates that lead in circles
        if not open_ways:
            return
        path = open_ways.pop()
        last = path[-1]
        if last in roots:
            yield path
            continue
        further: list[tuple[Certificate, ...]] = []
        for issuer in issuers:
            if issuer.subject != last.issuer or issuer in path:
                continue
            why = _not_issued_by(last, issuer, below=len(path) - 1)
            if why:
                reasons.append(why)
            else:
                further.append((*path, issuer))
        open_ways += reversed(further)
    reasons.append(f"there are more than {_MAX_STEPS} ways to look at")


def _not_issued_by(certificate: Certificate, issuer: Certificate, *, below: int) -> str:
    """Say why ``issuer``, with ``below`` CAs under it, did not or may not issue ``certificate``; empty if it did."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.x509 import BasicConstraints, ExtensionNotFound, KeyUsage

    who, whom = subject_of(issuer), subject_of(certificate)
    try:
        constraints = issuer.extensions.get_extension_for_class(BasicConstraints).value
    except ExtensionNotFound:
        return f"{who} is no certificate authority"
    if not constraints.ca:
        return f"{who} is no certificate authority"
    if constraints.path_length is not None and below > constraints.path_length:
        return f"{who} may have {constraints.path_length} authorities below it and here has {below}"
    try:
        if not issuer.extensions.get_extension_for_class(KeyUsage).value.key_cert_sign:
            return f"{who} may not sign certificates"
    except ExtensionNotFound:
        pass
    key = issuer.public_key()
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return f"{who} has an RSA key of {key.key_size} bits, fewer than {_MIN_RSA_BITS}"
    try:
        digest = certificate.signature_hash_algorithm
        if digest is not None and digest.name in {"md5", "sha1"}:
            return f"the certificate of {whom} is signed with {digest.name}, which can be forged"
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return f"the signature of {who} on the certificate of {whom} is wrong"
    return ""


def _check_extensions(certificate: Certificate) -> None:
    from cryptography.x509.oid import ExtensionOID

    known = {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in known:
            raise VerificationError(
                f"the certificate of {subject_of(certificate)} has the critical extension "
                f"{extension.oid.dotted_string}, which shipctl does not check; have one issued without it",
                "chain",
            )


def _is_of(certificate: Certificate, key: PublicKey) -> bool:
    try:
        return PublicKey.of(certificate.public_key(), "").id == key.id
    except SpecError:  # a CA's RSA key
        return False


def _name(name: object) -> str:
    from cryptography.x509 import Name

    text = name.rfc4514_string() if isinstance(name, Name) else str(name)
    return text if text.isprintable() else ascii(text)


def _date(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
