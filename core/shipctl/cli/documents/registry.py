"""Documents of `shipctl registry …` and `shipctl retire`. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from shipctl.cli.documents.audit import AuditLine
from shipctl.cli.documents.base import StoreDocument, named
from shipctl.records import Record
from shipctl.store.deployments import Deployment
from shipctl.store.log import Actor
from shipctl.store.model_state import AbTest, ModelState
from shipctl.store.registered import RegisteredVersion


class VersionLine(Record):
    """One registered version."""

    name: str = Field(description="The model.")
    version: str = Field(description="Its semantic version.")
    digest: str = Field(description="Digest of the package.")
    stage: str | None = Field(description="Where it stands in its life.")
    aliases: tuple[str, ...] = Field(description="Aliases that point at it.")
    tags: dict[str, str] = Field(description="Its tags.")
    registered: float = Field(description="When it was registered.")
    by: Actor = Field(description="Who registered it.")
    parent: str | None = Field(description="The version that it came after.")
    retired: float | None = Field(description="When it was retired; null if it was not.")
    reason: str | None = Field(description="Why it was retired.")
    metrics: dict[str, float] = Field(description="What was measured, in base units.")
    labels: dict[str, str] = Field(description="Labels of its spec.")
    owner: str | None = Field(description="The team or person to ask.")
    description: str | None = Field(description="What the model does.")
    license: str | None = Field(description="SPDX licence expression.")

    @classmethod
    def of(cls, version: RegisteredVersion) -> Self:
        """Return the line of a version."""
        return cls(
            **version.model_dump(include=cls.model_fields.keys() - {"by"}),
            **version.about.model_dump(exclude={"contains"}),
            by=version.by,
            parent=version.lineage.get("parent"),
        )


class ModelLine(Record):
    """One registered model."""

    name: str = Field(description="The model.")
    latest: str | None = Field(description="The version that its name alone means, null if there is none.")
    versions: tuple[str, ...] = Field(description="Versions that are not retired, highest first.")
    retired: tuple[str, ...] = Field(description="Versions that are, highest first.")
    aliases: dict[str, str] = Field(description="Alias to version.")
    stages: dict[str, str] = Field(description="Version to stage, where it stands in one.")
    tags: dict[str, str] = Field(description="Tags of the model.")
    ab: AbTest | None = Field(description="The A/B test, if there is one.")

    @classmethod
    def of(cls, name: str, state: ModelState) -> Self:
        """Return the line of a model."""
        down = state.sorted()[::-1]
        return cls(
            name=name,
            latest=state.latest(),
            versions=tuple(version for version in down if state.versions[version].retired is None),
            retired=tuple(version for version in down if state.versions[version].retired is not None),
            aliases=state.aliases,
            stages={version: stage for version in down if (stage := state.versions[version].stage)},
            tags=state.tags,
            ab=state.ab,
        )


class RegistryListDocument(StoreDocument):
    """`shipctl registry list --json`."""

    document: Literal["shipctl.registry-list/1"] = named("shipctl.registry-list/1")
    models: tuple[ModelLine, ...] = Field(description="Models by name.")


class RegistryModelDocument(StoreDocument):
    """`shipctl registry show NAME --json`."""

    document: Literal["shipctl.registry-model/1"] = named("shipctl.registry-model/1")
    model: ModelLine = Field(description="The model.")
    versions: tuple[VersionLine, ...] = Field(description="All versions, highest first.")


class RegistryVersionDocument(StoreDocument):
    """`shipctl registry show NAME@REF --json`."""

    document: Literal["shipctl.registry-version/1"] = named("shipctl.registry-version/1")
    version: VersionLine = Field(description="The version.")
    package: dict[str, Any] = Field(description="Manifest of the package.")
    contains: dict[str, str] = Field(description="What is in the package: role to artifact digest.")
    lineage: dict[str, Any] = Field(description="Where it comes from.")


class RegistryHistoryDocument(StoreDocument):
    """`shipctl registry history NAME --json`."""

    document: Literal["shipctl.registry-history/1"] = named("shipctl.registry-history/1")
    name: str = Field(description="The model.")
    total: int = Field(description="Number of entries.")
    head: str = Field(description="SHA-256 (hex) of the newest entry, to be noted elsewhere.")
    entries: tuple[AuditLine, ...] = Field(description="The newest entries, newest first.")
    approvals: tuple[AuditLine, ...] = Field(
        default=(),
        description="Requests, approvals, rejections and promotions of its releases, from the audit log.",
    )


class RegistryChangeDocument(StoreDocument):
    """`shipctl registry alias`, `stage`, `tag` and `ab` with `--json`."""

    document: Literal["shipctl.registry-change/1"] = named("shipctl.registry-change/1")
    changed: bool = Field(description="Whether it was not so before.")
    message: str = Field(description="What a person is told.")
    model: ModelLine = Field(description="The model after it.")


class RegistrySearchDocument(StoreDocument):
    """`shipctl registry search --json`."""

    document: Literal["shipctl.registry-search/1"] = named("shipctl.registry-search/1")
    query: str = Field(description="What was searched for.")
    versions: tuple[VersionLine, ...] = Field(description="What was found, by name and then highest first.")


class RegistryLineageDocument(StoreDocument):
    """`shipctl registry lineage NAME@REF --json`."""

    document: Literal["shipctl.registry-lineage/1"] = named("shipctl.registry-lineage/1")
    name: str = Field(description="The model.")
    version: str = Field(description="The version.")
    digest: str = Field(description="Digest of its package.")
    registered: float = Field(description="When it was registered.")
    by: Actor = Field(description="Who registered it.")
    lineage: dict[str, Any] = Field(description="Spec, data, run and whatever else its publisher said.")
    ancestors: tuple[str, ...] = Field(description="The versions it came after, the nearest first.")
    children: tuple[str, ...] = Field(description="The versions that came after it.")


class RetireDocument(StoreDocument):
    """`shipctl retire --json`."""

    document: Literal["shipctl.retire/1"] = named("shipctl.retire/1")
    name: str = Field(description="The model.")
    version: str = Field(description="The version.")
    changed: bool = Field(description="Whether it was not retired before.")
    aliases: tuple[str, ...] = Field(description="Aliases that were dropped.")
    ab: str | None = Field(description="The A/B test that was dropped.")
    deployments: tuple[Deployment, ...] = Field(
        description="Those that need it still; they were left as they are."
    )
