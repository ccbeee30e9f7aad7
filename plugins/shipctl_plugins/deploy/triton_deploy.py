"""Release stage `triton-deploy`: the shortest way to a Triton that serves, after a preflight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shipctl.release.options import StrategyOptions
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.stages.base import Bound


class TritonDeployOptions(StrategyOptions):
    """What all strategies have; nothing is measured unless it is asked for."""

    analysis: AnalysisOptions | None = Bound(
        None, description="What is measured while the new version serves; null for its health alone."
    )

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(name="bluegreen", **self.common())


class TritonDeploy(StrategyStage[TritonDeployOptions]):
    """Serve a Triton repository after a preflight: the new one takes over at once, the old one stays warm a while."""

    api_version: ClassVar[int] = 1
    options_model = TritonDeployOptions
    requires: ClassVar[Mapping[str, str]] = {"tritonclient": "shipctl[triton]"}
