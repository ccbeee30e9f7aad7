"""Documents of `shipctl stages`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.records import Record


class StageSummary(Record):
    """One installed stage."""

    name: str = Field(description="What `uses:` says.")
    summary: str = Field(description="One line; empty if it does not import.")
    kind: str = Field(description="transform, check, release or broken.")
    distribution: str = Field(description="Name and version of the distribution that brings it.")
    module: str = Field(description="Where the class is.")
    problems: tuple[str, ...] = Field(default=(), description="What is wrong with it.")


class StagesDocument(Document):
    """`shipctl stages list --json` and `shipctl stages check --json`."""

    document: Literal["shipctl.stages/1"] = named("shipctl.stages/1")
    stages: tuple[StageSummary, ...] = Field(description="All installed stages by name.")


class StageDocument(Document):
    """`shipctl stages describe NAME --json`."""

    document: Literal["shipctl.stage/1"] = named("shipctl.stage/1")
    stage: StageSummary = Field(description="What the list says about it.")
    description: str = Field(description="The whole description.")
    inputs: dict[str, str] = Field(description="Input to the kinds that fit.")
    outputs: dict[str, str] = Field(description="Output to its kind.")
    options: dict[str, Any] = Field(description="JSON schema of what stands below `with:`.")
    metrics: tuple[str, ...] = Field(description="Metrics in its reports.")
    requires: dict[str, str] = Field(description="Module to what brings it.")
