"""Release stage `triton-deploy`: a repository becomes what a Triton server serves, and can always go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.spec.units import Duration
from shipctl.stages.artifacts import Dataset, ModelPackage, TritonRepository
from shipctl.stages.base import Phase, ReleaseStage, ReleaseState, Serving, StageInputs, StageOptions, Step
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl_plugins._triton.environment import find_server_python
from shipctl_plugins._triton.golden import Tolerance
from shipctl_plugins._triton.local_target import LocalTarget, Question
from shipctl_plugins._triton.processes import Ports
from shipctl_plugins._triton.releases import Published

WATCH_INTERVAL_S = 5.0

Port = Annotated[int, Field(ge=0, le=65535)]
Task = Literal["prepare", "publish", "preflight", "load", "verify", "watch", "retire"]


class TritonDeployOptions(StageOptions):
    """Where to, how careful, and how long the old version stays."""

    target: Literal["local"] = Field(
        default="local", description="Where it is served: a Triton on this machine."
    )
    http_port: Port = Field(
        default=0, description="Port of HTTP on loopback; 0 chooses a free one once and keeps it."
    )
    grpc_port: Port = Field(default=0, description="Port of gRPC on loopback; 0 as above.")
    metrics_port: Port = Field(
        default=0, description="Port of the Prometheus metrics on loopback; 0 as above."
    )
    scale_down_delay: Duration = Field(
        default=Duration("30s"),
        description="How long the old version stays loaded after the new one took over.",
    )
    golden: Tolerance = Field(
        default=Tolerance(), description="How far an answer may be from the golden one."
    )
    preflight_timeout: Duration = Field(
        default=Duration("120s"), description="How long loading and answering may take, each."
    )


class TritonDeployInputs(StageInputs):
    """What it takes."""

    repository: TritonRepository
    golden: Dataset
    package: ModelPackage | None = None
    """The signed package that both are from, for a policy that asks for one."""


class TritonDeployState(ReleaseState):
    """What it remembers between steps."""

    task: Task = Field(default="prepare", description="What the next step does.")
    number: int | None = Field(default=None, description="Triton's version number of this release.")
    previous: int | None = Field(default=None, description="The version that served before, None for none.")
    touched: bool = Field(default=False, description="Whether what serves may have been changed.")
    restarted: bool = Field(
        default=False, description="Whether the server died while the old version was kept."
    )
    retire_at: float | None = Field(
        default=None, description="When the old version goes, seconds since the epoch."
    )


class TritonDeploy(ReleaseStage[TritonDeployOptions, TritonDeployInputs, TritonDeployState]):
    """Serve a Triton repository on this machine, after a preflight in a server of its own."""

    api_version: ClassVar[int] = 1
    requires: ClassVar[Mapping[str, str]] = {"tritonclient": "shipctl[triton]"}

    def target(self) -> str:
        """Return the target's name."""
        return self.options.target

    def check(self, ctx: CheckContext) -> None:
        """Look for an interpreter that the server can live with; nothing is installed yet."""
        find_server_python()

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        """Say what serves now and how the new version would take over."""
        serving = self._target(ctx).status(ctx.pipeline)
        if not serving:
            return ["nothing serves: the first version starts the server once it has passed its preflight"]
        delay = self.options.scale_down_delay
        return [
            f"{item.name} {item.version} (Triton version {item.details['triton version']}, revision "
            f"{item.revision[:12]}) serves; the new version is loaded beside it after its preflight, takes over, and "
            f"the old one is unloaded {delay} later"
            for item in serving
        ]

    def in_place(self, inputs: TritonDeployInputs, ctx: ReleaseContext) -> bool:
        """Whether this revision serves: it is the stable one, the server has it loaded, and it answers."""
        return self._target(ctx).serves(inputs.repository.model, ctx.revision)

    def step(
        self, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        """Do the task that the state names; each finds out what of it is done already."""
        target = self._target(ctx)
        tasks = {
            "prepare": self._prepare,
            "publish": self._publish,
            "preflight": self._preflight,
            "load": self._load,
            "verify": self._verify,
            "watch": self._watch,
            "retire": self._retire,
        }
        return tasks[state.task](target, state, inputs, ctx)

    def abort(
        self, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        """Put back what served before; nothing is to be done while nothing that serves was touched."""
        target, model = self._target(ctx), inputs.repository.model
        before = _named(target, model, state.previous)
        if not state.touched:
            serving = f"{before} keeps serving" if state.previous else "nothing serves"
            return state, Step(phase=Phase.REJECTED, message=f"{model} {ctx.version} was rejected; {serving}")
        known = target.releases.model(model)
        if state.previous is None:
            target.withdraw(model)
            return state, Step(
                phase=Phase.REJECTED, message=f"{model} {ctx.version} was withdrawn; nothing serves"
            )
        target.restore(model, state.previous, self._ports())
        if known and known.stable == state.number:
            target.releases.commit_stable(model, state.number, state.previous, ctx.now())
        target.releases.prune(model)
        return state, Step(phase=Phase.ROLLED_BACK, message=f"{before} of {model} serves again")

    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        """Return what the target serves for this pipeline."""
        return self._target(ctx).status(ctx.pipeline)

    def down(self, ctx: ReleaseContext) -> Sequence[str]:
        """Unload this pipeline's models; the server stops with the last one."""
        return self._target(ctx).down(ctx.pipeline)

    def _prepare(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        """Have the environment, and the server where something is to serve already."""
        model = inputs.repository.model
        target.environment()
        known = target.releases.model(model)
        if known and known.stable is not None:
            target.ensure_server(self._ports())
            if target.serves(model, ctx.revision):
                return state, Step(phase=Phase.DONE, message=f"{model} {ctx.version} serves")
        return _next(state, "publish"), Step(phase=Phase.PREPARING, message="the Triton environment is ready")

    def _publish(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        model = inputs.repository.model
        known = target.releases.model(model)
        entry = target.publish(
            inputs.repository, revision=ctx.revision, version=ctx.version, pipeline=ctx.pipeline
        )
        stable = known.stable if known else None
        state = state.model_copy(
            update={"number": entry.number, "previous": None if stable == entry.number else stable}
        )
        message = f"{model} {ctx.version} is published as version {entry.number}"
        if ctx.intent == "rollback":  # its golden samples are asked again once it is loaded
            return _next(state, "load", touched=True), Step(phase=Phase.PREPARING, message=message)
        return _next(state, "preflight"), Step(phase=Phase.PREPARING, message=message)

    def _preflight(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        judgement = target.preflight(_number(state), self._question(inputs))
        if not judgement.passed:
            message = f"preflight of {inputs.repository.model} {ctx.version}: {judgement.summary}"
            return state, Step(phase=Phase.REJECTED, message=message, verdicts=judgement.verdicts)
        message = f"preflight passed on {target.blessing()}: {judgement.summary}"
        return _next(state, "load", touched=True), Step(
            phase=Phase.PREFLIGHT, message=message, verdicts=judgement.verdicts
        )

    def _load(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        """Load the new version, beside the old one where that is possible: from here on it answers."""
        model, number = inputs.repository.model, _number(state)
        numbers = [number]
        if state.previous is not None and target.releases.beside(model, state.previous, number):
            numbers = [state.previous, number]
        target.activate(target.ensure_server(self._ports()), model, numbers)
        beside = f" beside version {state.previous}" if len(numbers) > 1 else ""
        return _next(state, "verify"), Step(
            phase=Phase.PROMOTING, message=f"version {number} of {model} is loaded{beside}"
        )

    def _verify(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        """Ask what serves now; only then it becomes the stable version."""
        model, entry = inputs.repository.model, self._entry(target, state, inputs)
        judgement = target.verify(target.ensure_server(self._ports()), entry, self._question(inputs))
        if not judgement.passed:
            message = f"version {entry.number} of {model} does not serve as it should: {judgement.summary}"
            return state, Step(phase=Phase.ABORTING, message=message, verdicts=judgement.verdicts)
        target.releases.commit_stable(model, state.previous, entry.number, ctx.now())
        message = f"{model} {ctx.version} serves as version {entry.number}: {judgement.summary}"
        if state.previous is None or not target.releases.beside(model, state.previous, entry.number):
            return _next(state, "retire"), Step(
                phase=Phase.PROMOTING, message=message, verdicts=judgement.verdicts
            )
        state = state.model_copy(update={"retire_at": ctx.now() + self.options.scale_down_delay})
        return _next(state, "watch"), Step(phase=Phase.WATCHING, message=message, verdicts=judgement.verdicts)

    def _watch(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        """Keep the old version loaded for a while, and go back to it if the new one stops answering."""
        model, number = inputs.repository.model, _number(state)
        left = (state.retire_at or 0.0) - ctx.now()
        if (
            target.server() is None and not state.restarted
        ):  # the machine may have been switched off meanwhile
            target.ensure_server(self._ports())
            state = state.model_copy(update={"restarted": True})
        if not target.healthy(model, number):
            message = f"version {number} of {model} stopped answering"
            return state, Step(phase=Phase.ABORTING, message=message)
        if left > 0:
            message = (
                f"version {number} of {model} answers; version {state.previous} stays loaded for {left:.0f} s"
            )
            return state, Step(phase=Phase.WATCHING, message=message, requeue=min(left, WATCH_INTERVAL_S))
        return _next(state, "retire"), Step(
            phase=Phase.WATCHING, message=f"version {state.previous} of {model} is no longer needed"
        )

    def _retire(
        self, target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs, ctx: ReleaseContext
    ) -> tuple[TritonDeployState, Step]:
        model, number = inputs.repository.model, _number(state)
        target.retire(target.ensure_server(self._ports()), model, number)
        old = f"; version {state.previous} is unloaded" if state.previous is not None else ""
        return state, Step(phase=Phase.DONE, message=f"{model} {ctx.version} serves as version {number}{old}")

    def _target(self, ctx: ReleaseContext) -> LocalTarget:
        return LocalTarget(folder=(ctx.target_dir / "triton").absolute(), log=ctx.log, now=ctx.now)

    def _ports(self) -> Ports:
        return Ports(self.options.http_port, self.options.grpc_port, self.options.metrics_port)

    def _question(self, inputs: TritonDeployInputs) -> Question:
        return Question(
            repository=inputs.repository,
            golden=inputs.golden,
            tolerance=self.options.golden,
            timeout=float(self.options.preflight_timeout),
        )

    @staticmethod
    def _entry(target: LocalTarget, state: TritonDeployState, inputs: TritonDeployInputs) -> Published:
        known = target.releases.model(inputs.repository.model)
        entry = known.by_number(state.number) if known else None
        if entry is None:
            message = (
                f"version {state.number} of {inputs.repository.model} is gone from the target; run again"
            )
            raise StageError(message)
        return entry


def _next(state: TritonDeployState, task: Task, **changes: object) -> TritonDeployState:
    return state.model_copy(update={"task": task, **changes})


def _number(state: TritonDeployState) -> int:
    if state.number is None:
        message = "the release's state names no version; run again"
        raise StageError(message)
    return state.number


def _named(target: LocalTarget, model: str, number: int | None) -> str:
    known = target.releases.model(model)
    entry = known.by_number(number) if known else None
    return f"{entry.version} (version {entry.number})" if entry else "nothing"
