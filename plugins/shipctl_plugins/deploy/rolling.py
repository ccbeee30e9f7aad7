"""Release stage `rolling`: the new version replaces the old one, replica by replica where the target does that."""

from __future__ import annotations

from typing import ClassVar

from shipctl.release.options import StrategyOptions
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import Strategy


class RollingOptions(StrategyOptions):
    """What all strategies have."""

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(name="rolling", **self.common())


class Rolling(StrategyStage[RollingOptions]):
    """Replace what serves by a new version, as fast as that is safe."""

    api_version: ClassVar[int] = 1
    options_model = RollingOptions
