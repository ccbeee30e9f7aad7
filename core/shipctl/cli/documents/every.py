"""All documents by name, for `shipctl schema --of NAME`."""

from __future__ import annotations

from shipctl.cli.documents.approvals import (
    AbortDocument,
    DecisionDocument,
    PendingDocument,
    PromoteDocument,
)
from shipctl.cli.documents.audit import AuditDocument
from shipctl.cli.documents.base import Document
from shipctl.cli.documents.gc import GcDocument
from shipctl.cli.documents.packages import (
    KeygenDocument,
    PullDocument,
    VerifyDocument,
)
from shipctl.cli.documents.registry import (
    RegistryChangeDocument,
    RegistryHistoryDocument,
    RegistryLineageDocument,
    RegistryListDocument,
    RegistryModelDocument,
    RegistrySearchDocument,
    RegistryVersionDocument,
    RetireDocument,
)
from shipctl.cli.documents.rendering import DiffDocument, RenderDocument
from shipctl.cli.documents.runs import (
    DownDocument,
    ErrorDocument,
    HistoryDocument,
    PlanDocument,
    ReportDocument,
    RunDocument,
    StatusDocument,
    ValidateDocument,
    WatchDocument,
)
from shipctl.cli.documents.stages import (
    StageDocument,
    StagesDocument,
)

EVERY_DOCUMENT: dict[str, type[Document]] = {
    "error": ErrorDocument,
    "validate": ValidateDocument,
    "plan": PlanDocument,
    "render": RenderDocument,
    "diff": DiffDocument,
    "run": RunDocument,
    "status": StatusDocument,
    "approvals": PendingDocument,
    "approval": DecisionDocument,
    "promote": PromoteDocument,
    "abort": AbortDocument,
    "watch": WatchDocument,
    "down": DownDocument,
    "history": HistoryDocument,
    "audit": AuditDocument,
    "report": ReportDocument,
    "stages": StagesDocument,
    "stage": StageDocument,
    "registry-list": RegistryListDocument,
    "registry-model": RegistryModelDocument,
    "registry-version": RegistryVersionDocument,
    "registry-history": RegistryHistoryDocument,
    "registry-change": RegistryChangeDocument,
    "registry-search": RegistrySearchDocument,
    "registry-lineage": RegistryLineageDocument,
    "retire": RetireDocument,
    "verify": VerifyDocument,
    "pull": PullDocument,
    "keygen": KeygenDocument,
    "gc": GcDocument,
}
"""Document by the name in its ``schema``."""
