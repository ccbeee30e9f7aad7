"""What the registry knows of one version."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from shipctl.errors import StoreError
from shipctl.records import Record
from shipctl.stages.artifacts import ModelPackage
from shipctl.store.log import Actor


class Description(Record):
    """What is known of a package beside its manifest, for people and for searches."""

    metrics: dict[str, float] = Field(default_factory=dict, description="What was measured, in base units.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the spec.")
    owner: str | None = Field(default=None, description="The team or person to ask.")
    description: str | None = Field(default=None, description="What the model does.")
    license: str | None = Field(default=None, description="SPDX licence expression.")
    contains: dict[str, str] = Field(
        default_factory=dict,
        description="What is in the package: role (`model`, `repository`) to artifact digest.",
    )


class Registration(Record):
    """Details of the entry that registers a version."""

    version: str = Field(description="The version.")
    digest: str = Field(description="Digest of the ModelPackage.")
    package: dict[str, Any] = Field(description="Its manifest.")
    lineage: dict[str, Any] = Field(description="Where it comes from.")
    about: Description = Field(description="What else is known of it.")


class RegisteredVersion(Record):
    """One version of a model, with all that the registry knows of it. Times are seconds since the epoch."""

    name: str = Field(description="The model.")
    version: str = Field(description="Its semantic version.")
    digest: str = Field(description="Digest of the ModelPackage.")
    package: dict[str, Any] = Field(description="Manifest of the ModelPackage.")
    stage: str | None = Field(description="Where it stands in its life; None where nobody said so.")
    tags: dict[str, str] = Field(description="Tags of this version.")
    aliases: tuple[str, ...] = Field(description="Aliases that point at it.")
    registered: float = Field(description="When it was registered.")
    by: Actor = Field(description="Who registered it.")
    retired: float | None = Field(description="When it was retired; None if it was not.")
    reason: str | None = Field(description="Why it was retired.")
    lineage: dict[str, Any] = Field(
        description="Where it comes from: `parent` (a version), `spec` and `data` (digests), `run`, …"
    )
    about: Description = Field(description="Metrics, labels, owner, description, licence, contents.")

    @property
    def reference(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def files(self) -> tuple[dict[str, Any], ...]:
        """The package's files as its manifest lists them."""
        return tuple(self.package.get("files", ()))

    def artifact(self) -> ModelPackage:
        """Return the package's artifact, without files on this machine.

        :raises StoreError: if a newer version of shipctl made it
        """
        try:
            return ModelPackage.model_validate({k: v for k, v in self.package.items() if k != "kind"})
        except ValidationError as exc:
            message = (
                f"cannot read the manifest of {self.reference}: {exc.error_count()} errors; update shipctl"
            )
            raise StoreError(message) from exc
