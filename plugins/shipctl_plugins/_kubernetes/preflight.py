"""The preflight of a release to a cluster: on this machine, in a server that ends with it.

The cluster's own pods show that they load the model, by becoming ready; that it answers as it should is asked here,
where nothing of the cluster stands in between and nobody's requests are near.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shipctl.release.target import Candidate
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._triton.golden import Tolerance


class Preflighter(Protocol):
    """Asks a candidate golden samples."""

    def __call__(
        self, candidate: Candidate, tolerance: Tolerance, timeout: float
    ) -> tuple[str, tuple[Verdict, ...]]:
        """Return a line for a person and the verdicts; ``timeout`` is in seconds, for loading and for answering."""


@dataclass(frozen=True)
class LocalPreflight:
    """Asks in a short-lived Triton on this machine, with its files below ``folder``."""

    folder: Path
    pipeline: str
    now: Callable[[], float]
    log: Callable[[str], None]

    def __call__(
        self, candidate: Candidate, tolerance: Tolerance, timeout: float
    ) -> tuple[str, tuple[Verdict, ...]]:
        """Load the candidate and judge its answers.

        :raises StageError: if no server can be started here
        """
        from shipctl_plugins._triton.environment import ensure_server_environment
        from shipctl_plugins._triton.preflight import blessing, run_preflight
        from shipctl_plugins._triton.releases import Releases

        environment = ensure_server_environment(self.log)
        releases = Releases(self.folder)
        try:
            releases.publish(
                candidate.repository,
                revision=candidate.revision,
                version=candidate.version,
                pipeline=self.pipeline,
                now=self.now(),
            )
            judgement = run_preflight(environment, releases, candidate, tolerance=tolerance, timeout=timeout)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        name = f"{candidate.repository.model} {candidate.version}"
        if not judgement.passed:
            return f"preflight of {name} on this machine: {judgement.summary}", judgement.verdicts
        where = f"on this machine ({blessing(environment)})"
        return f"preflight of {name} passed {where}: {judgement.summary}", judgement.verdicts
