"""All JSON documents of ``--json`` by name, for `shipctl schema --of NAME`."""

from __future__ import annotations

from shipctl.cli.documents import DOCUMENTS, Document
from shipctl.cli.gc_documents import GcDocument
from shipctl.cli.registry_documents import REGISTRY_DOCUMENTS
from shipctl.cli.verify_documents import KeygenDocument, PullDocument, VerifyDocument

EVERY_DOCUMENT: dict[str, type[Document]] = {
    **DOCUMENTS,
    **REGISTRY_DOCUMENTS,
    "verify": VerifyDocument,
    "pull": PullDocument,
    "keygen": KeygenDocument,
    "gc": GcDocument,
}
"""Document by the name in its ``schema``."""
