"""A stage that makes a package in no time, and a release of one."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from shipctl import (
    Phase,
    ReleaseContext,
    ReleaseStage,
    ReleaseState,
    Serving,
    Stage,
    StageContext,
    StageOutputs,
    Step,
)
from shipctl.evidence.package import PackagedArtifact
from shipctl.stages.artifacts import FileEntry, ModelPackage
from shipctl.stages.base import StageInputs
from shipctl.testing.samples import SIGNATURE
from shipctl_test_stages.artifacts import Thing
from shipctl_test_stages.basic import Labelled, NoInputs
from shipctl_test_stages.tracing import kill_point, trace


class Options(Labelled):
    """What is inside."""

    text: str = Field(default="weights", description="The content of the model.")


class Outputs(StageOutputs):
    """A package, and what is in it."""

    package: ModelPackage
    thing: Thing


class MakePackage(Stage[Options, NoInputs, Outputs]):
    """Make a package around a text, under the name and version of the spec."""

    api_version = 1
    isolation = "inline"
    reads = ("metadata",)

    def run(self, inputs: NoInputs, ctx: StageContext) -> Outputs:
        from support_signing import MODEL, make_package, sha256

        self.options.began()
        name, version = str(ctx.objectives.metadata["name"]), str(ctx.objectives.metadata["version"])
        text = self.options.text.encode()
        inside = Thing(files=(FileEntry(path="thing.txt", sha256=sha256(text), size=len(text)),))
        folder = make_package(
            ctx.workdir / "package",
            name,
            version,
            provenance=False,
            extra={"model/thing.txt": text},
            artifacts=[
                PackagedArtifact(
                    role="data.thing", path="model", digest=inside.digest, manifest=inside.manifest()
                )
            ],
        )
        thing = ctx.workdir / "thing.txt"
        thing.write_bytes(text)
        package = ModelPackage.at(folder, name=name, version=version, model=MODEL, signature=SIGNATURE)
        return Outputs(package=package, thing=Thing.at(thing))


class DeployInputs(StageInputs):
    """A thing, and perhaps the package that it is from."""

    thing: Thing
    package: ModelPackage | None = None


class State(ReleaseState):
    """What served before."""

    before: str | None = Field(default=None, description="The revision that served before.")


class PackageDeploy(ReleaseStage[Labelled, DeployInputs, State]):
    """Serve a thing by writing down its revision."""

    api_version = 1

    def target(self) -> str:
        return "desk"

    def in_place(self, inputs: DeployInputs, ctx: ReleaseContext) -> bool:
        return self._serving(ctx) == ctx.revision

    def step(self, state: State, inputs: DeployInputs, ctx: ReleaseContext) -> tuple[State, Step]:
        kill_point("before deploy")
        trace(f"deploy {ctx.version}")
        place = ctx.target_dir / "serving"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(ctx.revision)
        return state, Step(phase=Phase.DONE, message=f"{ctx.version} serves")

    def abort(self, state: State, inputs: DeployInputs, ctx: ReleaseContext) -> tuple[State, Step]:
        return state, Step(phase=Phase.REJECTED, message=f"{ctx.version} does not serve")

    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        return ()

    def down(self, ctx: ReleaseContext) -> Sequence[str]:
        place = ctx.target_dir / "serving"
        if not place.exists():
            return ()
        place.unlink()
        return ("the desk was cleared",)

    @staticmethod
    def _serving(ctx: ReleaseContext) -> str | None:
        place = ctx.target_dir / "serving"
        return place.read_text() if place.exists() else None
