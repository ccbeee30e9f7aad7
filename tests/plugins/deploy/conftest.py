"""Driving the stage as the engine does: step until final, the state written down after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shipctl.errors import ShipctlError
from shipctl.stages.artifacts import Dataset, TritonRepository
from shipctl.stages.base import Phase, Step
from shipctl.stages.context import ReleaseContext
from shipctl_plugins.deploy.triton_deploy import (
    TritonDeploy,
    TritonDeployInputs,
    TritonDeployOptions,
    TritonDeployState,
)

MAX_STEPS = 50


@dataclass
class Release:
    """One release and everything it went through."""

    stage: TritonDeploy
    inputs: TritonDeployInputs
    context: ReleaseContext
    state: TritonDeployState = field(default_factory=TritonDeployState)
    steps: list[Step] = field(default_factory=list)
    sleep: Callable[[float], None] = time.sleep

    def step(self) -> Step:
        """Take one step, forwards or back, as the engine would."""
        aborting = bool(self.steps) and self.steps[-1].phase is Phase.ABORTING
        try:
            act = self.stage.abort if aborting else self.stage.step
            self.state, step = act(self.state, self.inputs, self.context)
        except ShipctlError as error:
            if aborting:
                raise
            step = Step(phase=Phase.ABORTING, message=str(error))
        self.state = TritonDeployState.model_validate_json(self.state.model_dump_json())
        self.steps.append(step)
        return step

    def run(self, until: Callable[[Step], bool] = lambda step: step.phase.is_final) -> Step:
        """Take steps until one is final (or as asked for)."""
        for _ in range(MAX_STEPS):
            step = self.step()
            if until(step):
                return step
            self.sleep(step.requeue)
        message = f"no end after {MAX_STEPS} steps: {[step.message for step in self.steps]}"
        raise AssertionError(message)

    def abort(self, why: str = "asked to") -> Step:
        """Give up from here."""
        self.steps.append(Step(phase=Phase.ABORTING, message=why))
        return self.run()

    @property
    def in_place(self) -> bool:
        """Whether the target says that this revision serves."""
        return self.stage.in_place(self.inputs, self.context)

    @property
    def phases(self) -> list[str]:
        """The phases in order, each once."""
        return [str(phase) for phase in dict.fromkeys(step.phase for step in self.steps)]


StartRelease = Callable[..., Release]


@pytest.fixture
def start_release(tmp_path: Path) -> StartRelease:
    """Return a function that begins a release of a repository on the target of this test."""

    def start(
        repository: TritonRepository,
        golden: Dataset,
        version: str,
        *,
        revision: str | None = None,
        intent: str = "apply",
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        log: Callable[[str], None] = lambda line: None,
        **options: object,
    ) -> Release:
        context = ReleaseContext(
            project=tmp_path,
            target_dir=tmp_path / ".shipctl" / "targets" / "local",
            pipeline="digits",
            version=version,
            stage="release",
            revision=revision or f"revision-{version}",
            run="run-1",
            intent="rollback" if intent == "rollback" else "apply",
            log=log,
            now=now,
        )
        stage = TritonDeploy(TritonDeployOptions.model_validate({"scale_down_delay": "30s", **options}))
        inputs = TritonDeployInputs(repository=repository, golden=golden)
        return Release(stage, inputs, context, sleep=sleep)

    return start
