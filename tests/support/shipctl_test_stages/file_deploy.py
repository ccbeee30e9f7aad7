"""A release stage whose target is a folder. Every effect is idempotent, and traced when it really happens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shipctl import Phase, ReleaseContext, ReleaseStage, ReleaseState, Serving, StageError, StageOptions, Step
from shipctl.release.records import FileRecords, RecordStore
from shipctl_test_stages.basic import OneThing
from shipctl_test_stages.tracing import kill_point, trace

ORDER = (Phase.PENDING, Phase.PREPARING, Phase.PREFLIGHT, Phase.SHIFTING, Phase.PROMOTING, Phase.DONE)


class Options(StageOptions):
    """Where to, and what goes wrong."""

    target: str = Field(default="shelf", description="The folder's name.")
    fail_at: str = Field(default="", description="The phase in which a step fails.")
    fail_how: Literal["raise", "abort", "reject", "pause"] = Field(
        default="raise", description="How it fails."
    )
    fail_aborts: int = Field(default=0, description="Calls of abort that raise before one works.")
    secret: str = Field(default="", description="A secret that a failure gives away.")
    wait: float = Field(default=0.0, description="Seconds asked for between steps.")
    ask_at: str = Field(default="", description="The phase before which people are asked.")
    asks: str = Field(default="promote", description="What they are asked.")
    watch: float = Field(default=0.0, description="Seconds that it is watched for after its promotion.")
    shared: str = Field(default="", description="The target's folder, and its records', of every machine.")


class State(ReleaseState):
    """What has been reached, and what served before."""

    reached: Phase = Field(default=Phase.PENDING, description="The last phase that is complete.")
    before: dict[str, str] | None = Field(default=None, description="What served before.")
    aborts: int = Field(default=0, description="Calls of abort.")
    promoted: float = Field(default=0.0, description="When it was promoted, in seconds since the epoch.")


class FileDeploy(ReleaseStage[Options, OneThing, State]):
    """Serve a thing by copying it to where it is read."""

    api_version = 1

    def target(self) -> str:
        return self.options.target

    def records(self, ctx: ReleaseContext) -> RecordStore | None:
        shared = self.options.shared
        return FileRecords(Path(shared), ctx.pipeline, ctx.stage) if shared else None

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        serving = self._serving(ctx)
        return [f"{serving['version'] if serving else 'nothing'} -> {ctx.version}"]

    def in_place(self, inputs: OneThing, ctx: ReleaseContext) -> bool:
        serving = self._serving(ctx)
        return serving is not None and serving["revision"] == ctx.revision

    def step(self, state: State, inputs: OneThing, ctx: ReleaseContext) -> tuple[State, Step]:
        phase = ORDER[ORDER.index(state.reached) + 1]
        kill_point(f"before {phase}")
        left = state.promoted + self.options.watch - ctx.now()
        if phase is Phase.DONE and left > 0:
            return state, Step(
                phase=Phase.WATCHING, message=f"watching {ctx.version}", requeue=min(left, 0.2)
            )
        if phase == self.options.fail_at:
            failed = self._fail(state, phase)
            if failed is not None:
                return failed
        asked = set(self.options.asks.split(", ")) if phase == self.options.ask_at else set()
        if not asked <= ctx.approved():
            message = f"{ctx.version} waits for approval: {self.options.asks}"
            return state, Step(phase=Phase.PAUSED, message=message, asks=self.options.asks)
        if phase is Phase.PREPARING:
            before = self._serving(ctx)
            self._effect(ctx, phase, f"candidate-{ctx.revision[:8]}", inputs.thing.path.read_text())
            state = state.model_copy(update={"before": before})
        elif phase is Phase.PREFLIGHT:
            if "bad" in inputs.thing.path.read_text():
                return state, Step(phase=Phase.REJECTED, message="the golden sample differs")
        elif phase is Phase.SHIFTING:
            self._effect(ctx, phase, "weight", ctx.revision)
        elif phase is Phase.PROMOTING:
            serving = {
                "revision": ctx.revision, "version": ctx.version, "text": inputs.thing.path.read_text(),
            }  # fmt: skip
            self._effect(ctx, phase, "serving.json", json.dumps(serving))
            state = state.model_copy(update={"promoted": ctx.now()})
        kill_point(f"inside {phase}")
        state = state.model_copy(update={"reached": phase})
        return state, Step(phase=phase, message=f"{phase} {ctx.version}", requeue=self.options.wait)

    def abort(self, state: State, inputs: OneThing, ctx: ReleaseContext) -> tuple[State, Step]:
        kill_point("inside abort")
        state = state.model_copy(update={"aborts": state.aborts + 1})
        counter = self._folder(ctx) / "aborts"
        done = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(done + 1))
        if done < self.options.fail_aborts:
            raise StageError("the shelf is stuck")
        if state.reached is Phase.PENDING:
            return state, Step(phase=Phase.REJECTED, message="nothing was touched")
        if state.before is not None:
            self._effect(ctx, Phase.ABORTING, "serving.json", json.dumps(state.before))
            return state, Step(phase=Phase.ROLLED_BACK, message=f"{state.before['version']} serves")
        (self._folder(ctx) / "serving.json").unlink(missing_ok=True)
        return state, Step(phase=Phase.REJECTED, message="nothing serves")

    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        found = self._serving(ctx)
        if found is None:
            return ()
        return [
            Serving(
                name=ctx.pipeline,
                version=found["version"],
                revision=found["revision"],
                since=0,
                healthy=not (self._folder(ctx) / "ill").exists(),
                details={"weight": (self._folder(ctx) / "weight").read_text()[:8]},
            )
        ]

    def down(self, ctx: ReleaseContext) -> Sequence[str]:
        found = self._serving(ctx)
        (self._folder(ctx) / "serving.json").unlink(missing_ok=True)
        return [f"stopped {found['version']}"] if found else []

    def _fail(self, state: State, phase: Phase) -> tuple[State, Step] | None:
        message = f"{phase} went wrong{self.options.secret}"
        if self.options.fail_how == "raise":
            raise StageError(message)
        phases = {"abort": Phase.ABORTING, "reject": Phase.REJECTED, "pause": Phase.PAUSED}
        return state, Step(phase=phases[self.options.fail_how], message=message)

    def _serving(self, ctx: ReleaseContext) -> dict[str, Any] | None:
        path = self._folder(ctx) / "serving.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def _effect(self, ctx: ReleaseContext, phase: Phase, name: str, content: str) -> None:
        path: Path = self._folder(ctx) / name
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            trace(f"effect {phase} {ctx.version}")

    def _folder(self, ctx: ReleaseContext) -> Path:
        return Path(self.options.shared) if self.options.shared else ctx.target_dir
