"""Release stage `bluegreen`: the new version stands ready beside the one that serves, and takes over in one step."""

from __future__ import annotations

from typing import ClassVar

from shipctl.release.options import BluegreenOptions
from shipctl.release.stage import StrategyStage


class Bluegreen(StrategyStage[BluegreenOptions]):
    """Let a new version take over in one step, and keep the old one warm for the way back."""

    api_version: ClassVar[int] = 1
    options_model = BluegreenOptions
