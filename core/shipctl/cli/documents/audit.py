"""The document of `shipctl history --audit`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.records import Record
from shipctl.store.log import Actor


class AuditLine(Record):
    """One entry of the audit log."""

    number: int = Field(description="Counts the entries from 1.")
    previous: str = Field(description="SHA-256 (hex) of the entry before it, empty for the first.")
    digest: str = Field(description="SHA-256 (hex) of this entry.")
    time: float = Field(description="Seconds since the epoch.")
    actor: Actor = Field(description="Who did it.")
    action: str = Field(description="What was done.")
    subject: str = Field(description="What it was done to.")
    details: dict[str, Any] = Field(description="What was done in particular.")


class AuditDocument(Document):
    """`shipctl history --audit --json`."""

    document: Literal["shipctl.audit/1"] = named("shipctl.audit/1")
    store: str = Field(description="URI of the store that keeps the log.")
    total: int = Field(description="Number of entries.")
    head: str | None = Field(description="SHA-256 (hex) of the newest entry, to be noted elsewhere.")
    entries: tuple[AuditLine, ...] = Field(description="The newest entries, newest first.")
