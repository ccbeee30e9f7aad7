"""Whether something may be released: what the policy says about signatures, asked before anything is touched."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from shipctl.errors import GateError
from shipctl.records import Record
from shipctl.stages.artifacts import Artifact, ModelPackage

if TYPE_CHECKING:
    from shipctl.evidence.policy import Policy


class Admission(Record):
    """What was found when a release was let through."""

    package: str = Field(description="Digest of the package that it is made from.")
    reference: str = Field(description="NAME@VERSION of the package.")
    signer: str = Field(description="`sha256:` and the fingerprint of the key that signed it.")
    verified: float = Field(
        description="When its certificates were first found valid, in seconds since the epoch."
    )


def admit(
    policy: Policy | None, artifacts: Iterable[Artifact], *, expect: str, verified: float | None
) -> Admission | None:
    """Return what the policy needs to know of a release, or None where it asks for nothing.

    ``artifacts`` are the inputs of the release with their files laid out. A package among them is verified to be the
    one that is to be released (``expect``, NAME@VERSION), and every other input has to be one of the artifacts that it
    holds, so that what is served is what was signed. ``verified`` is
    when the same inputs were admitted before, for a rollback: certificates that have expired since do not block it.

    :raises GateError: if the policy says no
    """
    if policy is None:
        return None
    inputs = list(artifacts)
    packages = [item for item in inputs if isinstance(item, ModelPackage)]
    if len(packages) != 1:
        if not policy.required and not packages:
            return None
        message = (
            f"{policy.name} asks for a signed package, and this release takes {len(packages) or 'none'}; put the "
            "stages `package` and `sign` before it"
        )
        raise GateError(message)
    package = packages[0]
    if package.signer is None and not policy.required:
        return None
    from shipctl.evidence.package import read_manifest
    from shipctl.evidence.verify import verify_package

    reference = f"{package.name}@{package.version}"
    found = verify_package(package.root, policy.trust, expect=expect, at=verified, label=reference)
    if found.digest != package.digest:
        message = f"{reference} was verified, and it is not the package that is to be released; run again"
        raise GateError(message)
    inside = {item.digest for item in read_manifest(package.root).artifacts}  # which was just verified
    for item in inputs:
        if item is not package and item.digest not in inside:
            message = (
                f"the {item.kind} is not in the signed package {reference}; release what is in it, for example by "
                "taking it out with `unpack`"
            )
            raise GateError(message)
    return Admission(
        package=package.digest,
        reference=reference,
        signer=found.signer,
        verified=verified if verified is not None else time.time(),
    )
