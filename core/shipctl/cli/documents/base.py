"""What all documents have in common."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from shipctl.records import Record


def named(name: str) -> Any:
    """Return the field with a document's name: ``schema`` in JSON, because pydantic keeps that word for itself."""
    return Field(default=name, alias="schema", description="Name and version.")


class Document(Record):
    """Base of the documents; each says in ``document`` which it is."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    document: str = named("")


class StoreDocument(Document):
    """Base of those about what a store holds."""

    store: str = Field(description="URI of the store.")
