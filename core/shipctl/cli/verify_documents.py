"""The JSON documents of `shipctl verify` and `shipctl keygen`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents import Document
from shipctl.evidence.verify import Verified


class VerifyDocument(Document):
    """`shipctl verify --json`, for a package that is as it was signed; for another there is an error document."""

    document: Literal["shipctl.verify/1"] = Field(
        default="shipctl.verify/1", alias="schema", description="Name and version."
    )
    what: str = Field(description="What was verified, as it was given.")
    at: float = Field(
        description="When certificates had to be valid, in seconds since the epoch: give it as --at to verify again."
    )
    package: Verified = Field(description="What was found.")


class KeygenDocument(Document):
    """`shipctl keygen --json`."""

    document: Literal["shipctl.keygen/1"] = Field(
        default="shipctl.keygen/1", alias="schema", description="Name and version."
    )
    id: str = Field(description="The key's id, as signatures name it.")
    algorithm: str = Field(description="ed25519, ecdsa-p256, ecdsa-p384 or ecdsa-p521.")
    private: str = Field(description="The file with the private key.")
    public: str = Field(description="The file with the public key.")


class PullDocument(Document):
    """`shipctl pull --json`."""

    document: Literal["shipctl.pull/1"] = Field(
        default="shipctl.pull/1", alias="schema", description="Name and version."
    )
    what: str = Field(description="What was asked for.")
    reference: str = Field(description="NAME@VERSION of the package.")
    path: str = Field(description="Where it is.")
    format: str = Field(description="directory, tar or oci.")
    package: Verified | None = Field(description="What was verified; null if nobody was trusted.")
