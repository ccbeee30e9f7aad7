"""Two kinds of artifacts that differ in name alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shipctl import Artifact


class Thing(Artifact):
    """One text file."""

    kind: ClassVar[str] = "thing"

    note: str = Field(default="", description="Anything.")


class Other(Artifact):
    """Something that no stage for things takes."""

    kind: ClassVar[str] = "other"
