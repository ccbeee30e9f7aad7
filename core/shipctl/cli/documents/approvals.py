"""Documents about approvals, aborts and promotions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.cli.documents.base import Document, named
from shipctl.evidence.approvals import Statement
from shipctl.records import Record
from shipctl.store.log import Actor


class AskedLine(Record):
    """One thing that is asked of people, and how it stands."""

    what: str = Field(description="`release`, `promote`, or `step N`.")
    approved: Statement | None = Field(description="The approval that counts.")
    rejected: Statement | None = Field(description="The rejection that stands.")
    expired: Statement | None = Field(description="An approval that does not hold any more.")
    ignored: tuple[str, ...] = Field(description="What was said and does not count, with the reason.")


class PendingLine(Record):
    """A release that waits for people."""

    release: str = Field(description="Digest of the release: what an approval is bound to.")
    pipeline: str = Field(description="metadata.name.")
    version: str = Field(description="metadata.version of what is to be released.")
    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(description="The environment that is released to.")
    revision: str = Field(description="Digest of what is to be released.")
    stable: str | None = Field(description="The revision that served when it was asked.")
    roles: tuple[str, ...] = Field(description="Who may approve; none named means any role of the policy.")
    by: Actor = Field(description="Whose run waits.")
    run: str = Field(description="The run that waits.")
    at: float = Field(description="Since when, in seconds since the epoch.")
    preview: tuple[str, ...] = Field(description="What would change.")
    asked: tuple[AskedLine, ...] = Field(description="What is asked.")


class PendingDocument(Document):
    """`shipctl approve --list --json`."""

    document: Literal["shipctl.approvals/1"] = named("shipctl.approvals/1")
    pending: tuple[PendingLine, ...] = Field(description="What waits, oldest first.")


class DecisionDocument(Document):
    """`shipctl approve --json`, `reject --json`."""

    document: Literal["shipctl.approval/1"] = named("shipctl.approval/1")
    release: str = Field(description="Digest of the release.")
    decision: Literal["approve", "reject"] = Field(description="What was said.")
    changed: bool = Field(description="Whether it was said now, and not before.")
    signer: str | None = Field(description="Id of the key that signed it.")
    statements: tuple[Statement, ...] = Field(description="What was said, one for each thing that was asked.")


class AbortDocument(Document):
    """`shipctl abort --json`."""

    document: Literal["shipctl.abort/1"] = named("shipctl.abort/1")
    stage: str = Field(description="The release stage's id.")
    target: str = Field(description="The target's name.")
    environment: str | None = Field(description="The environment that was released to.")
    number: int = Field(description="Number of the release on the target.")
    version: str = Field(description="metadata.version of what was aborted.")
    revision: str = Field(description="Digest of what was aborted.")
    phase: str = Field(description="How the release ended.")
    run: str | None = Field(description="The run that took the steps; None if the one that drove it did.")
    exit_code: int = Field(description="What the process exits with.")
    message: str = Field(description="One line for a person.")


class PromoteDocument(Document):
    """`shipctl promote --json`."""

    document: Literal["shipctl.promote/1"] = named("shipctl.promote/1")
    run: str = Field(description="The run's id, for `shipctl report`.")
    exit_code: int = Field(description="What the process exits with.")
    message: str = Field(description="One line for a person.")
    warnings: tuple[str, ...] = Field(default=(), description="What did not keep it from going on.")
    source: str = Field(description="The environment that it was taken from.")
    target: str = Field(description="The environment that it was released to.")
    stage: str = Field(description="The release stage's id.")
    version: str | None = Field(description="metadata.version of what was promoted; None if nothing serves.")
    source_revision: str | None = Field(description="The revision there.")
    revision: str | None = Field(description="The revision here: other options make another one.")
    artifacts: tuple[str, ...] = Field(description="Digests of the artifacts, the same in both.")
