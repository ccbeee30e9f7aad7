"""Release stage `k8s-bluegreen`: `bluegreen` with Kubernetes as the target where none is named."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shipctl.release.options import BluegreenOptions
from shipctl.release.references import Named, Reference
from shipctl.release.stage import StrategyStage


class K8sBluegreenOptions(BluegreenOptions):
    """What `bluegreen` has, and another target."""

    target: Named = Field(
        default=Reference(uses="kubernetes"),
        description="Where it is served: a target's name, or `{uses: NAME, with: OPTIONS}`.",
    )


class K8sBluegreen(StrategyStage[K8sBluegreenOptions]):
    """Let a new version take over in Kubernetes in one step, and keep the old one warm for the way back."""

    api_version: ClassVar[int] = 1
    options_model = K8sBluegreenOptions
