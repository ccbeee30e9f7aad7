"""Small packages, keys and certificates for tests of signing and verification."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shipctl.errors import VerificationError
from shipctl.evidence.bundle import bundle_of, sign_package, statement
from shipctl.evidence.keys import Algorithm, PrivateKey, SigningKey
from shipctl.evidence.package import ADDED_BY_SIGNING, MANIFEST, PackagedArtifact, PackageManifest
from shipctl.evidence.verify import KINDS, Trust, verify_package
from shipctl.records import canonical_json
from shipctl.stages.artifacts import FileEntry, ModelPackage
from shipctl.testing.fixtures import SampleProject
from shipctl.testing.samples import SIGNATURE, sealed

NOW = dt.datetime.now(dt.UTC)
KEY = PrivateKey.generate("ecdsa-p256")
"""Signs what :func:`registered` publishes."""
MODEL = "ab" * 32
"""What stands for the digest of the model inside."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_package(
    folder: Path,
    name: str = "digits",
    version: str = "1.1.0",
    *,
    provenance: bool = True,
    extra: Mapping[str, bytes] | None = None,
    artifacts: Sequence[PackagedArtifact] = (),
) -> Path:
    """Write an unsigned package that agrees with itself."""
    files = {
        "model/model.onnx": b"\x08\x0a weights" * 40 + version.encode(),
        "model/weights.bin": bytes(range(256)) * 8,
        "LICENSE": b"Apache-2.0\n",
        "evidence/reports/a.json": b"{}",
        **(extra or {}),
    }
    if provenance:
        subjects = [
            {"name": path, "digest": {"sha256": sha256(data)}}
            for path, data in sorted(files.items())
            if path.startswith("model/")
        ]
        files["evidence/provenance.json"] = json.dumps(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": subjects,
                "predicateType": "https://slsa.dev/provenance/v1",
                "predicate": {"buildDefinition": {"externalParameters": {"name": name, "version": version}}},
            }
        ).encode()
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    list_files(folder, name, version, artifacts)
    return folder


def list_files(
    folder: Path, name: str = "digits", version: str = "1.1.0", artifacts: Sequence[PackagedArtifact] = ()
) -> None:
    """Write `package.json` for what lies in the folder."""
    entries = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder).as_posix()
        if relative in ADDED_BY_SIGNING or relative == MANIFEST:
            continue
        data = path.read_bytes()
        entries.append(FileEntry(path=relative, sha256=sha256(data), size=len(data)))
    manifest = PackageManifest(
        name=name,
        version=version,
        signature=SIGNATURE,
        artifacts=(PackagedArtifact(role="model", path="model", digest=MODEL, manifest={}), *artifacts),
        files=tuple(entries),
    )
    (folder / MANIFEST).write_bytes(manifest.model_dump_json(indent=2).encode())


def package_artifact(folder: Path, **fields: Any) -> ModelPackage:
    """Return the artifact of the package in ``folder``, as the engine would hand it to a stage."""
    known = {"name": "digits", "version": "1.1.0", "model": MODEL, "signature": SIGNATURE}
    return sealed(ModelPackage.at(folder, **{**known, **fields}))


def registered(project: SampleProject, version: str, folder: Path | None = None) -> ModelPackage:
    """Publish and register a signed package in the project's store."""
    from shipctl.store.depot import open_depot
    from shipctl.store.local import LocalStore
    from shipctl.store.models import ModelRegistry

    made = project.root / f"made-{version}" / "p"
    if folder is None:
        sign_package(make_package(made, version=version), KEY)
    else:
        shutil.copytree(folder, made)
    local = LocalStore(project.root / ".shipctl/store")
    artifact = local.publish(package_artifact(made, version=version, signer=KEY.public.id), made.parent)
    shutil.rmtree(made.parent)
    with open_depot(None, project.root, local) as depot:
        depot.publish(artifact)
        ModelRegistry(depot.objects).register(artifact, lineage={})
    return artifact


class Issued(NamedTuple):
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def signing_key(self, *above: Issued) -> PrivateKey:
        return PrivateKey(self.key, (self.certificate, *(item.certificate for item in above)))


def native_key(algorithm: Algorithm = "ecdsa-p256") -> Any:
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"ecdsa-p256": ec.SECP256R1(), "ecdsa-p384": ec.SECP384R1(), "ecdsa-p521": ec.SECP521R1()}
    return ec.generate_private_key(curves[algorithm])


def issue(
    name: str,
    by: Issued | None = None,
    *,
    ca: bool = False,
    path_length: int | None = None,
    days: tuple[float, float] = (-10, 10),
    signing: bool | None = True,
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CODE_SIGNING,),
    names: Sequence[x509.GeneralName] = (),
    key: Any = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    digest: Any = None,
) -> Issued:
    """Make a certificate valid from ``days[0]`` to ``days[1]`` days from now; without ``by``, signed by itself."""
    key = key or native_key()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + dt.timedelta(days=days[0]))
        .not_valid_after(NOW + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    )
    if signing is not None:
        usage = dict.fromkeys(
            (
                "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
                "encipher_only", "decipher_only",
            ),
            False,
        )  # fmt: skip
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=signing and not ca, key_cert_sign=ca and signing, **usage),
            critical=True,
        )
    if purposes is not None and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    issuer_key = by.key if by is not None else key
    algorithm = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else digest or hashes.SHA256()
    return Issued(builder.sign(issuer_key, algorithm), key)


def signed(folder: Path, key: SigningKey) -> Path:
    sign_package(folder, key)
    return folder


def sign_as_it_is(folder: Path, key: SigningKey, **changes: Any) -> None:
    """Sign what lies there, whatever it is: what a careless or malicious holder of the key could do.

    ``changes`` replace parts of the statement.
    """
    (folder / "model.sig").unlink(missing_ok=True)
    digests = {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
    body = {**statement("x", digests), **changes}
    (folder / "model.sig").write_bytes(bundle_of(canonical_json(body), key).dump())


def refused(path: Path, kind: str, trust: Trust, **options: Any) -> str:
    """Return what is said about a package at ``path`` that must be refused for that kind of fault."""
    assert kind in KINDS
    with pytest.raises(VerificationError) as caught:
        verify_package(path, trust, label="P", **options)
    assert caught.value.exit_code == 4
    assert caught.value.kind == kind
    return str(caught.value)
