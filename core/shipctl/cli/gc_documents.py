"""The JSON document of `shipctl gc`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents import Document
from shipctl.store.gc import Collected


class GcDocument(Document):
    """`shipctl gc --json`."""

    document: Literal["shipctl.gc/1"] = Field(
        default="shipctl.gc/1", alias="schema", description="Name and version."
    )
    collected: Collected = Field(description="What was deleted, and what stays.")
