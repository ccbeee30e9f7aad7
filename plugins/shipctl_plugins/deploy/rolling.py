"""Release stage `rolling`: the new version replaces the old one, replica by replica where the target does that."""

from __future__ import annotations

from typing import ClassVar

from shipctl.release.options import RollingOptions
from shipctl.release.stage import StrategyStage


class Rolling(StrategyStage[RollingOptions]):
    """Replace what serves by a new version, a few replicas at a time."""

    api_version: ClassVar[int] = 1
    options_model = RollingOptions
