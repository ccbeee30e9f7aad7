"""The hook `acme-audit`: appends a line to a file for each thing that it sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shipctl import hookimpl


class AcmeAudit:
    """Writes what happens to the file that ``ACME_AUDIT_FILE`` names; does nothing without it."""

    def __init__(self) -> None:
        name = os.environ.get("ACME_AUDIT_FILE")
        self.path = Path(name) if name else None

    def _write(self, *words: str) -> None:
        if self.path:
            with self.path.open("a") as file:
                print(*words, file=file)

    @hookimpl
    def shipctl_plan_ready(self, event: Any) -> None:
        """Write which pipeline was planned."""
        self._write("plan", event.pipeline)

    @hookimpl
    def shipctl_stage_finished(self, event: Any) -> None:
        """Write how a stage ended."""
        self._write("stage", event.uses, event.status)

    @hookimpl
    def shipctl_run_finished(self, event: Any) -> None:
        """Write how the run ended."""
        self._write("run", event.pipeline, str(event.exit_code))
