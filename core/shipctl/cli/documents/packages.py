"""Documents of `shipctl verify`, `pull` and `keygen`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.evidence.verify import Verified


class VerifyDocument(Document):
    """`shipctl verify --json`, for a package that is as it was signed; for another there is an error document."""

    document: Literal["shipctl.verify/1"] = named("shipctl.verify/1")
    what: str = Field(description="What was verified, as it was given.")
    at: float = Field(
        description="When certificates had to be valid, in seconds since the epoch: give it as --at to verify again."
    )
    package: Verified = Field(description="What was found.")


class PullDocument(Document):
    """`shipctl pull --json`."""

    document: Literal["shipctl.pull/1"] = named("shipctl.pull/1")
    what: str = Field(description="What was asked for.")
    reference: str = Field(description="NAME@VERSION of the package.")
    path: str = Field(description="Where it is.")
    format: str = Field(description="directory, tar or oci.")
    package: Verified | None = Field(description="What was verified; null if nobody was trusted.")


class KeygenDocument(Document):
    """`shipctl keygen --json`."""

    document: Literal["shipctl.keygen/1"] = named("shipctl.keygen/1")
    id: str = Field(description="The key's id, as signatures name it.")
    algorithm: str = Field(description="ed25519, ecdsa-p256, ecdsa-p384 or ecdsa-p521.")
    private: str = Field(description="The file with the private key.")
    public: str = Field(description="The file with the public key.")
