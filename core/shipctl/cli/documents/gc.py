"""The document of `shipctl gc`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.store.gc import Collected


class GcDocument(Document):
    """`shipctl gc --json`."""

    document: Literal["shipctl.gc/1"] = named("shipctl.gc/1")
    collected: Collected = Field(description="What was deleted, and what stays.")
