from __future__ import annotations

import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from shipctl.errors import SpecError, VerificationError
from shipctl.evidence.certificates import check_chain, check_identity, check_usage, for_key, load_certificates
from support_signing import Issued, issue, native_key

DAY = 86400.0


@pytest.fixture
def root() -> Issued:
    return issue("root", ca=True)


def chain(leaf: Issued, others: list[Issued], roots: list[Issued], at: float | None = None) -> list[str]:
    path = check_chain(
        leaf.certificate,
        [item.certificate for item in others],
        [item.certificate for item in roots],
        at=time.time() if at is None else at,
    )
    return [item.subject.rfc4514_string().partition(",")[0] for item in path]


def refused(
    kind: str, leaf: Issued, others: list[Issued], roots: list[Issued], at: float | None = None
) -> str:
    with pytest.raises(VerificationError) as caught:
        chain(leaf, others, roots, at)
    assert caught.value.kind == kind
    return str(caught.value)


def test_a_chain_leads_to_the_root_whatever_the_order(root: Issued) -> None:
    upper = issue("upper", root, ca=True)
    lower = issue("lower", upper, ca=True)
    leaf = issue("release", lower)
    stranger = issue("stranger", ca=True)
    assert chain(leaf, [upper, stranger, lower, root], [root]) == [
        "CN=release",
        "CN=lower",
        "CN=upper",
        "CN=root",
    ]
    assert chain(leaf, [lower], [upper]) == ["CN=release", "CN=lower", "CN=upper"]


def test_a_certificate_may_itself_be_trusted() -> None:
    leaf = issue("release")
    assert chain(leaf, [], [leaf]) == ["CN=release"]


def test_authorities_may_have_rsa_and_ed25519_keys() -> None:
    top = issue("top", ca=True, key=rsa.generate_private_key(65537, 2048))
    middle = issue("middle", top, ca=True, key=native_key("ed25519"))
    leaf = issue("release", middle, key=native_key("ed25519"))
    assert chain(leaf, [middle], [top]) == ["CN=release", "CN=middle", "CN=top"]


def test_another_root_of_the_same_name_is_not_taken_for_it(root: Issued) -> None:
    leaf = issue("release", issue("root", ca=True))
    message = refused("chain", leaf, [], [root])
    assert message == (
        "the certificate of CN=release,O=Example does not lead to a trusted root: the signature of CN=root,O=Example "
        "on the certificate of CN=release,O=Example is wrong; add the right root to the policy, or have it signed by "
        "somebody who is trusted"
    )


def test_a_missing_link_is_named(root: Issued) -> None:
    leaf = issue("release", issue("middle", root, ca=True))
    assert "its issuer, CN=middle,O=Example, is neither trusted nor in the signature" in refused(
        "chain", leaf, [], [root]
    )


def test_who_is_no_authority_cannot_issue(root: Issued) -> None:
    other = issue("release", root)
    leaf = issue("mallory", other)
    assert "CN=release,O=Example is no certificate authority" in refused("chain", leaf, [other], [root])


def test_an_authority_that_may_not_sign_certificates_cannot_issue(root: Issued) -> None:
    middle = issue("middle", root, ca=True, signing=False)
    assert "CN=middle,O=Example may not sign certificates" in refused(
        "chain", issue("x", middle), [middle], [root]
    )


def test_the_path_length_is_kept() -> None:
    root = issue("root", ca=True, path_length=0)
    middle = issue("middle", root, ca=True)
    leaf = issue("release", middle)
    assert chain(issue("direct", root), [], [root])
    assert "CN=root,O=Example may have 0 authorities below it and here has 1" in refused(
        "chain", leaf, [middle], [root]
    )


def test_signatures_that_can_be_forged_are_refused(root: Issued) -> None:
    weak = issue("weak", ca=True, key=rsa.generate_private_key(65537, 1024))
    assert "an RSA key of 1024 bits, fewer than 2048" in refused("chain", issue("x", weak), [], [weak])


def test_an_extension_that_nobody_here_understands_is_refused(root: Issued) -> None:
    constraints = x509.NameConstraints([x509.DNSName("example.com")], None)
    middle = issue("middle", root, ca=True, extensions=[(constraints, True)])
    message = refused("chain", issue("x", middle), [middle], [root])
    assert "the certificate of CN=middle,O=Example has the critical extension 2.5.29.30" in message


def test_every_certificate_on_the_way_must_be_valid_at_the_time(root: Issued) -> None:
    middle = issue("middle", root, ca=True, days=(-9, -3))
    leaf = issue("release", middle, days=(-8, -5))
    until = leaf.certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC")
    assert refused("expired", leaf, [middle], [root]) == (
        f"the certificate of CN=release,O=Example expired on {until}; sign again with a current one, or, for what was "
        "verified before that, give the time of it (`--at`)"
    )
    now = time.time()
    assert chain(leaf, [middle], [root], now - 6 * DAY)
    assert "CN=middle" not in refused("expired", leaf, [middle], [root], now - 4 * DAY)
    assert "CN=release,O=Example is not valid before" in refused(
        "not-yet-valid", leaf, [middle], [root], now - 8.5 * DAY
    )
    fresh = issue("release", middle, days=(-8, 5))
    assert "the certificate of CN=middle,O=Example expired" in refused("expired", fresh, [middle], [root])


def test_a_valid_way_is_taken_where_another_has_expired(root: Issued) -> None:
    """An authority that was certified again under the same name and key."""
    old = issue("middle", root, ca=True, days=(-9, -1))
    new = issue("middle", root, ca=True, key=old.key)
    assert chain(issue("release", old), [old, new], [root])


def test_certificates_that_lead_in_circles_come_to_an_end(root: Issued) -> None:
    key = native_key()
    ring = [
        issue("ring", Issued(issue("ring", ca=True, key=key).certificate, key), ca=True, key=key)
        for _ in range(12)
    ]
    leaf = issue("release", ring[0])
    started = time.monotonic()
    assert "does not lead to a trusted root" in refused("chain", leaf, ring, [root])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("signing", "purposes", "wrong"),
    [
        (True, [ExtendedKeyUsageOID.CODE_SIGNING], ""),
        (True, None, ""),
        (None, [ExtendedKeyUsageOID.CODE_SIGNING], ""),
        (True, [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], ""),
        (None, None, "it states neither digitalSignature nor codeSigning"),
        (False, [ExtendedKeyUsageOID.CODE_SIGNING], "its key usage does not include digitalSignature"),
        (True, [ExtendedKeyUsageOID.SERVER_AUTH], "its extended key usage does not include codeSigning"),
    ],
)
def test_a_certificate_has_to_be_for_signing(
    signing: bool | None, purposes: list[x509.ObjectIdentifier] | None, wrong: str
) -> None:
    certificate = issue("release", signing=signing, purposes=purposes).certificate
    if not wrong:
        check_usage(certificate)
        return
    with pytest.raises(VerificationError) as caught:
        check_usage(certificate)
    assert caught.value.kind == "usage"
    assert str(caught.value) == (
        f"the certificate of CN=release,O=Example is not for signing: {wrong}; have one issued with key usage "
        "digitalSignature and extended key usage codeSigning"
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "CN=release,O=Example", "release", "rel*", "*@example.com", "ci.example.com", "https://ci.example.com/*",
    ],
)  # fmt: skip
def test_an_identity_is_any_name_of_the_certificate(pattern: str) -> None:
    names = [
        x509.RFC822Name("release@example.com"),
        x509.DNSName("ci.example.com"),
        x509.UniformResourceIdentifier("https://ci.example.com/models/7"),
    ]
    check_identity(issue("release", names=names).certificate, ["nobody", pattern])


def test_an_identity_that_is_not_allowed_is_named() -> None:
    with pytest.raises(VerificationError) as caught:
        check_identity(issue("mallory").certificate, ["release", "*@example.com"])
    assert caught.value.kind == "identity"
    assert str(caught.value) == (
        "it was signed by CN=mallory,O=Example alias mallory, and allowed are release, *@example.com; add the identity "
        "to the policy if it may sign, else do not use this package"
    )


def test_patterns_do_not_match_in_part_or_in_another_case() -> None:
    for pattern in ("lease", "RELEASE", "release@example.co"):
        with pytest.raises(VerificationError):
            check_identity(
                issue("release", names=[x509.RFC822Name("release@example.com")]).certificate, [pattern]
            )


def test_a_chain_for_signing_has_the_keys_certificate_first(root: Issued) -> None:
    leaf = issue("release", root)
    key = leaf.signing_key().public
    assert for_key([root.certificate, leaf.certificate], key, at=time.time()) == (
        leaf.certificate,
        root.certificate,
    )
    with pytest.raises(
        SpecError, match=r"^none of the certificates \(CN=root,O=Example\) is for the signing key sha"
    ):
        for_key([root.certificate], key, at=time.time())
    with pytest.raises(SpecError, match=r"^the certificate of CN=release,O=Example expired on "):
        for_key([leaf.certificate], key, at=time.time() + 20 * DAY)


def test_what_is_no_certificate_is_said(root: Issued) -> None:
    assert len(load_certificates(f"a note\n{root.pem}\n{root.pem}", "roots.pem")) == 2
    with pytest.raises(SpecError, match=r"^roots\.pem has no certificate in PEM form; it begins with"):
        load_certificates("", "roots.pem")
    damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(SpecError, match=r"^roots.pem has a certificate that cannot be read \("):
        load_certificates(damaged, "roots.pem")


def test_sha1_is_refused(root: Issued, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library does not sign with it any more, so the certificate only says that it was."""

    class Old:
        def __init__(self, certificate: x509.Certificate) -> None:
            self._certificate = certificate
            self.signature_hash_algorithm = hashes.SHA1()

        def __getattr__(self, name: str) -> object:
            return getattr(self._certificate, name)

    leaf = Issued(Old(issue("release", root).certificate), None)  # type: ignore[arg-type]
    assert "is signed with sha1, which can be forged" in refused("chain", leaf, [], [root])
