"""Driving a release stage as the engine does: step until final, the state written down after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import support_target
from shipctl.errors import ShipctlError
from shipctl.release.options import StrategyInputs
from shipctl.release.rollout import RolloutState
from shipctl.release.stage import StrategyStage
from shipctl.stages.base import Phase, Step
from shipctl.stages.context import ReleaseContext
from shipctl.testing.fixtures import FakeClock

MAX_STEPS = 2000


@dataclass
class Release:
    """One release and everything it went through."""

    stage: StrategyStage[Any]
    inputs: StrategyInputs
    context: ReleaseContext
    clock: FakeClock
    approved: set[str]
    world: support_target.World
    state: RolloutState = field(default_factory=RolloutState)
    steps: list[Step] = field(default_factory=list)

    def step(self) -> Step:
        """Take one step, forwards or back, as the engine would."""
        aborting = bool(self.steps) and self.steps[-1].phase is Phase.ABORTING
        act = self.stage.abort if aborting else self.stage.step
        try:
            self.state, step = act(self.state, self.inputs, self.context)
        except ShipctlError as error:
            step = Step(phase=Phase.ABORTING, message=str(error))
        self.state = RolloutState.model_validate_json(self.state.model_dump_json())
        self.steps.append(step)
        return step

    def run(self, until: Callable[[Step], bool] = lambda _step: False) -> Step:
        """Take steps until it is over, waits for somebody, or is where it was asked for."""
        for _ in range(MAX_STEPS):
            step = self.step()
            if step.phase.is_final or until(step) or (step.phase is Phase.PAUSED and not step.requeue):
                return step
            self.clock.advance(step.requeue)
        message = f"no end after {MAX_STEPS} steps: {[step.message for step in self.steps[-5:]]}"
        raise AssertionError(message)

    @property
    def phases(self) -> list[str]:
        """The phases in order, each once."""
        return [str(phase) for phase in dict.fromkeys(step.phase for step in self.steps)]


StartRelease = Callable[..., Release]
Serve = Callable[[], Release]
