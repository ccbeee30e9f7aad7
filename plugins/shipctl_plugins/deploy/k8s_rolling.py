"""Release stage `k8s-rolling`: `rolling` with Kubernetes as the target where none is named."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shipctl.release.options import RollingOptions
from shipctl.release.references import Named, Reference
from shipctl.release.stage import StrategyStage


class K8sRollingOptions(RollingOptions):
    """What `rolling` has, and another target."""

    target: Named = Field(
        default=Reference(uses="kubernetes"),
        description="Where it is served: a target's name, or `{uses: NAME, with: OPTIONS}`.",
    )


class K8sRolling(StrategyStage[K8sRollingOptions]):
    """Replace what serves in Kubernetes by a new version, within maxSurge and maxUnavailable."""

    api_version: ClassVar[int] = 1
    options_model = K8sRollingOptions
