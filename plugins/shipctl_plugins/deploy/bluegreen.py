"""Release stage `bluegreen`: the new version stands ready beside the one that serves, and takes over in one step."""

from __future__ import annotations

from typing import ClassVar

from shipctl.release.options import StrategyOptions
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import Strategy
from shipctl.release.target import Capability
from shipctl.stages.base import Bound


class BluegreenOptions(StrategyOptions):
    """When it takes over."""

    autoPromotion: bool = Bound(  # noqa: N815
        True, description="Whether it takes over by itself; else it waits for `shipctl approve`."
    )
    previewService: bool = Bound(  # noqa: N815
        True, description="Whether requests with the header x-shipctl-preview reach it before it takes over."
    )

    def strategy(self) -> Strategy:
        """Return how a release with these options goes."""
        return Strategy(
            name="bluegreen", preview=self.previewService, autoPromotion=self.autoPromotion, **self.common()
        )


class Bluegreen(StrategyStage[BluegreenOptions]):
    """Let a new version take over in one step, and keep the old one warm for the way back."""

    api_version: ClassVar[int] = 1
    options_model = BluegreenOptions
    needs = frozenset({Capability.WEIGHTS})
