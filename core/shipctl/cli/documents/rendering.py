"""Documents about what releases put on their targets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.records import Record


class RenderedFile(Record):
    """One file of what a release puts on its target."""

    path: str = Field(description="Relative to the folder of `-o`, with slashes.")
    text: str = Field(description="All of it.")


class RenderedRelease(Record):
    """What one release stage puts on its target."""

    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(description="The environment that is released to.")
    version: str = Field(description="metadata.version.")
    revision: str = Field(description="Digest of what would be released.")
    files: tuple[RenderedFile, ...] = Field(
        description="Its files, in order; none where the target takes no manifests."
    )


class RenderDocument(Document):
    """`shipctl render --json`."""

    document: Literal["shipctl.render/1"] = named("shipctl.render/1")
    releases: tuple[RenderedRelease, ...] = Field(description="By release stage.")
    folder: str | None = Field(default=None, description="The folder that the files were written to.")


class ReleaseDiff(Record):
    """What one release stage would change on what is live."""

    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(description="The environment that is released to.")
    version: str = Field(description="metadata.version.")
    revision: str = Field(description="Digest of what would be released.")
    changed: bool = Field(description="Whether it would change anything.")
    lines: tuple[str, ...] = Field(description="Lines of a unified diff, without line ends.")


class DiffDocument(Document):
    """`shipctl diff --json`."""

    document: Literal["shipctl.diff/1"] = named("shipctl.diff/1")
    changed: bool = Field(description="Whether any release would change anything.")
    releases: tuple[ReleaseDiff, ...] = Field(description="By release stage.")
